"""What runs again and what moves, chosen together: plans for the choice of a program, made better by small steps.

The program over a few moments (fluid.py) says which ops run again and which values are away. Where that choice, were
copies instant, would be above the budget between two moments, the op of the highest excess becomes a moment too, and
the program is solved again. `Traffic` makes the plan of the choice, exact in every event, and the replay says its time.
What does not fit even so is mended: the absences around the op that does not fit leave too, those of most free time
first; where there are none, the search starts from the problem's order with nothing away. In case the program had too
little time, a plan that recomputes only, by Belady's rule, is a second start, and the faster one goes on. Both are
tried before any program, too: so there is a plan at once, and a search where no program found a point. (Where neither
fits, there is the plan of moDNN's rules: absences leave out results of the forward.) The choice changes at random, and
what is faster stays, of what is as fast what moves fewer bytes:

- an absence enters the choice, leaves it, or takes another's place
- a value is made again before a use, instead of being kept or moved until then; where it is made from what is gone,
  that is kept or, every other time, made again as well
- something is not made again
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from remat_solvers.errors import PlanError
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.belady import Belady
from remat_solvers.recompute.checkmate.offload_program import choose, moments
from remat_solvers.recompute.checkmate.solver import SwapTime
from remat_solvers.result import Limits, Stopped
from remat_solvers.simulate import simulate
from remat_solvers.swap.modnn import ModNN
from remat_solvers.toolkit.programs.pulp_backend import Backend
from remat_solvers.toolkit.sequences.pruning import repeat_positions, useful_positions
from remat_solvers.toolkit.transfers.intervals import Absence, absences
from remat_solvers.toolkit.transfers.scheduler import Overflow, Traffic

__all__ = ["Joint", "jointly"]

EVERY_OP = 16  # problems of at most so many ops have a moment per op
MOMENTS = 5  # of larger ones, at first
ADDED = 3  # moments per round, where the budget is exceeded
ROUNDS = 4  # programs
ALONE_SHARE = 0.15  # of the time, for a plan that recomputes only
PROGRAM_SHARE = 0.65  # of the time that is left, for one program

QUICK = "recompute and swap, without a program"
SMALL_PART = 2_000  # values below this part of the budget are left where they are
TWICE = 0.3  # of the changes are two at once
DEPTH = 3  # of ops that are made again for another one


def jointly(
    problem: Problem,
    budget_bytes: int,
    *,
    backend: Backend,
    swap_time: SwapTime,
    tries: int,
    watch: Stopwatch,
    seed: int,
    offer: Callable[[Plan, str], object],
) -> None:
    """Solve the programs, and offer the best plan of each, after up to `tries` random changes."""
    room_bytes = budget_bytes - problem.constant_bytes - problem.reserve_bytes
    given = Traffic(problem, range(len(problem.ops)))
    every_op = len(problem.ops) <= EVERY_OP
    at = list(range(len(problem.ops))) if every_op else moments(problem, given.profile.tolist(), MOMENTS)
    alone = _recomputing_alone(problem, budget_bytes, watch) if tries else None
    quick = Joint(problem, budget_bytes, watch, seed)
    if tries:
        quick.start(range(len(problem.ops)), ())
        if alone is not None:
            quick.start(alone, ())
        quick.tell(offer, QUICK)
        if quick.best is None:
            _moving_alone(problem, budget_bytes, watch, offer)
    for _ in range(ROUNDS):
        if watch.expired:
            return
        seconds = None if watch.remaining is None else PROGRAM_SHARE * watch.remaining
        choice = choose(problem, room_bytes, at, backend, swap_time=swap_time, seconds=seconds)
        if choice is None:
            try:
                quick.improve(tries)
            finally:
                quick.tell(offer, QUICK)
            return
        search = Joint(problem, budget_bytes, watch, seed)
        form = f"recompute and swap, {len(at)} moments"
        try:
            if search.start(choice.sequence, choice.away) is None:
                search.start(range(len(problem.ops)), ())
            if alone is not None:
                search.start(alone, ())
            search.tell(offer, form)
            if choice.interrupted:
                raise KeyboardInterrupt
            search.improve(tries)
        finally:
            search.tell(offer, form)
        more = _exceeded(problem, budget_bytes, choice.sequence, choice.away, at)
        if not more:
            return
        at = sorted({*at, *more})


def _recomputing_alone(problem: Problem, budget_bytes: int, watch: Stopwatch) -> list[int] | None:
    """The ops of a plan of Belady's rule, where it finds one."""
    seconds = None if watch.remaining is None else ALONE_SHARE * watch.remaining
    found = Belady().solve(problem, budget_bytes, limits=Limits(seconds), on_progress=None, seed=0)
    if found.stopped is Stopped.INTERRUPT:
        raise KeyboardInterrupt
    return None if found.plan is None else found.plan.sequence


def _moving_alone(problem: Problem, budget_bytes: int, watch: Stopwatch, offer: Callable[[Plan, str], object]) -> None:
    """Offer the plan of moDNN's rules, which also move results of the forward, before they are the caller's."""
    found = ModNN().solve(problem, budget_bytes, limits=Limits(watch.remaining), on_progress=None, seed=0)
    if found.plan is not None:
        offer(found.plan, "moves alone")
    if found.stopped is Stopped.INTERRUPT:
        raise KeyboardInterrupt


def _exceeded(
    problem: Problem, budget_bytes: int, sequence: Sequence[int], away: Iterable[Absence], at: Sequence[int]
) -> list[int]:
    """The ops between moments at which the budget is exceeded most, were copies instant."""
    traffic = Traffic(problem, sequence)
    profile = traffic.profile.copy()
    for absence in away:
        profile[absence.last + 1 : absence.back] -= problem.values[absence.value].bytes
    worst: dict[int, tuple[int, int]] = {}  # per stage: excess, op
    first = 0  # what ran for the first time last
    for position, op in enumerate(traffic.sequence):
        first = max(first, op)
        excess = int(profile[position]) - budget_bytes
        stage = bisect_left(at, first)
        if excess > 0 and first not in at and (stage not in worst or excess > worst[stage][0]):
            worst[stage] = excess, first
    return [op for _, op in sorted(worst.values(), reverse=True)[:ADDED]]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A sequence with what is away."""

    traffic: Traffic
    all: tuple[Absence, ...]  # of the values that are worth it
    away: frozenset[Absence]


class Joint:
    """The search for one problem and one budget, and its best plan."""

    def __init__(self, problem: Problem, budget_bytes: int, watch: Stopwatch, seed: int) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = watch
        self.random = random.Random(seed)
        self.best: tuple[tuple[int, int], Plan] | None = None  # (time, bytes moved)
        self.least_ns = sum(op.time_ns for op in problem.ops)
        self._current: _Choice | None = None  # whose plan is the best

    def start(self, sequence: Sequence[int], away: Iterable[Absence]) -> Plan | None:
        """The plan of a choice, mended where it does not fit; None: that cannot be done, or not in time."""
        choice = self._choice(sequence, away)
        while True:
            answer = choice.traffic.plan(choice.away, self.budget_bytes)
            if not isinstance(answer, Overflow):
                self._consider(answer, choice)
                return answer
            more = self._relief(choice, answer)
            if not more or self.watch.expired:
                return None
            choice = _Choice(choice.traffic, choice.all, choice.away | more)

    def tell(self, offer: Callable[[Plan, str], object], form: str) -> None:
        """Offer the best plan, where there is one."""
        if self.best is not None:
            offer(self.best[1], form)

    def improve(self, tries: int) -> None:
        """Up to so many random changes of the best choice."""
        for _ in range(tries):
            if self._current is None or self.best is None or self.best[0][0] <= self.least_ns or self.watch.expired:
                return
            choice: _Choice | None = self._current
            for _ in range(2 if self.random.random() < TWICE else 1):
                choice = choice and self._changed(choice)
            if choice is not None:
                answer = choice.traffic.plan(choice.away, self.budget_bytes)
                if not isinstance(answer, Overflow):
                    self._consider(answer, choice)

    def _choice(self, sequence: Sequence[int], away: Iterable[Absence]) -> _Choice:
        traffic = Traffic(self.problem, sequence)
        worth = tuple(
            a
            for a in absences(self.problem, traffic.sequence)
            if self.problem.values[a.value].bytes * SMALL_PART >= self.budget_bytes
        )
        return _Choice(traffic, worth, frozenset(away))

    def _consider(self, plan: Plan, choice: _Choice) -> None:
        line = simulate(self.problem, plan)
        key = line.time_ns, line.host_bytes
        if self.best is None or key <= self.best[0]:
            self.best = key, plan
            self._current = choice

    def _relief(self, choice: _Choice, overflow: Overflow) -> set[Absence]:
        at, missing = overflow.position, overflow.excess_bytes
        around = [a for a in choice.all if a.last < at < a.back and a not in choice.away]
        around.sort(key=lambda a: (-self._free_ns(choice.traffic, a), a.last, a.value))
        more: set[Absence] = set()
        for absence in around:
            if missing <= 0:
                break
            more.add(absence)
            missing -= self.problem.values[absence.value].bytes
        return more

    def _free_ns(self, traffic: Traffic, absence: Absence) -> int:
        gap = traffic.clock.starts[absence.back] - traffic.clock.ends[absence.last]
        return gap - traffic.out_ns[absence.value] - traffic.back_ns[absence.value]

    def _changed(self, choice: _Choice) -> _Choice | None:
        kind = self.random.random()
        if kind < 0.5:
            away = set(choice.away)
            if away and kind < 0.35:
                away.discard(self.random.choice(sorted(away, key=_order)))
            if choice.all and kind > 0.15:
                away.add(self.random.choice(choice.all))
            return _Choice(choice.traffic, choice.all, frozenset(away))
        sequence = choice.traffic.sequence
        if kind < 0.75:
            return self._made_again(choice) if choice.all else None
        repeats = repeat_positions(sequence)
        if not repeats:
            return None
        gone = self.random.choice(repeats)
        return self._with_sequence(choice, [(p, op) for p, op in enumerate(sequence) if p != gone])

    def _made_again(self, choice: _Choice) -> _Choice | None:
        """Before the end of an absence its value is made again."""
        among = sorted(choice.away, key=_order) if choice.away and self.random.random() < 0.5 else choice.all
        absence = self.random.choice(among)
        sequence = choice.traffic.sequence
        again: list[int] = []
        if not self._chain(absence.value, absence.back, choice, again, DEPTH):
            return None
        added: list[tuple[int | None, int]] = [(None, op) for op in again]
        old: list[tuple[int | None, int]] = list(enumerate(sequence))
        without = _Choice(choice.traffic, choice.all, choice.away - {absence})
        return self._with_sequence(without, [*old[: absence.back], *added, *old[absence.back :]])

    def _chain(self, value: int, before: int, choice: _Choice, again: list[int], depth: int) -> bool:
        """Add the ops that make `value` before a position; whether that can be done."""
        producer = self.problem.producer[value]
        if producer < 0 or not self.problem.ops[producer].recomputable:
            return False
        if producer in again:
            return True
        for read in self.problem.ops[producer].inputs:
            gone = depth and self.problem.producer[read] >= 0 and not self._held(read, before, choice)
            if gone and self.random.random() < 0.5:
                self._chain(read, before, choice, again, depth - 1)
        again.append(producer)
        return True

    def _held(self, value: int, position: int, choice: _Choice) -> bool:
        """Whether an instance of the value is used both before and after the position, and not away there."""
        ops, sequence = self.problem.ops, choice.traffic.sequence
        for op in sequence[position:]:
            if value in ops[op].outputs:
                return False
            if value in ops[op].inputs:
                return not any(a.value == value and a.last < position < a.back for a in choice.away)
        return False

    def _with_sequence(self, choice: _Choice, marked: Sequence[tuple[int | None, int]]) -> _Choice | None:
        """The choice for a changed sequence, whose ops come with their old positions; what was away stays away."""
        try:
            marked = [marked[p] for p in useful_positions(self.problem, [op for _, op in marked])]
            new = self._choice([op for _, op in marked], ())
        except PlanError:
            return None  # what is not made again was needed
        places = [(position, p) for p, (position, _) in enumerate(marked) if position is not None]
        places.append((len(choice.traffic.sequence), len(marked)))
        intervals: dict[int, list[tuple[int, int]]] = {}
        for a in choice.away:
            last, back = (places[bisect_left(places, (at, 0))][1] for at in (a.last, a.back))
            intervals.setdefault(a.value, []).append((last, back))
        away = {a for a in new.all if any(a.last < back and last < a.back for last, back in intervals.get(a.value, ()))}
        return _Choice(new.traffic, new.all, frozenset(away))


def _order(absence: Absence) -> tuple[int, int, int]:
    return absence.last, absence.back, absence.value
