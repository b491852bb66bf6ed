"""Joint recomputation and offloading, with a lower bound: runs the program beside the search.

    program.py    an integer program over few moments, a relaxation, in a process of its own
    decoding.py   turns points of the program into choices for the search
    annealing.py  local search; each plan is exact in every event

The search anneals in rounds, each twice as long as the one before and from the best plan so far. A round without a
better plan is followed by one from another start, then by one at a higher temperature. A better point of the program
is another start: it is annealed for a short round, and the search continues from it if the result beats the best plan.
When a program is solved, the next has more moments, and only points better than the best plan count there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from typing import Any

from remat_solvers.bounds import time_bound_ns
from remat_solvers.optimal.offload.annealing import OffloadAnnealer, SwapChoice, choice_of
from remat_solvers.optimal.offload.decoding import decode
from remat_solvers.optimal.offload.program import JointProgram
from remat_solvers.optimal.program.decoding import bytes_at_first_computations
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import run_interruptibly
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.highs import MIN_GAP, new_highs
from remat_solvers.toolkit.programs.highs_process import MipProcess, MipReport, run_highs

FIRST_ANCHORS = 5  # of the first program
SLICE_S = 0.2  # of search, before the program is polled
SLICE_MOVES = 5_000  # of a slice if work is limited
FIRST_ROUND = 20_000  # moves, at most; and per op
FIRST_ROUND_PER_OP = 500
LONGEST_ROUND = 640_000
HOT, COLD = 3e-4, 6e-6  # of the step's time: temperatures at the begin and the end of a round
HOTTER = 2.0  # factor of the temperature after rounds that found nothing
HOTTEST = 2e-3
SIDE_HOT = 1e-3  # temperature at the begin of a round from another start
INLINE_COLUMNS = 1_000  # smaller programs are solved in this process
INLINE_S = 2.0  # at most
FOREVER = float("inf")
PATIENCE = 5_000  # moves per op that find nothing, after which the search ends


def first_anchors(problem: Problem, count: int) -> list[int]:
    """The last op and the op of most memory in each of about `count` slices of equal time of forward and backward.

    These are all ops if there are no more than `count`.
    """
    if count >= len(problem.ops):
        return list(range(len(problem.ops)))
    profile = bytes_at_first_computations(problem, store_all(problem))[0]
    ends_ns = list(accumulate(op.time_ns for op in problem.ops))
    boundary, total = len(problem.forward_ops), len(problem.ops)
    cuts = {0, boundary, total}
    for first, last, slices in ((0, boundary, count // 2), (boundary, total, count - count // 2)):
        if first < last:
            begin_ns = ends_ns[first - 1] if first else 0
            marks_ns = [begin_ns + (ends_ns[last - 1] - begin_ns) * k / max(1, slices) for k in range(1, slices)]
            cuts.update(next(i for i in range(first, last) if ends_ns[i] >= mark_ns) for mark_ns in marks_ns)
    highest = (max(range(a, b), key=lambda op: int(profile[op])) for a, b in pairwise(sorted(cuts)))
    return sorted({*highest, total - 1})


def solve_jointly(
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
    """Offer better and better plans, and prove bounds on the time of all plans that keep the given order.

    `starts` may exceed the budget. The search ends when plan and bound are within `within_ns`, at the limit, or when
    nothing is left to try. Returns the bound; None: no such plan fits. Ctrl-C raises KeyboardInterrupt after the plans
    found so far were offered. `work` limits slices of search, which are the same on every machine; then no program
    runs, and the bound is the time of all ops.
    """
    search = _OffloadSearch(problem, budget_bytes, watch, seed, offer, prove, within_ns, by_work=work is not None)
    try:
        for plan in (*starts, store_all(problem)):
            search.start(plan)
        if work is None:
            search.next_program()
        while not search.ended and search.slices != work:
            search.anneal()
            search.poll_program()
    finally:
        search.close()
    return None if search.infeasible else search.bound_ns


class _OffloadSearch:
    """The search and the program on one problem; `offer` and `prove` take their plans and bounds."""

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
        self.every_op_once_ns = max(1, self.bound_ns)  # temperatures are parts of it
        self.infeasible = False
        self.best_ns: int | None = None
        self.main_search = OffloadAnnealer(problem, budget_bytes, seed)
        self.side_search = OffloadAnnealer(problem, budget_bytes, seed + 1)
        self.first_round = min(FIRST_ROUND, FIRST_ROUND_PER_OP * len(problem.ops))
        self.round_moves = self.moves_left = self.first_round  # moves of this round, and those left in it
        self.hot = HOT
        self.starts: list[tuple[list[int], list[SwapChoice]]] = []
        self.on_side = False  # whether this round is one of the side search, from one of the starts
        self.gained = False  # a better plan in this round
        self.fruitless_rounds = 0  # rounds in a row without a better plan
        self.idle_moves = 0  # in these rounds
        self.anchors: list[int] = []
        self.cutoff_ns: int | None = None
        self.program: JointProgram | None = None
        self.mip: MipProcess | InlineMip | None = None
        self.point_cost = FOREVER  # of the last point of the program

    @property
    def ended(self) -> bool:
        """Whether nothing is left to try, or the time is up."""
        closed = self.best_ns is not None and self.best_ns - self.bound_ns <= self.within_ns
        return closed or self.infeasible or self.watch.expired or (self.mip is None and not self.searching)

    @property
    def searching(self) -> bool:
        """Whether the search may find something yet."""
        return self.main_search.best is not None and self.idle_moves < PATIENCE * len(self.problem.ops)

    def close(self) -> None:
        """End the program's process."""
        if self.mip is not None:
            self.mip.close()
            self.mip = None

    # The search

    def start(self, plan: Plan) -> None:
        """Add a plan to start from, and offer it if it fits."""
        timeline = simulate(self.problem, plan)
        if timeline.peak_bytes <= self.budget_bytes and (self.best_ns is None or timeline.time_ns < self.best_ns):
            self.best_ns = timeline.time_ns
            self.offer(plan, "start")
        self._take(*choice_of(self.problem, plan), moves=0)

    def anneal(self) -> None:
        """Run a slice of search, or wait for the program."""
        if not self.searching:
            if self.mip is not None:
                self.mip.wait(SLICE_S)
            return
        self.slices += 1
        search = self.side_search if self.on_side else self.main_search
        hot, cold = (self.every_op_once_ns * t for t in (SIDE_HOT if self.on_side else self.hot, COLD))
        temperature_ns = hot * (cold / hot) ** (1 - self.moves_left / self.round_moves)
        moves = min(SLICE_MOVES, self.moves_left) if self.by_work else self.moves_left
        seconds = FOREVER if self.by_work else self.watch.at_most(SLICE_S)
        self.moves_left -= search.anneal(moves, temperature_ns, cold, seconds)
        self._offer_best(search, "search")
        if self.moves_left <= 0:
            self._next_round()

    def _next_round(self) -> None:
        """Double the moves; after a round without a better plan, try another start, then a higher temperature."""
        if self.gained:
            self.fruitless_rounds = self.idle_moves = 0
        else:
            self.fruitless_rounds += 1
            self.idle_moves += self.round_moves
        pairs = self.fruitless_rounds // 2
        self.hot = min(HOTTEST, HOT * HOTTER**pairs)
        to_side = not self.on_side and not self.gained
        to_side = to_side and self.side_search.offer(*self.starts[pairs % len(self.starts)])
        if self.on_side:
            self._compare()
        self._new_round(self.round_moves if to_side else 2 * self.round_moves)
        self.on_side = to_side

    def _new_round(self, moves: int) -> None:
        self.round_moves = self.moves_left = min(moves, LONGEST_ROUND)
        self.gained = self.on_side = False
        self.main_search.restart()

    def _take(self, sequence: list[int], swaps: list[SwapChoice], moves: int) -> None:
        """Add a choice as another start, improved by `moves` moves of the side search."""
        self.on_side = False
        if self.side_search.offer(sequence, swaps):
            self.starts.append((sequence, swaps))
            once_ns = self.every_op_once_ns
            self.side_search.run(moves, HOT * once_ns, COLD * once_ns, self.watch.at_most(FOREVER))
            self._offer_best(self.side_search, "moments")
            self._compare()

    def _compare(self) -> None:
        """Continue from the choice of the side search if it is better."""
        side, main = self.side_search.best, self.main_search.best
        if side is not None and (main is None or side < main) and self.main_search.offer(*self.side_search.choice()):
            self.fruitless_rounds = self.idle_moves = 0
            self._new_round(self.first_round)

    def _offer_best(self, search: OffloadAnnealer, note: str) -> None:
        if search.best is not None and (self.best_ns is None or search.best[0] < self.best_ns):
            plan = search.plan()
            assert plan is not None
            self.best_ns = search.best[0]
            self.gained = True
            self.offer(plan, note)

    def poll_program(self) -> None:
        """Apply the results that the program has found since, and start the next program once it is solved."""
        if self.mip is None or self.program is None:
            return
        ended = self.mip.wait(0)
        report = self.mip.read()
        if report.status == "kInfeasible":
            objective = None if self.cutoff_ns is None else self.cutoff_ns / self.program.time_unit_ns
            self._raise_bound(None if objective is None else self.program.bound_ns(objective))
        elif abs(report.bound) < FOREVER:
            self._raise_bound(self.program.bound_ns(report.bound))
        if report.values is not None and self.program.cost(report.values) < self.point_cost:
            self.point_cost = self.program.cost(report.values)
            self._take(*decode(self.program, report.values), moves=self.first_round)
        if ended:
            self.close()
            if not self.infeasible and report.status in ("kOptimal", "kInfeasible"):
                self.next_program()

    def _raise_bound(self, bound_ns: int | None) -> None:
        """Keep a bound if it is better; None: no plan fits."""
        if bound_ns is None:
            self.infeasible = True
        elif bound_ns > self.bound_ns:
            self.bound_ns = bound_ns if self.best_ns is None else min(bound_ns, self.best_ns)
            self.prove(self.bound_ns, f"{len(self.anchors)} moments")

    def next_program(self) -> None:
        """Start a program over twice as many moments, if there are more; its points must beat the best plan."""
        if self.watch.expired:  # on thousands of ops, building one takes seconds
            return
        count, before = FIRST_ANCHORS, self.anchors
        while len(self.anchors) <= len(before) < len(self.problem.ops):
            self.anchors = first_anchors(self.problem, count)
            count *= 2
        if self.anchors == before:
            return
        self.program = JointProgram(self.problem, self.budget_bytes, self.anchors)
        self.cutoff_ns = None if self.best_ns is None else self.best_ns - self.within_ns // 2
        self.point_cost = FOREVER
        highs = new_highs()
        highs.passModel(self.program.model(self.cutoff_ns))
        gap = max(MIN_GAP, self.within_ns / 2 / self.program.time_unit_ns)
        small = highs.getNumCol() <= INLINE_COLUMNS
        self.mip = (InlineMip if small else MipProcess)(highs, self.watch.at_most(FOREVER), gap)


class InlineMip:
    """A small program, solved at once in this process, which takes less time than to start another one."""

    def __init__(self, model: Any, seconds: float, gap: float) -> None:
        model.setOptionValue("time_limit", min(seconds, INLINE_S))
        model.HandleUserInterrupt = True
        self._report, interrupted = run_interruptibly(lambda: run_highs(model, gap), model.cancelSolve)
        if interrupted:
            raise KeyboardInterrupt

    def wait(self, seconds: float | None) -> bool:
        """Return True: it has ended."""
        return True

    def read(self) -> MipReport:
        """The report of the solve."""
        return self._report

    def close(self) -> None:
        """Do nothing: no process runs."""
