"""Store everything: the step as the framework runs it. Every method is measured against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Status
from remat_solvers.schedule import baseline, store_all


@dataclass(frozen=True)
class StoreAll:
    """The problem's order, every value freed right after its last use; nothing is computed twice."""

    name: ClassVar[str] = "store-all"
    version: ClassVar[str] = "1"

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The store-all plan where it fits. It is optimal, since every op must run once. See `registry.Solver`."""
        peak_bytes = baseline(problem).peak_bytes
        if peak_bytes > budget_bytes:
            return Outcome(status=Status.NOT_FOUND, smallest_peak_bytes=peak_bytes)
        return Outcome(
            status=Status.OPTIMAL,
            plan=store_all(problem),
            bound_ns=time_bound_ns(problem),
            order=Order.FREE,
            smallest_peak_bytes=peak_bytes,
        )
