"""Local search over recomputation and offloading, started from the choice of a program.

The program over a few moments (offload_program.py) chooses which ops are recomputed and which values are offloaded. If
that choice, with instant copies, would be above the budget between two moments, the op of the highest excess becomes a
moment too, and the program is solved again. `schedule_copies` computes the plan of the choice, exact in every event,
and the replay gives its time. A choice that does not fit even so is repaired: further idle intervals around the op that
does not fit are chosen, those of most slack first; if there are none, the search starts from the problem's order with
nothing offloaded. In case the program had too little time, a plan that recomputes only, by Belady's rule, is a second
start, and the search continues from the faster one. Both are also tried before any program, so that a plan exists early
and the search can run even if no program finds a point. (If neither fits, the plan of moDNN's rules is offered: idle
intervals exclude results of the forward.) The choice changes at random; a faster plan is kept, and of equally fast ones
the one that offloads fewer bytes:

- an idle interval enters the choice, leaves it, or takes another's place
- a value is recomputed before a use, instead of being kept or moved until then; where an input of that is not
  resident, it is kept or, every other time, recomputed as well
- a recomputation is left out
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from remat_solvers.errors import PlanError
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.checkmate.offload_program import SwapTime, choose_moments, solve_offload_program
from remat_solvers.registry import create
from remat_solvers.result import Limits, Stopped
from remat_solvers.toolkit.programs.pulp_backend import Backend
from remat_solvers.toolkit.sequences.pruning import repeat_positions, useful_positions
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import relieving_intervals, schedule_copies
from remat_solvers.toolkit.trials import LeastTraffic

EVERY_OP = 16  # problems of at most so many ops have a moment per op
MOMENTS = 5  # of larger ones, at first
ADDED_MOMENTS = 3  # at most, per round: at ops that exceed the budget
ROUNDS = 4  # programs
RECOMPUTING_SHARE = 0.15  # of the time, for a plan that recomputes only
PROGRAM_SHARE = 0.65  # of the remaining time, for one program

WITHOUT_PROGRAM = "recompute and swap, without a program"
SMALL_PART = 2_000  # values below this part of the budget are not offloaded
TWO_CHANGES = 0.3  # of the steps make two changes at once
DEPTH = 3  # of ops that are recomputed for another one

Offer: TypeAlias = Callable[[Plan, str], object]  # takes a plan, and a text on how it was found


def search_offload_plans(
    problem: Problem,
    budget_bytes: int,
    *,
    backend: Backend,
    swap_time: SwapTime,
    tries: int,
    watch: Stopwatch,
    seed: int,
    offer: Offer,
) -> None:
    """Solve the programs, and offer the best plan of each after up to `tries` random changes.

    An interrupt (KeyboardInterrupt) goes to the caller, after the best plan so far has been offered.
    """
    room_bytes = budget_bytes - problem.static_bytes
    given = StepProfile.of(problem, range(len(problem.ops)))
    every_op = len(problem.ops) <= EVERY_OP
    anchors = list(range(len(problem.ops)))
    if not every_op:
        anchors = choose_moments(problem, given.used_bytes.tolist(), MOMENTS)
    recomputing = _recomputing_sequence(problem, budget_bytes, watch) if tries else None
    quick = OffloadLocalSearch(problem, budget_bytes, watch, seed)
    if tries:
        quick.start(range(len(problem.ops)), ())
        if recomputing is not None:
            quick.start(recomputing, ())
        quick.offer_best(offer, WITHOUT_PROGRAM)
        if quick.best is None:
            _offer_modnn(problem, budget_bytes, watch, offer)
    for _ in range(ROUNDS):
        if watch.expired:
            return
        seconds = None if watch.remaining is None else PROGRAM_SHARE * watch.remaining
        choice = solve_offload_program(problem, room_bytes, anchors, backend, swap_time=swap_time, seconds=seconds)
        if choice is None:
            try:
                quick.improve(tries)
            finally:
                quick.offer_best(offer, WITHOUT_PROGRAM)
            return
        search = OffloadLocalSearch(problem, budget_bytes, watch, seed)
        form = f"recompute and swap, {len(anchors)} moments"
        try:
            if search.start(choice.sequence, choice.offloaded) is None:
                search.start(range(len(problem.ops)), ())
            if recomputing is not None:
                search.start(recomputing, ())
            search.offer_best(offer, form)
            if choice.interrupted:
                raise KeyboardInterrupt
            search.improve(tries)
        finally:
            search.offer_best(offer, form)
        added = _crowded_ops(problem, budget_bytes, choice.sequence, choice.offloaded, anchors)
        if not added:
            return
        anchors = sorted({*anchors, *added})


def _recomputing_sequence(problem: Problem, budget_bytes: int, watch: Stopwatch) -> list[int] | None:
    """The ops of a plan of Belady's rule, if it finds one."""
    seconds = None if watch.remaining is None else RECOMPUTING_SHARE * watch.remaining
    outcome = create("belady").solve(problem, budget_bytes, limits=Limits(seconds), on_progress=None, seed=0)
    if outcome.stopped is Stopped.INTERRUPT:
        raise KeyboardInterrupt
    return None if outcome.plan is None else outcome.plan.sequence


def _offer_modnn(problem: Problem, budget_bytes: int, watch: Stopwatch, offer: Offer) -> None:
    """Offer the plan of moDNN's rules, which also offload results of the forward, before the caller owns them."""
    outcome = create("modnn").solve(problem, budget_bytes, limits=Limits(watch.remaining), on_progress=None, seed=0)
    if outcome.plan is not None:
        offer(outcome.plan, "offloading only, by moDNN's rules")
    if outcome.stopped is Stopped.INTERRUPT:
        raise KeyboardInterrupt


def _crowded_ops(
    problem: Problem,
    budget_bytes: int,
    sequence: Sequence[int],
    offloaded: Iterable[IdleInterval],
    anchors: Sequence[int],
) -> list[int]:
    """The ops between moments that would exceed the budget most if copies were instant."""
    profile = StepProfile.of(problem, sequence)
    used_bytes = profile.used_bytes_without(offloaded)
    worst: dict[int, tuple[int, int]] = {}  # per stage: excess, op
    first = 0  # the latest first computation
    for position, op in enumerate(profile.sequence):
        first = max(first, op)
        excess = int(used_bytes[position]) - budget_bytes
        stage = bisect_left(anchors, first)
        if excess > 0 and first not in anchors and (stage not in worst or excess > worst[stage][0]):
            worst[stage] = excess, first
    return [op for _, op in sorted(worst.values(), reverse=True)[:ADDED_MOMENTS]]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sequence, and the idle intervals that are chosen for offloading."""

    profile: StepProfile
    intervals: tuple[IdleInterval, ...]  # all of values that are large enough
    offloaded: frozenset[IdleInterval]


class OffloadLocalSearch(LeastTraffic):
    """The random search for one problem and one budget, from the choices given to `start`."""

    def __init__(self, problem: Problem, budget_bytes: int, watch: Stopwatch, seed: int) -> None:
        super().__init__(problem, budget_bytes, watch, None)
        self.random = random.Random(seed)
        self.work_ns = sum(op.time_ns for op in problem.ops)  # no plan is faster
        self._current: _Candidate | None = None  # the candidate whose plan is the best

    def start(self, sequence: Sequence[int], offloaded: Iterable[IdleInterval]) -> Plan | None:
        """The plan of a choice, repaired if it does not fit; None: that is impossible, or the time is up."""
        candidate = self._candidate(sequence, offloaded)
        while True:
            answer = schedule_copies(candidate.profile, candidate.offloaded, self.budget_bytes)
            if not isinstance(answer, Overflow):
                self._accept(answer, candidate)
                return answer
            relief = relieving_intervals(candidate.profile, candidate.intervals, candidate.offloaded, answer)
            if not relief or self.watch.expired:
                return None
            candidate = _Candidate(candidate.profile, candidate.intervals, candidate.offloaded | set(relief))

    def offer_best(self, offer: Offer, form: str) -> None:
        """Offer the best plan, if there is one."""
        if self.best is not None:
            offer(self.best.plan, form)

    def improve(self, tries: int) -> None:
        """Try up to so many random changes of the best choice."""
        for _ in range(tries):
            if self._current is None or self.best is None or self.best.time_ns <= self.work_ns or self.watch.expired:
                return
            candidate: _Candidate | None = self._current
            for _ in range(2 if self.random.random() < TWO_CHANGES else 1):
                candidate = candidate and self._changed(candidate)
            if candidate is not None:
                answer = schedule_copies(candidate.profile, candidate.offloaded, self.budget_bytes)
                if not isinstance(answer, Overflow):
                    self._accept(answer, candidate)

    def _candidate(self, sequence: Sequence[int], offloaded: Iterable[IdleInterval]) -> _Candidate:
        profile = StepProfile.of(self.problem, sequence)
        large = tuple(
            i
            for i in idle_intervals(self.problem, profile.sequence)
            if self.problem.values[i.value].bytes * SMALL_PART >= self.budget_bytes
        )
        return _Candidate(profile, large, frozenset(offloaded))

    def _accept(self, plan: Plan, candidate: _Candidate) -> None:
        """Replay the plan. If it becomes the best, the search continues from its candidate."""
        before = self.best
        self.replay(plan, "")
        if self.best is not before:
            self._current = candidate

    def _changed(self, candidate: _Candidate) -> _Candidate | None:
        draw = self.random.random()
        if draw < 0.5:
            offloaded = set(candidate.offloaded)
            if offloaded and draw < 0.35:
                offloaded.discard(self.random.choice(sorted(offloaded, key=_order)))
            if candidate.intervals and draw > 0.15:
                offloaded.add(self.random.choice(candidate.intervals))
            return _Candidate(candidate.profile, candidate.intervals, frozenset(offloaded))
        sequence = candidate.profile.sequence
        if draw < 0.75:
            return self._with_recomputation(candidate) if candidate.intervals else None
        repeats = repeat_positions(sequence)
        if not repeats:
            return None
        dropped = self.random.choice(repeats)
        return self._with_sequence(candidate, [(p, op) for p, op in enumerate(sequence) if p != dropped])

    def _with_recomputation(self, candidate: _Candidate) -> _Candidate | None:
        """A candidate that recomputes a value before the use that ends one of its idle intervals; None: it cannot."""
        from_offloaded = candidate.offloaded and self.random.random() < 0.5
        eligible = sorted(candidate.offloaded, key=_order) if from_offloaded else candidate.intervals
        interval = self.random.choice(eligible)
        sequence = candidate.profile.sequence
        recomputed: list[int] = []
        if not self._add_lineage(interval.value, interval.back, candidate, recomputed, DEPTH):
            return None
        added: list[tuple[int | None, int]] = [(None, op) for op in recomputed]
        old: list[tuple[int | None, int]] = list(enumerate(sequence))
        without = _Candidate(candidate.profile, candidate.intervals, candidate.offloaded - {interval})
        return self._with_sequence(without, [*old[: interval.back], *added, *old[interval.back :]])

    def _add_lineage(self, value: int, position: int, candidate: _Candidate, recomputed: list[int], depth: int) -> bool:
        """Add to `recomputed` the ops that compute `value` before a position; False if it cannot be computed."""
        producer = self.problem.producer[value]
        if producer < 0 or not self.problem.ops[producer].recomputable:
            return False
        if producer in recomputed:
            return True
        for read in self.problem.ops[producer].inputs:
            absent = depth and self.problem.producer[read] >= 0 and not self._resident(read, position, candidate)
            if absent and self.random.random() < 0.5:
                self._add_lineage(read, position, candidate, recomputed, depth - 1)
        recomputed.append(producer)
        return True

    def _resident(self, value: int, position: int, candidate: _Candidate) -> bool:
        """Whether an instance of the value is used both before and after the position, and not offloaded there."""
        ops, sequence = self.problem.ops, candidate.profile.sequence
        for op in sequence[position:]:
            if value in ops[op].outputs:
                return False
            if value in ops[op].inputs:
                return not any(i.value == value and i.last < position < i.back for i in candidate.offloaded)
        return False

    def _with_sequence(self, candidate: _Candidate, marked: Sequence[tuple[int | None, int]]) -> _Candidate | None:
        """The choice for a changed sequence, given as (old position or None, op); offloaded values stay offloaded."""
        try:
            marked = [marked[p] for p in useful_positions(self.problem, [op for _, op in marked])]
            new = self._candidate([op for _, op in marked], ())
        except PlanError:
            return None  # the recomputation that was left out was needed
        positions = [(old, p) for p, (old, _) in enumerate(marked) if old is not None]
        positions.append((len(candidate.profile.sequence), len(marked)))
        ranges: dict[int, list[tuple[int, int]]] = {}  # value -> its offloaded intervals in the new positions
        for i in candidate.offloaded:
            last, back = (positions[bisect_left(positions, (old, 0))][1] for old in (i.last, i.back))
            ranges.setdefault(i.value, []).append((last, back))
        offloaded = {
            i for i in new.intervals if any(i.last < back and last < i.back for last, back in ranges.get(i.value, ()))
        }
        return _Candidate(new.profile, new.intervals, frozenset(offloaded))


def _order(interval: IdleInterval) -> tuple[int, int, int]:
    return interval.last, interval.back, interval.value
