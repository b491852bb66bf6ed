"""The data that goes into a solver and comes out of it: Limits, Progress, Outcome, Result, Status, Certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from remat_solvers.plan import Plan


class _Sentence(StrEnum):
    """A word for programs (`value`) with a sentence for people (`sentence`)."""

    sentence: str

    def __new__(cls, word: str, sentence: str) -> _Sentence:
        member = str.__new__(cls, word)
        member._value_ = word
        member.sentence = sentence
        return member


class Status(_Sentence):
    """The quality of an answer."""

    OPTIMAL = "optimal", "Proven: no plan within the budget is faster, of those that the bound covers."
    FEASIBLE = "feasible", "The plan fits the budget; a faster one may exist."
    INFEASIBLE = "infeasible", "Proven: no plan of this problem fits this budget, in any order."
    NOT_FOUND = "not_found", "This method found no plan within the budget; another may."
    NOT_APPLICABLE = "not_applicable", "This method does not treat such a problem."


class Stopped(_Sentence):
    """The reason why a solver stopped."""

    COMPLETE = "complete", "The method ran to its end."
    TIME = "time", "The time limit was reached."
    INTERRUPT = "interrupt", "The user interrupted."


class Order(_Sentence):
    """The plans for which a bound holds."""

    GIVEN = "given", "Plans whose first computations keep the problem's order."
    FREE = "free", "Plans with first computations in any topological order."

    @property
    def scope(self) -> str:
        """The plans of the bound in a phrase, to stand behind "no plan is faster"."""
        return "among plans in any order" if self is Order.FREE else "among plans that keep the order of the ops"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One case of a certificate: the 0/1 variables it fixes, and the multipliers that prove its bound."""

    fixed: tuple[tuple[str, tuple[int, ...], int], ...] = ()  # ("stay" | "run", indices, 0 | 1): the branch taken
    multipliers: tuple[tuple[str, tuple[int, ...], float], ...] = ()  # (kind of row, its indices, weight >= 0)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Evidence for a bound on all plans without offload, checked by `check_certificate`, which defines every row.

    Some moments of the step (the first computations of the ops `at`, and the end) define a relaxation that every plan
    satisfies. Multipliers of its rows prove a bound by weak duality, in exact arithmetic. Without multipliers the
    checker finds its own.
    """

    problem: str  # fingerprint; the checker takes times, workspaces and reserve from its own problem
    budget_bytes: int
    order: Order  # for which plans the bound holds
    at: tuple[int, ...]  # ops, each later than the one before: by index, or for any order by dependency
    bound_ns: int | None  # no plan within the budget is faster; None: no plan is within the budget
    intervals: tuple[tuple[int, int], ...] = ()  # first and last stage of each run of stages that is counted as one
    leaves: tuple[Leaf, ...] = ()  # cases that together cover everything; none: solve the relaxation


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the time or the work of a solver."""

    seconds: float | None = 60.0  # wall-clock limit; None: until the method ends
    work: int | None = None  # slices of `auto`, the same on every machine (other methods ignore it); None: no limit

    def share(self, part: float) -> Limits:
        """The limits of one step of several: that fraction of the seconds, and the same work."""
        return replace(self, seconds=None if self.seconds is None else part * self.seconds)


@dataclass(frozen=True, slots=True)
class Progress:
    """A report that a solver sends while it works."""

    seconds: float  # since the start
    time_ns: int | None  # of the best plan so far
    peak_bytes: int | None  # of the best plan so far
    bound_ns: int | None  # best proven bound so far; it falls where the best plan changes to another order
    message: str = ""  # for people
    order: Order | None = None  # for which plans the bound holds


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of one method. `remat_solvers.solve` replays it, validates it and completes it to a Result."""

    status: Status
    plan: Plan | None = None
    reason: str = ""  # why there is no plan, or why the method does not apply
    bound_ns: int | None = None  # proven bound on the time of every plan within the budget
    order: Order = Order.GIVEN  # for which plans the bound holds
    smallest_peak_bytes: int | None = None  # smallest peak this method can reach
    peak_bound_bytes: int | None = None  # proven lower bound on the peak of any plan, where the method has one
    stopped: Stopped = Stopped.COMPLETE
    certificate: Certificate | None = None  # evidence for bound_ns, or that no plan fits


@dataclass(frozen=True, slots=True)
class Result:
    """A solver's answer, replayed and validated."""

    plan: Plan | None  # None where no plan was found
    problem: str  # fingerprint of the problem
    budget_bytes: int
    status: Status
    stopped: Stopped
    time_ns: int | None  # of the plan
    peak_bytes: int | None  # of the plan
    bound_ns: int | None  # proven lower bound on the time of every plan within the budget; None: none proven
    order: Order  # for which plans bound_ns holds
    gap: float | None  # (time_ns - bound_ns) / store-all time
    smallest_peak_bytes: int | None  # smallest peak known to be reachable
    peak_bound_bytes: int  # proven lower bound on the peak of any plan
    store_all_time_ns: int  # 100 % of time
    store_all_peak_bytes: int  # 100 % of peak
    seconds: float  # the solver's own time
    solver: str  # registry name
    version: str  # of the solver
    options: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    reason: str = ""  # for people: why there is no plan, or "fits as it is"
    certificate: Certificate | None = None  # evidence that others can check; may prove less than bound_ns
