"""Keeps the best plans and the proven bounds of one problem and budget, and derives the answer and its gap.

A plan that reorders first computations is only compared with the bound for every order, which is the lower one. So the
best plan that keeps the order is remembered beside the best of all, and is the answer where it is as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remat_solvers.bounds import time_bound_ns
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import OnProgress, Order, Outcome, Progress, Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.toolkit.trials import BestPlan, Incumbent


@dataclass(frozen=True, slots=True)
class Evidence:
    """The relaxation that proved a bound, from which a certificate can be written."""

    anchors: tuple[int, ...]  # ops whose first computations are its moments
    intervals: tuple[tuple[int, int], ...]  # its interval cuts


class Incumbents(BestPlan):
    """The best plans and bounds for one problem and budget; reports to `on_progress` when either improves."""

    def __init__(
        self, problem: Problem, budget_bytes: int, within: float, watch: Stopwatch, on_progress: OnProgress | None
    ) -> None:
        super().__init__(problem, budget_bytes, watch, on_progress)
        self.within_ns = int(within * baseline(problem).time_ns)  # a gap that is small enough
        self.best_ordered: Incumbent | None = None  # of those that keep the order of first computations
        self.infeasible: dict[Order, bool] = {Order.GIVEN: False, Order.FREE: False}
        self.evidence: dict[Order, Evidence] = {}  # of the bound of an order, or of the proof that it has no plan
        self.none_after_tangents = False  # proven: no plan fits that runs nothing between the forward and the tangents
        self.every_op_once_ns = time_bound_ns(problem)
        self.bounds = dict.fromkeys((Order.GIVEN, Order.FREE), self.every_op_once_ns)

    def offer(self, plan: Plan, message: str) -> bool:
        """Replay the plan; whether it is the best so far, or the best that keeps the order."""
        best, best_ordered = self.best, self.best_ordered
        self.replay(plan, message)
        return self.best is not best or self.best_ordered is not best_ordered

    def offer_sequence(self, sequence: Sequence[int], message: str) -> bool:
        """Offer the plan that computes `sequence`."""
        return self.offer(plan_from_sequence(self.problem, sequence), message)

    def consider(self, new: Incumbent, message: str) -> bool:
        """Keep a plan within the budget if it is faster than the best, or the best that keeps the order; whether so."""
        better_ordered = new.keeps_order and (self.best_ordered is None or new.time_ns < self.best_ordered.time_ns)
        if better_ordered:
            self.best_ordered = new
        better = self.best is None or new.time_ns < self.best.time_ns
        if better:
            self.best = new
            self.report(message)
        return better or better_ordered

    def best_for(self, order: Order) -> Incumbent | None:
        """The best plan of this order of first computations; a free order allows any."""
        return self.best_ordered if order is Order.GIVEN else self.best

    def raise_bound(self, bound_ns: int, order: Order, message: str, evidence: Evidence | None = None) -> None:
        """Record that no plan of this order is faster. A bound for every order holds for the given one, too."""
        rises = False
        if evidence is not None and bound_ns >= self.bounds[order]:
            self.evidence[order] = evidence
        for kind in {order, Order.GIVEN}:
            if bound_ns > self.bounds[kind]:
                self.bounds[kind], rises = bound_ns, True
        if rises:
            self.report(message)

    def prove_infeasible(self, order: Order, evidence: Evidence | None = None) -> None:
        """Record that no plan of this order fits the budget."""
        if evidence is not None:
            self.evidence[order] = evidence
        self.infeasible[order] = self.infeasible[Order.GIVEN] = True

    @property
    def answer(self) -> Incumbent | None:
        """The plan to return: the fastest, or one as good that keeps the order."""
        best, ordered = self.best, self.best_ordered
        near = best is not None and ordered is not None and ordered.time_ns - best.time_ns <= self.within_ns
        return ordered if near else best

    @property
    def order(self) -> Order:
        """The plans for which the bound is claimed: all if the answer reorders or that bound is as high, else GIVEN."""
        answer = self.answer
        reorders = answer is not None and not answer.keeps_order
        return Order.FREE if reorders or self.bounds[Order.FREE] >= self.bounds[Order.GIVEN] else Order.GIVEN

    @property
    def bound_ns(self) -> int:
        """The bound for that order."""
        return self.bounds[self.order]

    @property
    def closed(self) -> bool:
        """Whether the gap is small enough, or it is proven that no plan fits."""
        answer = self.answer
        if answer is None:
            return self.infeasible[Order.FREE]
        return answer.time_ns - self.bound_ns <= self.within_ns

    def outcome(self, reason: str = "") -> Outcome:
        """The plan to return, with its bound and status; `reason` is for people."""
        answer = self.answer
        if answer is None:
            if self.infeasible[Order.FREE]:
                return Outcome(
                    Status.INFEASIBLE,
                    reason="proven for every order of the ops",
                    peak_bound_bytes=self.budget_bytes + 1,
                )
            proven = "no plan that keeps the order of the ops fits" if self.infeasible[Order.GIVEN] else ""
            if self.none_after_tangents:
                proven = "no plan fits in which nothing runs between the forward and the tangents"
            return Outcome(
                Status.NOT_FOUND, reason=proven, smallest_peak_bytes=self.smallest_peak_bytes, stopped=self.stopped
            )
        return Outcome(
            Status.OPTIMAL if answer.time_ns <= self.bound_ns else Status.FEASIBLE,
            plan=answer.plan,
            reason=reason,
            bound_ns=self.bound_ns,
            order=self.order,
            smallest_peak_bytes=self.smallest_peak_bytes,
            stopped=self.stopped,
        )

    def progress(self, message: str) -> Progress:
        """A report of the fastest plan and a bound that holds for it: times only fall, bounds of an order only rise."""
        best = self.best
        order = self.order if best is None or best.keeps_order else Order.FREE
        return Progress(
            self.watch.seconds,
            None if best is None else best.time_ns,
            None if best is None else best.peak_bytes,
            self.bounds[order],
            message,
            order,
        )
