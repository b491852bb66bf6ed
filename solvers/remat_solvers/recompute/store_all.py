"""Store everything: the step as the framework runs it, which is what every method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Status
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate

__all__ = ["StoreAll"]


@dataclass(frozen=True)
class StoreAll:
    """The problem's order, every value freed right after its last use; nothing is computed twice."""

    name: ClassVar[str] = "store-all"
    version: ClassVar[str] = "1"

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The one plan it knows where that fits: optimal, since every op must run once. See `registry.Solver`."""
        plan = store_all(problem)
        peak_bytes = simulate(problem, plan).peak_bytes
        if peak_bytes > budget_bytes:
            return Outcome(status=Status.NOT_FOUND, smallest_peak_bytes=peak_bytes)
        return Outcome(
            status=Status.OPTIMAL,
            plan=plan,
            bound_ns=time_bound_ns(problem),
            order=Order.FREE,
            smallest_peak_bytes=peak_bytes,
        )
