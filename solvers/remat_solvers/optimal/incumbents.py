"""Where a search stands: the best plans, the bounds proven so far, and what can be claimed with both.

A plan that reorders first computations is only held against the bound for every order, which is the lower one. So the
best plan that keeps the order is remembered beside the best of all, and is the answer where it is as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remat_solvers.bounds import time_bound_ns
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order, plan_from_sequence
from remat_solvers.simulate import simulate

__all__ = ["Evidence", "Incumbent", "Standing"]


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A plan, replayed."""

    plan: Plan
    time_ns: int
    peak_bytes: int
    ordered: bool  # first computations keep the problem's order

    @property
    def sequence(self) -> list[int]:
        """Its ops, as they run."""
        return self.plan.sequence


@dataclass(frozen=True, slots=True)
class Evidence:
    """The relaxation that gave a bound."""

    at: tuple[int, ...]  # its moments' ops
    intervals: tuple[tuple[int, int], ...]  # its interval cuts


class Standing:
    """The best plan and the best bounds for one problem and budget; tells `on_progress` when either moves."""

    def __init__(
        self, problem: Problem, budget_bytes: int, within: float, watch: Stopwatch, on_progress: OnProgress | None
    ) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = watch
        self.on_progress = on_progress
        self.within_ns = int(within * baseline(problem).time_ns)
        self.best: Incumbent | None = None
        self.best_ordered: Incumbent | None = None
        self.smallest_peak_bytes: int | None = None
        self.infeasible: dict[Order, bool] = {Order.GIVEN: False, Order.FREE: False}
        self.evidence: dict[Order, Evidence] = {}  # what proved the bound of an order, or that it has no plan
        self.none_after_tangents = False  # proven: no plan fits that runs nothing between the forward and the tangents
        self.once_ns = time_bound_ns(problem)  # every op once
        self.bounds = dict.fromkeys((Order.GIVEN, Order.FREE), self.once_ns)

    def offer(self, plan: Plan, note: str) -> bool:
        """Whether the plan is the best so far, or the best that keeps the order."""
        timeline = simulate(self.problem, plan)
        self.saw(timeline.peak_bytes)
        if timeline.peak_bytes > self.budget_bytes:
            return False
        new = Incumbent(plan, timeline.time_ns, timeline.peak_bytes, keeps_order(plan))
        better_ordered = new.ordered and (self.best_ordered is None or new.time_ns < self.best_ordered.time_ns)
        if better_ordered:
            self.best_ordered = new
        better = self.best is None or new.time_ns < self.best.time_ns
        if better:
            self.best = new
            self._tell(note)
        return better or better_ordered

    def offer_sequence(self, sequence: Sequence[int], note: str) -> bool:
        """The same for the ops in the order they run."""
        return self.offer(plan_from_sequence(self.problem, sequence), note)

    def saw(self, peak_bytes: int | None) -> None:
        """A peak that some plan reaches."""
        if peak_bytes is not None and (self.smallest_peak_bytes is None or peak_bytes < self.smallest_peak_bytes):
            self.smallest_peak_bytes = peak_bytes

    def prove(self, bound_ns: int, order: Order, note: str, by: Evidence | None = None) -> None:
        """No plan of this order within the budget is faster. A bound for every order holds for the given one too."""
        rises = False
        if by is not None and bound_ns >= self.bounds[order]:
            self.evidence[order] = by
        for kind in {order, Order.GIVEN}:
            if bound_ns > self.bounds[kind]:
                self.bounds[kind], rises = bound_ns, True
        if rises:
            self._tell(note)

    def prove_infeasible(self, order: Order, by: Evidence | None = None) -> None:
        """No plan of this order fits the budget."""
        if by is not None:
            self.evidence[order] = by
        self.infeasible[order] = self.infeasible[Order.GIVEN] = True

    @property
    def answer(self) -> Incumbent | None:
        """The plan to hand out: the fastest, or as good a one that keeps the order."""
        best, ordered = self.best, self.best_ordered
        near = best is not None and ordered is not None and ordered.time_ns - best.time_ns <= self.within_ns
        return ordered if near else best

    @property
    def order(self) -> Order:
        """For which plans the claim is made: for every order where the answer needs it or it costs nothing."""
        answer = self.answer
        reorders = answer is not None and not answer.ordered
        return Order.FREE if reorders or self.bounds[Order.FREE] >= self.bounds[Order.GIVEN] else Order.GIVEN

    @property
    def bound_ns(self) -> int:
        """Of that order."""
        return self.bounds[self.order]

    @property
    def closed(self) -> bool:
        """Whether nothing worth it is left to find, or to prove."""
        answer = self.answer
        if answer is None:
            return self.infeasible[Order.FREE]
        return answer.time_ns - self.bound_ns <= self.within_ns

    def outcome(self, stopped: Stopped, note: str = "") -> Outcome:
        """What can be claimed; `note` is for people."""
        answer = self.answer
        if answer is None:
            if self.infeasible[Order.FREE]:
                return Outcome(
                    Status.INFEASIBLE,
                    reason="proven for every order of the ops",
                    peak_bound_bytes=self.budget_bytes + 1,
                )
            only = "no plan that keeps the order of the ops fits" if self.infeasible[Order.GIVEN] else ""
            if self.none_after_tangents:
                only = "no plan fits in which nothing runs between the forward and the tangents"
            return Outcome(Status.NOT_FOUND, reason=only, smallest_peak_bytes=self.smallest_peak_bytes, stopped=stopped)
        return Outcome(
            Status.OPTIMAL if answer.time_ns <= self.bound_ns else Status.FEASIBLE,
            plan=answer.plan,
            reason=note,
            bound_ns=self.bound_ns,
            order=self.order,
            smallest_peak_bytes=self.smallest_peak_bytes,
            stopped=stopped,
        )

    def _tell(self, note: str) -> None:
        """The fastest plan, with a bound that holds for it: so times fall, and the bounds of an order rise."""
        if self.on_progress is not None:
            best = self.best
            order = self.order if best is None or best.ordered else Order.FREE
            self.on_progress(
                Progress(
                    self.watch.seconds,
                    None if best is None else best.time_ns,
                    None if best is None else best.peak_bytes,
                    self.bounds[order],
                    note,
                    order,
                )
            )
