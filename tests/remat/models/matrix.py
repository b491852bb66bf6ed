"""Every method on every model of the table, at four budgets, for test_methods.py and `scripts/bench methods`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import remat_solvers
from remat.model_solvers.registry import MODEL_ENTRIES, bind
from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.problem import Problem
from remat_solvers.registry import ENTRIES, Solver
from remat_solvers.result import Limits, Result
from remat_solvers.schedule import baseline
from tests.remat.models.exports import exported
from tests.remat.models.table import CASES, Case

METHODS = (*ENTRIES, *MODEL_ENTRIES)
SHARES = (90, 70, 50, 30)  # per cent


@dataclass(frozen=True)
class Budget:
    """A budget in bytes, and its name."""

    name: str
    bytes: int


def budgets(problem: Problem) -> Iterator[Budget]:
    """Yield shares of the store-all peak, and where a share is below the floor, also a feasible budget.

    The peak of a small model is mostly parameters, so most shares of it are below the floor, where `solve` proves that
    no plan exists without running the method. The feasible budget is at the same share of the way from floor to peak.
    """
    peak, floor = baseline(problem).peak_bytes, peak_bound_bytes(problem)
    for share in SHARES:
        yield Budget(f"{share}%", peak * share // 100)
        if peak * share // 100 < floor < peak:
            yield Budget(f"{share}% above the floor", floor + (peak - floor) * share // 100)


@lru_cache(maxsize=2)
def solver_of(case: Case, method: str) -> str | Solver:
    """Return the method, bound to the model where it needs one; once for all budgets, since it may prepare data."""
    return bind(method, exported(case))


def solve_case(case: Case, method: str, budget: Budget, seconds: float) -> Result:
    """Return the method's result within the limit."""
    problem = exported(case).problem
    return remat_solvers.solve(problem, budget.bytes, solver=solver_of(case, method), limits=Limits(seconds))


def position(case: Case) -> int:
    """Return the position of the model in the table."""
    return CASES.index(case)
