"""The plans that a method tries within one budget: the fastest that fits, and the smallest peak it has seen.

A published method has its own account of memory. What counts here is the replay: a method's parameter (slots, a
budget in its own terms) is searched for the fastest plan whose replayed peak is within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import Timeline, simulate

__all__ = ["Attempts"]

BEYOND = 3  # parameters tried beyond the first that does not fit, since peaks need not grow with them
T = TypeVar("T")


class Attempts:
    """Sequences tried so far. Use as a context: an interrupt ends the block and keeps what was found."""

    def __init__(self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = Stopwatch(limits)
        self.on_progress = on_progress
        self.best: tuple[int, int, Plan] | None = None  # time, peak, plan
        self.smallest: int | None = None
        self.stopped = Stopped.COMPLETE

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stopped = Stopped.INTERRUPT
            return True
        return False

    @property
    def expired(self) -> bool:
        """Whether to stop: the limit is reached and at least one plan was replayed."""
        if self.smallest is not None and self.watch.expired:
            self.stopped = Stopped.TIME
            return True
        return False

    def fits(self, sequence: Sequence[int], form: str) -> bool:
        """Replay the plan of `sequence`; whether it is within the budget."""
        return self.replay(sequence, form).peak_bytes <= self.budget_bytes

    def replay(self, sequence: Sequence[int], form: str) -> Timeline:
        """Replay the plan of `sequence`, and remember it where it is better than those before."""
        return self.judge(plan_from_sequence(self.problem, sequence), form)

    def judge(self, plan: Plan, form: str) -> Timeline:
        """Replay `plan`, and remember it where it is better than those before."""
        timeline = simulate(self.problem, plan)
        time_ns, peak_bytes = timeline.time_ns, timeline.peak_bytes
        self.reaches(peak_bytes)
        if peak_bytes <= self.budget_bytes and (self.best is None or (time_ns, peak_bytes) < self.best[:2]):
            self.best = time_ns, peak_bytes, plan
            if self.on_progress is not None:
                self.on_progress(Progress(self.watch.seconds, time_ns, peak_bytes, None, form))
        return timeline

    def reaches(self, peak_bytes: int) -> None:
        """A plan of this peak exists, also where it was not made."""
        self.smallest = peak_bytes if self.smallest is None else min(self.smallest, peak_bytes)

    def search(self, parameters: Sequence[T], sequence_of: Callable[[T], Sequence[int]], form: str) -> None:
        """Try the largest of the ascending `parameters` that fits, and the smallest of all where none does.

        Larger ones are faster and need more, as a rule: by bisection, and a few beyond. What is no faster than the best
        plan so far is not replayed, nor is anything smaller.
        """
        low, high = -1, len(parameters)
        while high - low > 1 and not self.expired:
            middle = (low + high) // 2
            sequence = sequence_of(parameters[middle])
            if self.slower(sequence) or self.fits(sequence, f"{form} {parameters[middle]}"):
                low = middle
            else:
                high = middle
        for parameter in parameters[high + 1 : high + 1 + BEYOND]:
            if not self.expired and not self.slower(sequence := sequence_of(parameter)):
                self.fits(sequence, f"{form} {parameter}")

    def slower(self, sequence: Sequence[int]) -> bool:
        """Whether a plan within the budget is known that is at least as fast."""
        return self.best is not None and sum(self.problem.ops[op].time_ns for op in sequence) >= self.best[0]

    def outcome(self) -> Outcome:
        """The fastest plan that fits, or the smallest peak reached."""
        if self.best is None:
            return Outcome(Status.NOT_FOUND, smallest_peak_bytes=self.smallest, stopped=self.stopped)
        return Outcome(Status.FEASIBLE, self.best[2], smallest_peak_bytes=self.smallest, stopped=self.stopped)
