"""The curve of time against peak that a sweep returns, with one plan per point."""

from __future__ import annotations

from dataclasses import dataclass

from remat_solvers.errors import InputError
from remat_solvers.plan import Plan
from remat_solvers.problem import Link
from remat_solvers.result import Order, Result, Status, Stopped


@dataclass(frozen=True, slots=True)
class Point:
    """The best plan and the best bound that the whole sweep has for one budget."""

    budget_bytes: int
    status: Status
    stopped: Stopped  # why the search at this budget stopped
    peak_bytes: int | None  # of the plan
    time_ns: int | None  # of the plan
    overhead: float | None  # time over store-all's, less 1
    bound_ns: int | None  # proven lower bound on the time of every plan within the budget; None: none proven
    order: Order | None  # for which plans bound_ns holds
    gap: float | None  # (time_ns - bound_ns) / store-all time
    seconds: float  # spent at this budget; 0 where its neighbours' answers settle it
    reason: str  # why there is no plan, or a remark on it
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points, with ascending budgets. Times never rise from one point to the next, nor do bounds of one order."""

    problem: str  # fingerprint
    name: str  # of the problem
    solver: str  # registry name
    solver_version: str
    seed: int
    link: Link | None  # that the times hold for
    stopped: Stopped
    seconds: float  # of the whole sweep
    store_all_peak_bytes: int
    store_all_time_ns: int
    smallest_peak_bytes: int  # smallest peak known to be reachable
    peak_bound_bytes: int  # proven lower bound on the peak of any plan
    points: tuple[Point, ...]

    def within(self, budget_bytes: int) -> Point:
        """The fastest point whose peak is at most `budget_bytes`. Raises InputError where there is none."""
        fitting = [p for p in self.points if p.peak_bytes is not None and p.peak_bytes <= budget_bytes]
        if not fitting:
            raise InputError(f"no point of the sweep has a peak of at most {budget_bytes} bytes")
        return min(fitting, key=lambda p: (p.time_ns, p.peak_bytes))

    def result(self, point: Point) -> Result:
        """The point as a Result, for `save_plan` and for every function that takes a Result."""
        return Result(
            plan=point.plan,
            problem=self.problem,
            budget_bytes=point.budget_bytes,
            status=point.status,
            stopped=point.stopped,
            time_ns=point.time_ns,
            peak_bytes=point.peak_bytes,
            bound_ns=point.bound_ns,
            order=point.order or Order.GIVEN,
            gap=point.gap,
            smallest_peak_bytes=self.smallest_peak_bytes,
            peak_bound_bytes=self.peak_bound_bytes,
            store_all_time_ns=self.store_all_time_ns,
            store_all_peak_bytes=self.store_all_peak_bytes,
            seconds=point.seconds,
            solver=self.solver,
            version=self.solver_version,
            seed=self.seed,
            reason=point.reason,
        )
