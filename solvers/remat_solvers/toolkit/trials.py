"""Keeps the best plan of a search, and searches a method's parameter for the fastest plan that fits the budget.

A published method has its own account of memory. Here only the replay decides: a plan fits when its replayed peak is
within the budget. `BestPlan` is the base of every search that replays plans; `Trials` adds the search over the
parameter of a method (its slots, or a budget in its own terms).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self, TypeVar

from remat_solvers.errors import RematError
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import keeps_order, plan_from_sequence
from remat_solvers.simulate import Timeline, simulate
from remat_solvers.toolkit.options import Ranges, check_options
from remat_solvers.toolkit.requirements import Requirement, missing_requirement

TRIED_BEYOND = 3  # parameters tried beyond the first that does not fit, since peaks need not grow with them
T = TypeVar("T")


@dataclass(frozen=True)
class Incumbent:
    """A plan within the budget, with the costs that its replay gives."""

    plan: Plan
    time_ns: int
    peak_bytes: int
    host_bytes: int  # sum of its distinct offloaded values

    @cached_property
    def keeps_order(self) -> bool:
        """Whether its first computations keep the problem's order."""
        return keeps_order(self.plan)


class BestPlan:
    """The best plan within a budget that a search has replayed, and the smallest peak of all that it has replayed.

    It reports each improvement to `on_progress`. Use it as a context: an interrupt ends the block, and what was found
    stays. A subclass that prefers other plans, or that knows bounds, overrides `consider` or `progress`.
    """

    def __init__(self, problem: Problem, budget_bytes: int, watch: Stopwatch, on_progress: OnProgress | None) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = watch
        self.on_progress = on_progress
        self.best: Incumbent | None = None
        self.smallest_peak_bytes: int | None = None  # None: nothing was replayed yet
        self.stopped = Stopped.COMPLETE
        self.reason = ""  # of the outcome, for people

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stopped = Stopped.INTERRUPT
            return True
        return False

    def out_of_time(self) -> bool:
        """Whether the time limit is reached, with or without a plan; from then on `stopped` says so."""
        if self.watch.expired:
            self.stopped = Stopped.TIME
            return True
        return False

    def replay(self, plan: Plan, message: str) -> Timeline:
        """Replay `plan`, and keep it if it fits the budget and is better than the best before it."""
        timeline = simulate(self.problem, plan)
        self.observe_peak(timeline.peak_bytes)
        if timeline.peak_bytes <= self.budget_bytes:
            self.consider(Incumbent(plan, timeline.time_ns, timeline.peak_bytes, timeline.host_bytes), message)
        return timeline

    def replay_sequence(self, sequence: Sequence[int], message: str) -> Timeline:
        """Replay the plan that computes `sequence`, and keep it if it is the best."""
        return self.replay(plan_from_sequence(self.problem, sequence), message)

    def observe_peak(self, peak_bytes: int | None) -> None:
        """Remember that a plan of this peak exists, even if it was not built; None: no such plan is known."""
        if peak_bytes is not None and (self.smallest_peak_bytes is None or peak_bytes < self.smallest_peak_bytes):
            self.smallest_peak_bytes = peak_bytes

    def consider(self, new: Incumbent, message: str) -> bool:
        """Keep a plan within the budget if it is faster, or as fast with a smaller peak; return whether it is kept."""
        best = self.best
        if best is not None and (new.time_ns, new.peak_bytes) >= (best.time_ns, best.peak_bytes):
            return False
        self.best = new
        self.report(message)
        return True

    def report(self, message: str) -> None:
        """Report the best plan so far to the caller of the solver; `message` is for people."""
        if self.on_progress is not None:
            self.on_progress(self.progress(message))

    def progress(self, message: str) -> Progress:
        """The report on the best plan so far."""
        best = self.best
        time_ns, peak_bytes = (None, None) if best is None else (best.time_ns, best.peak_bytes)
        return Progress(self.watch.seconds, time_ns, peak_bytes, None, message)

    def outcome(self, reason: str = "") -> Outcome:
        """The best plan, or without one the smallest peak that was reached."""
        status, plan = (Status.NOT_FOUND, None) if self.best is None else (Status.FEASIBLE, self.best.plan)
        reason = reason or self.reason
        return Outcome(status, plan, reason, smallest_peak_bytes=self.smallest_peak_bytes, stopped=self.stopped)


class LeastTraffic(BestPlan):
    """The best plan of a local search over copies: of equally fast plans, the one that offloads fewer bytes.

    Of plans equal in both it takes the latest, so that the search can move among equally good plans.
    """

    def consider(self, new: Incumbent, message: str) -> bool:
        """Keep a plan within the budget that is at least as good, and report it if it is faster."""
        best = self.best
        if best is not None and (new.time_ns, new.host_bytes) > (best.time_ns, best.host_bytes):
            return False
        self.best = new
        if best is None or new.time_ns < best.time_ns:
            self.report(message)
        return True


class Trials(BestPlan):
    """The plans that a method tries within one budget."""

    def __init__(self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None) -> None:
        super().__init__(problem, budget_bytes, Stopwatch(limits), on_progress)

    @property
    def expired(self) -> bool:
        """Whether to stop: the time limit is reached, and at least one plan was replayed."""
        return self.smallest_peak_bytes is not None and self.out_of_time()

    def fits(self, sequence: Sequence[int], message: str) -> bool:
        """Replay the plan that computes `sequence`, and return whether it is within the budget."""
        return self.replay_sequence(sequence, message).peak_bytes <= self.budget_bytes

    def cannot_improve(self, sequence: Sequence[int]) -> bool:
        """Whether a plan within the budget is known that is at least as fast as one that computes `sequence`."""
        return self.best is not None and sum(self.problem.ops[op].time_ns for op in sequence) >= self.best.time_ns

    def search(self, parameters: Sequence[T], sequence_of: Callable[[T], Sequence[int]], message: str) -> None:
        """Find the largest of the ascending `parameters` whose plan fits; if none fits, the smallest is replayed.

        Larger ones are faster and need more memory, as a rule: so the search is by bisection, with a few tries beyond.
        A plan that is no faster than the best so far is not replayed, nor is that of any smaller parameter.
        """
        low, high = -1, len(parameters)
        while high - low > 1 and not self.expired:
            middle = (low + high) // 2
            sequence = sequence_of(parameters[middle])
            if self.cannot_improve(sequence) or self.fits(sequence, f"{message} {parameters[middle]}"):
                low = middle
            else:
                high = middle
        for parameter in parameters[high + 1 : high + 1 + TRIED_BEYOND]:
            if not self.expired and not self.cannot_improve(sequence := sequence_of(parameter)):
                self.fits(sequence, f"{message} {parameter}")


class NotApplicableError(RematError):
    """Raised in `try_plans` for a problem that the method does not treat. The message is the reason."""


class TrialMethod(ABC):
    """Base of the methods that try plans one after another, and answer with the fastest one within the budget.

    A subclass is a frozen dataclass, whose fields are the options of the method. See `registry.Solver`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    requires: ClassVar[tuple[Requirement, ...]] = ("backward pass",)
    ranges: ClassVar[Ranges] = {}  # of the options that are numbers; see `check_options`

    def __post_init__(self) -> None:
        check_options(self, **self.ranges)

    @abstractmethod
    def try_plans(self, trials: Trials) -> None:
        """Replay plans until the time is up or nothing is left to try; `trials` keeps the best of them."""

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest of the plans tried whose replayed peak is within the budget. See `registry.Solver`."""
        if missing := missing_requirement(problem, self.name, *self.requires):
            return missing
        trials = Trials(problem, budget_bytes, limits, on_progress)
        try:
            with trials:
                self.try_plans(trials)
        except NotApplicableError as error:
            return Outcome(Status.NOT_APPLICABLE, reason=str(error))
        return trials.outcome()
