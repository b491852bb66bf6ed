"""The lazy loop: a program over few moments, its best point made a plan, moments added where that plan has no room.

    at <- the op of most memory in each of three slices of the store-all step
    repeat
        solve the program's LP over `at` (stages.py), with interval cuts (cuts.py) while it breaks any
        unless its rounded point exceeds the budget by much, and the bound has risen of late:
            solve the program itself
        expand the point to a sequence (expansion.py) and replay it
        within the budget and solved to its end: no plan of this order is faster; done
        else add an anchor: the op in whose first run the replay holds most, or where the fractional point itself
        exceeds the budget by more than a tenth of the room (pressure.py)

Every program's bound is valid (stages.py says why), so the best of them is kept, and any of them may be left early. A
new program begins with the intervals whose rows bound the old one, the split stage included.

A plan that exceeds the budget by little mostly lacks room for repeats between moments, which no anchor sees. The
program with as much less room gives one that fits, and is nearly as fast.

What was tried on real graphs (HiGHS 1.16): anchors where the rounded LP point overflows beat anchors at points of
whole trees, and one at a time beats three (ResNet-50 at 20 %: bound 29.4 % after 3 s, against 26.8 %). LPs that grow
start from the last basis: half the time. The pressure of the fractional point is the better guide on the unrolled LSTM
at 40 %: 18.1 % after 20 s, against 16.6 %. Trees: presolve off, interior point for the root, other seeds, symmetry and
restarts off change little; without the RINS and RENS heuristics they took up to ten times as long.

With a `cutoff_ns`, the time of a known plan, only points that are faster by more than `within_ns` are looked for; when
there are none, that is the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.errors import PlanError
from remat_solvers.optimal.program.decoding import bytes_at_first_runs, expand, point_of
from remat_solvers.optimal.program.fractional_memory import pressure
from remat_solvers.optimal.program.interval_cuts import add_interval, broken_by
from remat_solvers.optimal.program.stages import Graph, Program, Stages
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.schedule import keeps_order, plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.arrays import Floats, Mask
from remat_solvers.toolkit.programs.highs import Answer, Ended, Relaxation, margin, solve_mip

__all__ = ["WITHIN", "LazyStages", "Step"]


WITHIN = 5e-4  # of store-all's time: a faster plan is not looked for
FIRST_ANCHORS = 3
APART = 0.05  # of the room: a rounded point that exceeds the budget by more needs anchors, not a tree
PRESSING = 0.1  # of the room: an overflow of the fractional point that says where to refine
PATIENCE = 3  # refinements without a tree, in which the bound rises by less than `within_ns`
ROUNDS = 20  # of interval cuts
WORTH = 1e-3  # an interval is added where it is broken by more than this part of store-all's time
ADDED = 4  # intervals added in a round, and a third of the stages where that is more
BINDING = 1e-7  # least price of a row that counts
NEAR = 0.03  # of the room: a plan that exceeds it by less is worth a repair
REPAIRS = 3
LP_SHARE = 0.5  # of a step's seconds, for the rounds


@dataclass(frozen=True, slots=True)
class Step:
    """What is known after a step."""

    at: tuple[int, ...]  # the anchors
    bound_ns: int  # no plan within the budget is faster: the best of all steps
    infeasible: bool  # no plan of this order is within the budget
    ended: Ended  # of this step's program
    point_ns: int | None  # time of the program's point; None for a rounded one
    sequence: list[int] | None = None  # the point, expanded
    time_ns: int | None = None  # of the sequence
    peak_bytes: int | None = None  # of the sequence; it may exceed the budget
    done: bool = False  # no plan is faster than the sequence, or the cutoff, by more than `within_ns`
    intervals: tuple[tuple[int, int], ...] = ()  # first and last stages whose recomputations are counted together


class LazyStages:
    """The loop for one problem and budget; `step` solves, `refine` adds moments."""

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        *,
        order: Order = Order.GIVEN,
        within_ns: int | None = None,
        anchors: Sequence[int] | None = None,
        cuts: bool = True,
    ) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.cuts = cuts
        self.graph = Graph(problem, order)
        total_ns = int(self.graph.time_ns.sum())
        self.total_ns = total_ns
        self.within_ns = int(WITHIN * total_ns) if within_ns is None else within_ns
        self.bound_ns = total_ns
        self.infeasible = False
        self.known: list[int] | None = None  # a sequence within the budget
        self.known_ns: int | None = None
        self._kept: set[tuple[int, int]] = set()  # intervals, as the anchors before and at their ends; -1, n: none
        self._profile = bytes_at_first_runs(problem, store_all(problem))[0]
        self._worst = self._profile  # where to refine
        self._history: list[int] = []  # the bound after each LP
        self._cut_short = 0  # steps with these stages that ended in the tree
        self.stages: Stages
        self.program: Program
        self._set_stages(Stages(self.graph, self._first_anchors() if anchors is None else anchors))

    @property
    def intervals(self) -> tuple[tuple[int, int], ...]:
        """Of the program at hand."""
        return tuple(sorted(self._intervals))

    def tell(self, sequence: Sequence[int]) -> None:
        """A plan is known: looked for are only faster ones, starting from it."""
        timeline = simulate(self.problem, plan_from_sequence(self.problem, sequence))
        self._learn(list(sequence), timeline.time_ns, timeline.peak_bytes)

    def step(
        self,
        seconds: float,
        cutoff_ns: int | None = None,
        *,
        nodes: int | None = None,
        on_news: Callable[[Step], bool] | None = None,
    ) -> Step:
        """Solve the program over the anchors at hand for some seconds, and make a plan of its best point.

        `on_news` hears of better bounds and points meanwhile, and says whether to stop.
        """
        deadline = time.perf_counter() + seconds
        times = [t for t in (cutoff_ns, self.known_ns) if t is not None]
        cutoff_ns = min(times, default=None)
        before = self.bound_ns
        relaxed = self._rounds(time.perf_counter() + LP_SHARE * seconds, cutoff_ns)
        if relaxed.ended is Ended.EMPTY or self._closed(cutoff_ns):
            self.infeasible |= relaxed.ended is Ended.EMPTY
            return self._nothing_found(relaxed.ended, cutoff_ns)
        if on_news is not None and self.bound_ns > before:
            on_news(self._nothing_found(Ended.LIMIT, cutoff_ns))
        if relaxed.point is None:  # a tree would begin with the same LP
            return self._nothing_found(Ended.LIMIT, cutoff_ns)
        rounded = self._replayed(self.program.rounded(relaxed.point), None, Ended.LIMIT, cutoff_ns)
        self._press(relaxed.point)
        if rounded.done or self._far(rounded):
            return rounded
        answer = self._search_tree(deadline - time.perf_counter(), cutoff_ns, nodes, on_news)
        self._cut_short = self._cut_short + 1 if answer.ended is Ended.LIMIT else 0
        if answer.ended is Ended.EMPTY and cutoff_ns is None:
            self.infeasible = True
            return self._nothing_found(answer.ended, cutoff_ns)
        self._raise(answer.bound)
        if answer.point is None:
            return self._nothing_found(answer.ended, cutoff_ns)
        step = self._expanded(self.program, answer.point, answer.cost, answer.ended, cutoff_ns)
        return self._repaired(step, deadline, cutoff_ns)

    def refine(self) -> bool:
        """Add an anchor where the last plan holds most; False: there is none to add, or the tree needs more time."""
        stages = self.stages
        if self._cut_short == 1:
            return False
        free = stages.low == stages.high
        free[list(stages.at)] = False
        most = np.where(free, self._worst, -1)
        if not free.any():
            return False
        new = int(most.argmax())
        k = int(stages.low[new])
        ends = [-1, *stages.at, len(self.problem.ops)]
        self._kept.add((ends[k], ends[k + 1]))
        self._set_stages(Stages(self.graph, [*stages.at[:k], new, *stages.at[k:]]))
        return True

    # The program

    def _set_stages(self, stages: Stages) -> None:
        self.stages = stages
        self._cut_short = 0
        place = {op: k for k, op in enumerate([-1, *stages.at, len(self.problem.ops)])}
        intervals = {(place[a], place[b] - 1) for a, b in self._kept}
        self._intervals = {(a, b) for a, b in intervals if a < b}
        self.program = self._program(self.budget_bytes)

    def _program(self, budget_bytes: int) -> Program:
        program = Program(self.stages, budget_bytes)
        for first, last in sorted(self._intervals):
            add_interval(program, first, last)
        return program

    def _rounds(self, deadline: float, cutoff_ns: int | None) -> Answer:
        """The LP, with intervals added while its point breaks them; the last answer. Those that bind are kept."""
        relaxation = Relaxation(self.program)
        stages = len(self.stages.at) + 1
        worth = WORTH * self.total_ns / self.program.time_unit_ns
        every = [(a, b) for a in range(stages) for b in range(a + 1, stages)]
        answer = Answer(Ended.LIMIT, -np.inf, None, np.inf)
        for _ in range(ROUNDS):
            seconds = deadline - time.perf_counter()
            newer = relaxation.solve(seconds) if seconds > 0 else Answer(Ended.LIMIT, -np.inf, None, np.inf)
            if newer.ended is not Ended.LIMIT:
                answer = newer
                self._raise(answer.bound)
            if newer.point is None or self._closed(cutoff_ns) or not self.cuts:
                break
            self._keep_binding(relaxation.prices)
            point = newer.point
            broken = [(broken_by(self.program, point, *j), j) for j in every if j not in self._intervals]
            chosen = [j for much, j in sorted(broken, key=lambda b: (-b[0], b[1])) if much > worth]
            if not chosen:
                break
            for first, last in chosen[: max(ADDED, stages // 3)]:
                add_interval(self.program, first, last)
                self._intervals.add((first, last))
        self._history.append(self.bound_ns)
        return answer

    def _keep_binding(self, prices: Floats) -> None:
        """Remember the intervals that the next program is to begin with: those whose rows hold the bound up."""
        ends = [-1, *self.stages.at, len(self.problem.ops)]
        self._kept = {
            (ends[interval.first], ends[interval.last + 1])
            for interval in self.program.intervals
            if np.abs(prices[slice(*interval.rows)]).max(initial=0.0) > BINDING
        }

    def _press(self, point: Floats) -> None:
        """Refine where even the fractional point overflows, if it does so by much."""
        if self.graph.order is Order.GIVEN:
            bytes_there = pressure(self.program, point)
            bytes_there[list(self.stages.at)] = 0
            most_bytes = self.budget_bytes + PRESSING * (self.budget_bytes - self.graph.floor_bytes)
            if bytes_there.max(initial=0) > most_bytes:
                self._worst = bytes_there

    def _far(self, rounded: Step) -> bool:
        """Whether anchors promise more than a tree: the point exceeds the budget by much, and the bound still rises."""
        most_bytes = self.budget_bytes + APART * (self.budget_bytes - self.graph.floor_bytes)
        if (rounded.peak_bytes or 0) <= most_bytes:
            return False
        recent = self._history[-1 - PATIENCE :]
        return len(recent) <= PATIENCE or recent[-1] - recent[0] > self.within_ns

    def _search_tree(
        self, seconds: float, cutoff_ns: int | None, nodes: int | None, on_news: Callable[[Step], bool] | None
    ) -> Answer:
        """The program itself, after the rounds."""
        stop = False

        def on_bound(bound: float) -> bool:
            nonlocal stop
            before = self.bound_ns
            self._raise(bound)
            if on_news is not None and self.bound_ns > before:
                stop = on_news(self._nothing_found(Ended.LIMIT, cutoff_ns)) or stop
            return stop

        def on_point(point: Floats, cost: float) -> None:
            nonlocal stop
            if on_news is not None:
                stop = on_news(self._expanded(self.program, point, cost, Ended.LIMIT, cutoff_ns)) or stop

        return solve_mip(
            self.program,
            seconds=seconds,
            gap=self.within_ns / 2 / self.program.time_unit_ns,
            cutoff=self._units(cutoff_ns),
            nodes=nodes,
            start=self._start(),
            on_point=on_point,
            on_bound=on_bound,
        )

    def _start(self) -> Floats | None:
        """A known plan's point, where the program has one for it."""
        if self.known is None:
            return None
        plan = plan_from_sequence(self.problem, self.known)
        if self.graph.order is Order.GIVEN and not keeps_order(plan):
            return None
        return self.program.point(*point_of(self.stages, plan))

    def _units(self, cutoff_ns: int | None) -> float:
        """What a point must cost less than."""
        if cutoff_ns is None:
            return float("inf")
        return max(0.0, (cutoff_ns - self.within_ns - self.program.base_ns) / self.program.time_unit_ns)

    def _raise(self, bound: float) -> None:
        if np.isfinite(bound):
            self.bound_ns = max(self.bound_ns, self.program.bound_ns(bound, margin(self.program, bound)))

    def _closed(self, cutoff_ns: int | None) -> bool:
        return cutoff_ns is not None and self.bound_ns >= cutoff_ns - self.within_ns

    # What its point says

    def _nothing_found(self, ended: Ended, cutoff_ns: int | None) -> Step:
        done = self.infeasible or self._closed(cutoff_ns)
        return Step(self.stages.at, self.bound_ns, self.infeasible, ended, None, done=done)

    def _expanded(self, program: Program, point: Floats, cost: float, ended: Ended, cutoff_ns: int | None) -> Step:
        return self._replayed(program.decisions(point), program.time_ns(cost), ended, cutoff_ns)

    def _replayed(self, decided: tuple[Mask, Mask], point_ns: int | None, ended: Ended, cutoff_ns: int | None) -> Step:
        sequence = expand(self.stages, *decided)
        try:
            plan = plan_from_sequence(self.problem, sequence)
        except PlanError as error:
            raise AssertionError(f"a point of the program is no plan: {error}") from error
        timeline = simulate(self.problem, plan)
        first, repeats = bytes_at_first_runs(self.problem, plan)
        if point_ns is None or ended is Ended.COMPLETE:  # a point of half a tree may be far from any plan
            self._worst = np.where(first > self.budget_bytes, first, np.maximum(first, repeats))
        self._learn(sequence, timeline.time_ns, timeline.peak_bytes)
        best = min((t for t in (cutoff_ns, self.known_ns) if t is not None), default=None)
        return Step(
            self.stages.at,
            self.bound_ns,
            False,
            ended,
            point_ns,
            sequence,
            timeline.time_ns,
            timeline.peak_bytes,
            done=self._closed(best),
        )

    def _repaired(self, step: Step, deadline: float, cutoff_ns: int | None) -> Step:
        """Where a plan misses the budget by little, the point of a smaller budget, expanded, in its place if it fits.

        What is missing is mostly room for the repeats between moments.
        """
        budget_bytes, peak_bytes, worst = self.budget_bytes, step.peak_bytes or 0, self._worst
        most_bytes = self.budget_bytes + NEAR * (self.budget_bytes - self.graph.floor_bytes)
        for _ in range(REPAIRS):
            seconds = deadline - time.perf_counter()
            if not self.budget_bytes < peak_bytes <= most_bytes or seconds <= 0:
                break
            budget_bytes -= peak_bytes - self.budget_bytes
            program = self._program(budget_bytes)
            gap, cutoff = self.within_ns / 2 / program.time_unit_ns, self._units(cutoff_ns)
            answer = solve_mip(program, seconds=seconds, gap=gap, cutoff=cutoff)
            if answer.point is None:
                break
            other = self._expanded(program, answer.point, answer.cost, step.ended, cutoff_ns)
            peak_bytes, self._worst = other.peak_bytes or 0, worst
            if peak_bytes <= self.budget_bytes:
                return other
        return step

    def _learn(self, sequence: list[int], time_ns: int, peak_bytes: int) -> None:
        if peak_bytes <= self.budget_bytes and (self.known_ns is None or time_ns < self.known_ns):
            self.known, self.known_ns = sequence, time_ns

    # Where to look

    def _first_anchors(self) -> list[int]:
        """The op of most memory in each slice; in free order, a chain of such."""
        count = len(self.problem.ops)
        edges = [count * k // FIRST_ANCHORS for k in range(FIRST_ANCHORS + 1)]
        slices = [range(a, b) for a, b in pairwise(edges) if a < b]
        if self.graph.order is Order.GIVEN:
            return [max(some, key=lambda op: int(self._profile[op])) for some in slices]
        chosen: list[int] = []
        fits = np.ones(count, dtype=bool)
        for some in sorted(slices, key=lambda s: -int(self._profile[s.start : s.stop].max())):
            here = [op for op in some if fits[op]]
            if here:
                op = max(here, key=lambda op: int(self._profile[op]))
                chosen.append(op)
                fits &= self.graph.before(op) | self.graph.after(op)
                fits[op] = False
        return sorted(chosen, key=lambda op: sum(bool(self.graph.before(op)[other]) for other in chosen))
