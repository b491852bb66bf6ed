"""Every method on every model of the table, at four budgets: what the tests and `scripts/bench methods` ask."""

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
    """A budget and how it is said."""

    name: str
    bytes: int


def budgets(problem: Problem) -> Iterator[Budget]:
    """Shares of the store-all peak, for which `solve` proves infeasible what is below the floor, whatever the method.

    Most of the small models are below it: their peak is mostly parameters. There the method itself is asked too, for
    the same shares of the way from the floor to the peak.
    """
    peak, floor = baseline(problem).peak_bytes, peak_bound_bytes(problem)
    for share in SHARES:
        yield Budget(f"{share}%", peak * share // 100)
        if peak * share // 100 < floor < peak:
            yield Budget(f"{share}% above the floor", floor + (peak - floor) * share // 100)


@lru_cache(maxsize=2)
def solver_of(case: Case, method: str) -> str | Solver:
    """The method, bound to the model where it needs one; for all budgets, so that what it prepares is prepared once."""
    return bind(method, exported(case))


def ask(case: Case, method: str, budget: Budget, seconds: float) -> Result:
    """What the method answers within the limit."""
    problem = exported(case).problem
    return remat_solvers.solve(problem, budget.bytes, solver=solver_of(case, method), limits=Limits(seconds))


def position(case: Case) -> int:
    """Of the model in the table."""
    return CASES.index(case)
