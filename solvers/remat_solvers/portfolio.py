"""`auto` for now: the methods of the portfolio in turn, each with its share of the time; the fastest plan wins.

Not in it (`Entry.in_portfolio`) are those that may take minutes: programs for a backend, and exhaustive search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.clock import Stopwatch
from remat_solvers.problem import Problem
from remat_solvers.registry import ENTRIES, create
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.simulate import simulate

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto:
    """The fastest plan that any method of the portfolio finds."""

    name: ClassVar[str] = "auto"
    version: ClassVar[str] = "1"

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """Ends early where a method proves optimality or infeasibility. See `registry.Solver`."""
        watch = Stopwatch(limits)
        entries = [e for e in ENTRIES if e.in_portfolio and (problem.backward_ops or not e.needs_backward)]
        entries.sort(key=lambda e: e.slow)  # so that a short limit still sees many methods
        best: tuple[int, Outcome] | None = None
        smallest: list[int] = []
        stopped = Stopped.COMPLETE
        try:
            for left, entry in zip(range(len(entries), 0, -1), entries, strict=True):
                remaining = watch.remaining
                if remaining == 0:
                    stopped = Stopped.TIME
                    break
                share = Limits(None if remaining is None else remaining / left)
                outcome = create(entry.name).solve(problem, budget_bytes, limits=share, on_progress=None, seed=seed)
                stopped = outcome.stopped if outcome.stopped is not Stopped.COMPLETE else stopped
                if outcome.smallest_peak_bytes is not None:
                    smallest.append(outcome.smallest_peak_bytes)
                if outcome.status is Status.INFEASIBLE:
                    return outcome
                if outcome.plan is not None:
                    timeline = simulate(problem, outcome.plan)
                    if best is None or timeline.time_ns < best[0]:
                        best = timeline.time_ns, outcome
                        if on_progress is not None:
                            bound_ns = outcome.bound_ns
                            on_progress(
                                Progress(watch.seconds, timeline.time_ns, timeline.peak_bytes, bound_ns, entry.name)
                            )
                if outcome.status is Status.OPTIMAL or stopped is Stopped.INTERRUPT:
                    break
        except KeyboardInterrupt:
            stopped = Stopped.INTERRUPT
        smallest_peak_bytes = min(smallest, default=None)
        if best is None:
            reason = "" if entries else "no registered method treats such a problem"
            return Outcome(
                status=Status.NOT_FOUND, reason=reason, smallest_peak_bytes=smallest_peak_bytes, stopped=stopped
            )
        answer = replace(best[1], smallest_peak_bytes=smallest_peak_bytes, stopped=stopped)
        return answer if answer.bound_ns is not None else _with_trivial_bound(problem, answer, best[0])


def _with_trivial_bound(problem: Problem, outcome: Outcome, time_ns: int) -> Outcome:
    """Every op runs at least once: a bound that holds for any method's plan."""
    bound_ns = time_bound_ns(problem)
    status = Status.OPTIMAL if time_ns <= bound_ns else outcome.status
    return replace(outcome, status=status, bound_ns=bound_ns, order=Order.FREE)
