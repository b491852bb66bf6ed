"""With a link: what runs again and what moves, chosen together, with a bound; what `auto` does where there is one.

    moving_program.py    a program over few moments that no plan can beat, in a process of its own
    moving_expansion.py  its points, as choices for the search
    moving_search.py     local search, each plan exact in every event

The search anneals in rounds, each twice as long as the one before and from the best plan so far; a round that finds
nothing is followed by one from another start, then by a hotter one. A better point of the program is another start: it
is annealed for a short round, and the search goes on there if that beats the best. When a program is solved, the next
has more moments, and only points better than the best plan count there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from typing import Any

from remat_solvers.bounds import time_bound_ns
from remat_solvers.optimal.offload.annealing import MovingSearch, Trip, choice_of
from remat_solvers.optimal.offload.decoding import expanded
from remat_solvers.optimal.offload.program import MovingProgram
from remat_solvers.optimal.program.decoding import bytes_at_first_computations
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import run_interruptibly
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.highs import MIN_GAP, new_highs
from remat_solvers.toolkit.programs.highs_process import MipProcess, MipReport, run_highs

__all__ = ["first_moments", "solve_moving"]

MOMENTS = 5  # of the first program
SLICE_S = 0.2  # of search, before the program is asked
SLICE_MOVES = 5_000  # of the same, where work is limited
FIRST_ROUND = 20_000  # moves, at most; and per op
FIRST_ROUND_PER_OP = 500
LONGEST_ROUND = 640_000
HOT, COLD = 3e-4, 6e-6  # of the step's time: temperatures at the begin and the end of a round
HOTTER = 2.0  # times, after rounds that found nothing
HOTTEST = 2e-3
ASIDE_HOT = 1e-3  # from other starts
HERE_COLUMNS = 1_000  # smaller programs are solved in this process
HERE_S = 2.0  # at most
FOREVER = float("inf")
PATIENCE = 5_000  # moves per op that find nothing, after which the search is through


def first_moments(problem: Problem, count: int) -> list[int]:
    """The op of most memory in each of some `count` slices of equal time, forward and backward apart; and the last.

    Every op, where there are no more.
    """
    if count >= len(problem.ops):
        return list(range(len(problem.ops)))
    profile = bytes_at_first_computations(problem, store_all(problem))[0]
    ends = list(accumulate(op.time_ns for op in problem.ops))
    turn, total = len(problem.forward_ops), len(problem.ops)
    places = {0, turn, total}
    for first, last, slices in ((0, turn, count // 2), (turn, total, count - count // 2)):
        if first < last:
            begin = ends[first - 1] if first else 0
            marks = [begin + (ends[last - 1] - begin) * k / max(1, slices) for k in range(1, slices)]
            places.update(next(i for i in range(first, last) if ends[i] >= mark) for mark in marks)
    highest = (max(range(a, b), key=lambda op: int(profile[op])) for a, b in pairwise(sorted(places)))
    return sorted({*highest, total - 1})


def solve_moving(
    problem: Problem,
    budget_bytes: int,
    *,
    watch: Stopwatch,
    seed: int,
    offer: Callable[[Plan, str], object],
    prove: Callable[[int, str], object],
    starts: Iterable[Plan] = (),
    within_ns: int = 0,
    work: int | None = None,
) -> int | None:
    """Offer better and better plans, and prove bounds on the time of every plan whose first runs keep the given order.

    `starts` may exceed the budget. It ends when plan and bound are within `within_ns`, at the limit, or when nothing is
    left to try; returns the bound, None where no such plan fits. On Ctrl-C, what was offered is all there is. `work`
    counts slices of search, the same on every machine; then there is no program beside it, and no bound but the time
    of all ops.
    """
    at_work = _Work(problem, budget_bytes, watch, seed, offer, prove, within_ns, by_work=work is not None)
    try:
        for plan in (*starts, store_all(problem)):
            at_work.start(plan)
        if work is None:
            at_work.next_program()
        while not at_work.ended and at_work.slices != work:
            at_work.anneal()
            at_work.listen()
    finally:
        at_work.close()
    return None if at_work.infeasible else at_work.bound_ns


class _Work:
    """Search and program on one problem."""

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        watch: Stopwatch,
        seed: int,
        offer: Callable[[Plan, str], object],
        prove: Callable[[int, str], object],
        within_ns: int,
        *,
        by_work: bool,
    ) -> None:
        self.problem, self.budget_bytes, self.watch = problem, budget_bytes, watch
        self.offer, self.prove, self.within_ns = offer, prove, within_ns
        self.bound_ns = time_bound_ns(problem)
        self.by_work = by_work
        self.slices = 0  # of search
        self.once_ns = max(1, self.bound_ns)  # what temperatures are parts of
        self.infeasible = False
        self.best_ns: int | None = None
        self.main, self.side = MovingSearch(problem, budget_bytes, seed), MovingSearch(problem, budget_bytes, seed + 1)
        self.first_round = min(FIRST_ROUND, FIRST_ROUND_PER_OP * len(problem.ops))
        self.round = self.left = self.first_round  # moves of this round, and those left of it
        self.hot = HOT
        self.starts: list[tuple[list[int], list[Trip]]] = []
        self.aside = False  # a round of the side's, from one of the starts
        self.gained = False  # in this round
        self.fruitless = 0  # rounds in a row that found nothing
        self.idle = 0  # moves of these
        self.at: list[int] = []
        self.cutoff_ns: int | None = None
        self.program: MovingProgram | None = None
        self.solving: MipProcess | _Here | None = None
        self.cost = FOREVER  # of the last point of the program

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do, or no time."""
        near = self.best_ns is not None and self.best_ns - self.bound_ns <= self.within_ns
        return near or self.infeasible or self.watch.expired or (self.solving is None and not self.searching)

    @property
    def searching(self) -> bool:
        """Whether the search may find something yet."""
        return self.main.best is not None and self.idle < PATIENCE * len(self.problem.ops)

    def close(self) -> None:
        """End the program's process."""
        if self.solving is not None:
            self.solving.close()
            self.solving = None

    # The search

    def start(self, plan: Plan) -> None:
        """A plan to start from."""
        line = simulate(self.problem, plan)
        if line.peak_bytes <= self.budget_bytes and (self.best_ns is None or line.time_ns < self.best_ns):
            self.best_ns = line.time_ns
            self.offer(plan, "start")
        self._take(*choice_of(self.problem, plan), moves=0)

    def anneal(self) -> None:
        """A slice of search, or a wait for the program."""
        if not self.searching:
            if self.solving is not None:
                self.solving.wait(SLICE_S)
            return
        self.slices += 1
        search = self.side if self.aside else self.main
        hot, cold = (self.once_ns * t for t in (ASIDE_HOT if self.aside else self.hot, COLD))
        now = hot * (cold / hot) ** (1 - self.left / self.round)
        moves, seconds = (min(SLICE_MOVES, self.left), FOREVER) if self.by_work else (self.left, self._seconds(SLICE_S))
        self.left -= search.anneal(moves, now, cold, seconds)
        self._found(search, "search")
        if self.left <= 0:
            self._next_round()

    def _next_round(self) -> None:
        """Twice as long; after one that found nothing hotter, with another start in between."""
        self.fruitless, self.idle = (0, 0) if self.gained else (self.fruitless + 1, self.idle + self.round)
        self.hot = min(HOTTEST, HOT * HOTTER ** (self.fruitless // 2))
        other = (
            not self.aside and not self.gained and self.side.offer(*self.starts[self.fruitless // 2 % len(self.starts)])
        )
        if self.aside:
            self._compare()
        self._new_round(self.round if other else 2 * self.round)
        self.aside = other

    def _new_round(self, moves: int) -> None:
        self.round = self.left = min(moves, LONGEST_ROUND)
        self.gained = self.aside = False
        self.main.restart()

    def _take(self, sequence: list[int], trips: list[Trip], moves: int) -> None:
        """Another start, which so many moves may make better first."""
        self.aside = False
        if self.side.offer(sequence, trips):
            self.starts.append((sequence, trips))
            self.side.run(moves, HOT * self.once_ns, COLD * self.once_ns, self._seconds(FOREVER))
            self._found(self.side, "moments")
            self._compare()

    def _compare(self) -> None:
        """Whether the side's choice is where the search goes on."""
        side, main = self.side.best, self.main.best
        if side is not None and (main is None or side < main) and self.main.offer(*self.side.choice()):
            self.fruitless = self.idle = 0
            self._new_round(self.first_round)

    def _found(self, search: MovingSearch, note: str) -> None:
        if search.best is not None and (self.best_ns is None or search.best[0] < self.best_ns):
            plan = search.plan()
            assert plan is not None
            self.best_ns = search.best[0]
            self.gained = True
            self.offer(plan, note)

    def _seconds(self, most: float) -> float:
        return most if self.watch.remaining is None else min(most, self.watch.remaining)

    # The program

    def listen(self) -> None:
        """What the program has found meanwhile."""
        if self.solving is None or self.program is None:
            return
        ended = self.solving.wait(0)
        known = self.solving.read()
        if known.status == "kInfeasible":
            cutoff_ns = self.cutoff_ns
            self._raise(None if cutoff_ns is None else self.program.bound_ns(cutoff_ns / self.program.ns))
        elif abs(known.bound) < FOREVER:
            self._raise(self.program.bound_ns(known.bound))
        if known.values is not None and self.program.cost(known.values) < self.cost:
            self.cost = self.program.cost(known.values)
            self._take(*expanded(self.program, known.values), moves=self.first_round)
        if ended:
            self.close()
            if not self.infeasible and known.status in ("kOptimal", "kInfeasible"):
                self.next_program()

    def _raise(self, bound_ns: int | None) -> None:
        """A better bound; None: there is no plan."""
        if bound_ns is None:
            self.infeasible = True
        elif bound_ns > self.bound_ns:
            self.bound_ns = bound_ns if self.best_ns is None else min(bound_ns, self.best_ns)
            self.prove(self.bound_ns, f"{len(self.at)} moments")

    def next_program(self) -> None:
        """Over twice as many moments as the one before, where there are more; points must be better than the best."""
        if self.watch.expired:  # on thousands of ops it takes seconds to write one down
            return
        count, before = MOMENTS, self.at
        while len(self.at) <= len(before) < len(self.problem.ops):
            self.at = first_moments(self.problem, count)
            count *= 2
        if self.at == before:
            return
        self.program = MovingProgram(self.problem, self.budget_bytes, self.at)
        self.cutoff_ns = None if self.best_ns is None else self.best_ns - self.within_ns // 2
        self.cost = FOREVER
        highs = new_highs()
        highs.passModel(self.program.model(self.cutoff_ns))
        gap = max(MIN_GAP, self.within_ns / 2 / self.program.ns)
        small = highs.getNumCol() <= HERE_COLUMNS
        self.solving = (_Here if small else MipProcess)(highs, self._seconds(FOREVER), gap)


class _Here:
    """A small program, solved at once, with the ways of `MipProcess`: most take less time than to start a process."""

    def __init__(self, model: Any, seconds: float, gap: float) -> None:
        model.setOptionValue("time_limit", min(seconds, HERE_S))
        model.HandleUserInterrupt = True
        self._known, interrupted = run_interruptibly(lambda: run_highs(model, gap), model.cancelSolve)
        if interrupted:
            raise KeyboardInterrupt

    def wait(self, seconds: float | None) -> bool:
        """It has come to its end."""
        return True

    def read(self) -> MipReport:
        """What it found."""
        return self._known

    def close(self) -> None:
        """Nothing is left."""
