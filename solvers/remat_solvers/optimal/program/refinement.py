"""Refines the program lazily: few moments at first, and more where the decoded plan exceeds the budget.

    anchors <- the op of most memory in each of three slices of the store-all step
    repeat
        solve the program's LP over the anchors (program.py), add interval cuts (interval_cuts.py) that it violates
        unless its rounded point exceeds the budget by much, and the bound has risen of late:
            solve the program itself
        decode the point to a sequence (decoding.py) and replay it
        within the budget and solved to its end: no plan of this order is faster; done
        else add an anchor: the op of most memory at first computations in the replay, or, if the fractional point
        itself exceeds the budget by more than a tenth of the capacity, the op at which it does (fractional_memory.py)

Every program's bound is valid (program.py has the proof), so the best of them is kept, and any program may be left
early. A new program begins with the intervals whose rows bound the old one, the split stage included.

A plan that exceeds the budget by little mostly lacks room for recomputations between moments, which no anchor sees. The
program with a budget smaller by that amount gives a plan that fits, and is nearly as fast.

What was tried on real graphs (HiGHS 1.16): anchors where the rounded LP point overflows beat anchors at points of
whole trees, and one at a time beats three (ResNet-50 at 20 %: bound 29.4 % after 3 s, against 26.8 %). LPs that grow
start from the last basis: half the time. The memory of the fractional point is the better guide on the unrolled LSTM
at 40 %: 18.1 % after 20 s, against 16.6 %. Trees: presolve off, interior point for the root, other seeds, symmetry and
restarts off change little; without the RINS and RENS heuristics they took up to ten times as long.

With a `cutoff_ns`, the time of a known plan, the search is only for points that are faster by more than `tolerance_ns`;
if none exist, the bound is `cutoff_ns` less `tolerance_ns`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.errors import PlanError
from remat_solvers.optimal.program.decoding import bytes_at_first_computations, decode_point, encode_plan
from remat_solvers.optimal.program.fractional_memory import fractional_memory
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.interval_cuts import add_interval, violation
from remat_solvers.optimal.program.program import StageProgram
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.schedule import keeps_order, plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.arrays import Floats, Mask
from remat_solvers.toolkit.programs.highs import HighsAnswer, Relaxation, SolveEnd, margin, solve_mip

TOLERANCE = 5e-4  # of the time of store-all: plans that are faster by less are not searched for
FIRST_ANCHORS = 3
FAR = 0.05  # of the capacity: a rounded point that exceeds the budget by more needs anchors, not a tree
OVERFLOW = 0.1  # of the capacity: a larger overflow of the fractional point says where to refine
PATIENCE = 3  # refinements without a tree, in which the bound rises by less than `tolerance_ns`
ROUNDS = 20  # of interval cuts
MIN_VIOLATION = 1e-3  # of the time of store-all: an interval is added where its violation is larger
ADDED = 4  # intervals added in a round, or a third of the stages if that is more
BINDING = 1e-7  # smallest dual value of a row that counts
NEAR = 0.03  # of the capacity: a plan that exceeds the budget by less is repaired
REPAIRS = 3
LP_SHARE = 0.5  # of a step's seconds, for the rounds of cuts


@dataclass(frozen=True, slots=True)
class RefinementStep:
    """The bound, and maybe a plan, after a step."""

    anchors: tuple[int, ...]
    bound_ns: int  # no plan within the budget is faster: the best of all steps
    infeasible: bool  # no plan of this order is within the budget
    ended: SolveEnd  # of this step's program
    point_ns: int | None  # time of the program's point; None for a rounded one
    sequence: list[int] | None = None  # decoded from the point
    time_ns: int | None = None  # of the sequence
    peak_bytes: int | None = None  # of the sequence; it may exceed the budget
    done: bool = False  # no plan is faster than the sequence, or the cutoff, by more than the tolerance
    intervals: tuple[tuple[int, int], ...] = ()  # first and last stages whose recomputations are counted together


class Refinement:
    """Refines the program for one problem and budget: `step` solves it, `refine` adds a moment."""

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        *,
        order: Order = Order.GIVEN,
        tolerance_ns: int | None = None,
        anchors: Sequence[int] | None = None,
        cuts: bool = True,
    ) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.cuts = cuts
        self.graph = OpGraph(problem, order)
        self.capacity_bytes = budget_bytes - self.graph.static_bytes
        self.total_ns = int(self.graph.time_ns.sum())
        self.tolerance_ns = int(TOLERANCE * self.total_ns) if tolerance_ns is None else tolerance_ns
        self.bound_ns = self.total_ns
        self.infeasible = False
        self.incumbent: list[int] | None = None  # a sequence within the budget
        self.incumbent_ns: int | None = None
        self._kept: set[tuple[int, int]] = set()  # intervals, as the anchors before and at their ends (-1, n: none)
        self._profile = bytes_at_first_computations(problem, store_all(problem))[0]
        self._memory = self._profile  # per op; the next anchor is where it is largest
        self._history: list[int] = []  # the bound after each LP
        self._cut_short = 0  # steps with these stages that ended in the tree
        self.stages: Stages
        self.program: StageProgram
        self._set_stages(Stages(self.graph, self._first_anchors() if anchors is None else anchors))

    @property
    def intervals(self) -> tuple[tuple[int, int], ...]:
        """The intervals of the present program, as first and last stages."""
        return tuple(sorted(self._intervals))

    def set_incumbent(self, sequence: Sequence[int]) -> None:
        """Take over a known plan: from now on, only faster ones are searched for, from its point."""
        timeline = simulate(self.problem, plan_from_sequence(self.problem, sequence))
        self._update_incumbent(list(sequence), timeline.time_ns, timeline.peak_bytes)

    def step(
        self,
        seconds: float,
        cutoff_ns: int | None = None,
        *,
        nodes: int | None = None,
        on_news: Callable[[RefinementStep], bool] | None = None,
    ) -> RefinementStep:
        """Solve the program over the present anchors for some seconds, and decode its best point.

        `on_news` is called with better bounds and points meanwhile, and returns whether to stop.
        """
        deadline = time.perf_counter() + seconds
        times = [t for t in (cutoff_ns, self.incumbent_ns) if t is not None]
        cutoff_ns = min(times, default=None)
        before = self.bound_ns
        relaxed = self._solve_with_cuts(time.perf_counter() + LP_SHARE * seconds, cutoff_ns)
        if relaxed.ended is SolveEnd.EMPTY or self._closed(cutoff_ns):
            self.infeasible |= relaxed.ended is SolveEnd.EMPTY
            return self._step_without_plan(relaxed.ended, cutoff_ns)
        if on_news is not None and self.bound_ns > before:
            on_news(self._step_without_plan(SolveEnd.LIMIT, cutoff_ns))
        if relaxed.point is None:  # a tree would begin with the same LP
            return self._step_without_plan(SolveEnd.LIMIT, cutoff_ns)
        rounded = self._replayed(self.program.rounded(relaxed.point), None, SolveEnd.LIMIT, cutoff_ns)
        self._note_overflow(relaxed.point)
        if rounded.done or self._far(rounded):
            return rounded
        answer = self._search_tree(deadline - time.perf_counter(), cutoff_ns, nodes, on_news)
        self._cut_short = self._cut_short + 1 if answer.ended is SolveEnd.LIMIT else 0
        if answer.ended is SolveEnd.EMPTY and cutoff_ns is None:
            self.infeasible = True
            return self._step_without_plan(answer.ended, cutoff_ns)
        self._raise_bound(answer.bound)
        if answer.point is None:
            return self._step_without_plan(answer.ended, cutoff_ns)
        step = self._decoded(self.program, answer.point, answer.cost, answer.ended, cutoff_ns)
        return self._repaired(step, deadline, cutoff_ns)

    def refine(self) -> bool:
        """Add an anchor where memory is largest. False: there is none to add, or the tree needs more time."""
        stages = self.stages
        if self._cut_short == 1:
            return False
        free = stages.low == stages.high
        free[list(stages.anchors)] = False
        memory = np.where(free, self._memory, -1)
        if not free.any():
            return False
        new = int(memory.argmax())
        k = int(stages.low[new])
        ends = [-1, *stages.anchors, len(self.problem.ops)]
        self._kept.add((ends[k], ends[k + 1]))
        self._set_stages(Stages(self.graph, [*stages.anchors[:k], new, *stages.anchors[k:]]))
        return True

    # Solving the program

    def _set_stages(self, stages: Stages) -> None:
        self.stages = stages
        self._cut_short = 0
        place = {op: k for k, op in enumerate([-1, *stages.anchors, len(self.problem.ops)])}
        intervals = {(place[a], place[b] - 1) for a, b in self._kept}
        self._intervals = {(a, b) for a, b in intervals if a < b}
        self.program = self._new_program(self.budget_bytes)

    def _new_program(self, budget_bytes: int) -> StageProgram:
        program = StageProgram(self.stages, budget_bytes)
        for first, last in sorted(self._intervals):
            add_interval(program, first, last)
        return program

    def _solve_with_cuts(self, deadline: float, cutoff_ns: int | None) -> HighsAnswer:
        """Solve the LP, and add intervals while its point violates them. Intervals that bind are kept."""
        relaxation = Relaxation(self.program)
        num_stages = len(self.stages.anchors) + 1
        min_violation = MIN_VIOLATION * self.total_ns / self.program.time_unit_ns
        every = [(a, b) for a in range(num_stages) for b in range(a + 1, num_stages)]
        answer = HighsAnswer(SolveEnd.LIMIT, -np.inf, None, np.inf)
        for _ in range(ROUNDS):
            seconds = deadline - time.perf_counter()
            newer = relaxation.solve(seconds) if seconds > 0 else HighsAnswer(SolveEnd.LIMIT, -np.inf, None, np.inf)
            if newer.ended is not SolveEnd.LIMIT:
                answer = newer
                self._raise_bound(answer.bound)
            if newer.point is None or self._closed(cutoff_ns) or not self.cuts:
                break
            self._keep_binding(relaxation.duals)
            point = newer.point
            violations = [(violation(self.program, point, *j), j) for j in every if j not in self._intervals]
            chosen = [j for amount, j in sorted(violations, key=lambda v: (-v[0], v[1])) if amount > min_violation]
            if not chosen:
                break
            for first, last in chosen[: max(ADDED, num_stages // 3)]:
                add_interval(self.program, first, last)
                self._intervals.add((first, last))
        self._history.append(self.bound_ns)
        return answer

    def _keep_binding(self, duals: Floats) -> None:
        """Keep for the next program the intervals whose rows bind."""
        ends = [-1, *self.stages.anchors, len(self.problem.ops)]
        self._kept = {
            (ends[interval.first], ends[interval.last + 1])
            for interval in self.program.intervals
            if np.abs(duals[slice(*interval.rows)]).max(initial=0.0) > BINDING
        }

    def _note_overflow(self, point: Floats) -> None:
        """Choose the next anchor by the fractional point if even that exceeds the budget by much."""
        if self.graph.order is Order.GIVEN:
            memory = fractional_memory(self.program, point)
            memory[list(self.stages.anchors)] = 0
            limit_bytes = self.budget_bytes + OVERFLOW * self.capacity_bytes
            if memory.max(initial=0) > limit_bytes:
                self._memory = memory

    def _far(self, rounded: RefinementStep) -> bool:
        """Whether to add anchors before a tree: the point exceeds the budget by much, and the bound still rises."""
        limit_bytes = self.budget_bytes + FAR * self.capacity_bytes
        if (rounded.peak_bytes or 0) <= limit_bytes:
            return False
        recent = self._history[-1 - PATIENCE :]
        return len(recent) <= PATIENCE or recent[-1] - recent[0] > self.tolerance_ns

    def _search_tree(
        self, seconds: float, cutoff_ns: int | None, nodes: int | None, on_news: Callable[[RefinementStep], bool] | None
    ) -> HighsAnswer:
        """Solve the program itself by branch and bound, after the rounds of cuts."""
        stop = False

        def on_bound(bound: float) -> bool:
            nonlocal stop
            before = self.bound_ns
            self._raise_bound(bound)
            if on_news is not None and self.bound_ns > before:
                stop = on_news(self._step_without_plan(SolveEnd.LIMIT, cutoff_ns)) or stop
            return stop

        def on_point(point: Floats, cost: float) -> None:
            nonlocal stop
            if on_news is not None:
                stop = on_news(self._decoded(self.program, point, cost, SolveEnd.LIMIT, cutoff_ns)) or stop

        return solve_mip(
            self.program,
            seconds=seconds,
            gap=self.tolerance_ns / 2 / self.program.time_unit_ns,
            cutoff=self._cutoff_units(cutoff_ns),
            nodes=nodes,
            start=self._incumbent_point(),
            on_point=on_point,
            on_bound=on_bound,
        )

    def _incumbent_point(self) -> Floats | None:
        """The point of the incumbent, if it has one in this order of first computations."""
        if self.incumbent is None:
            return None
        plan = plan_from_sequence(self.problem, self.incumbent)
        if self.graph.order is Order.GIVEN and not keeps_order(plan):
            return None
        return self.program.point(*encode_plan(self.stages, plan))

    def _cutoff_units(self, cutoff_ns: int | None) -> float:
        """The cutoff in units of the program: a point must cost less."""
        if cutoff_ns is None:
            return float("inf")
        return max(0.0, (cutoff_ns - self.tolerance_ns - self.program.base_ns) / self.program.time_unit_ns)

    def _raise_bound(self, bound: float) -> None:
        if np.isfinite(bound):
            self.bound_ns = max(self.bound_ns, self.program.bound_ns(bound, margin(self.program, bound)))

    def _closed(self, cutoff_ns: int | None) -> bool:
        return cutoff_ns is not None and self.bound_ns >= cutoff_ns - self.tolerance_ns

    # Plans of its points

    def _step_without_plan(self, ended: SolveEnd, cutoff_ns: int | None) -> RefinementStep:
        done = self.infeasible or self._closed(cutoff_ns)
        return RefinementStep(self.stages.anchors, self.bound_ns, self.infeasible, ended, None, done=done)

    def _decoded(
        self, program: StageProgram, point: Floats, cost: float, ended: SolveEnd, cutoff_ns: int | None
    ) -> RefinementStep:
        return self._replayed(program.decisions(point), program.time_ns(cost), ended, cutoff_ns)

    def _replayed(
        self, decided: tuple[Mask, Mask], point_ns: int | None, ended: SolveEnd, cutoff_ns: int | None
    ) -> RefinementStep:
        sequence = decode_point(self.stages, *decided)
        try:
            plan = plan_from_sequence(self.problem, sequence)
        except PlanError as error:
            raise AssertionError(f"a point of the program gave no valid plan: {error}") from error
        timeline = simulate(self.problem, plan)
        first, repeats = bytes_at_first_computations(self.problem, plan)
        if point_ns is None or ended is SolveEnd.COMPLETE:  # a point of an unfinished tree may be far from any plan
            self._memory = np.where(first > self.budget_bytes, first, np.maximum(first, repeats))
        self._update_incumbent(sequence, timeline.time_ns, timeline.peak_bytes)
        best = min((t for t in (cutoff_ns, self.incumbent_ns) if t is not None), default=None)
        return RefinementStep(
            self.stages.anchors,
            self.bound_ns,
            False,
            ended,
            point_ns,
            sequence,
            timeline.time_ns,
            timeline.peak_bytes,
            done=self._closed(best),
        )

    def _repaired(self, step: RefinementStep, deadline: float, cutoff_ns: int | None) -> RefinementStep:
        """Replace a plan that exceeds the budget by little by one for a smaller budget, if that fits.

        A program does not see the recomputations between moments, which mostly are what exceeds the budget.
        """
        budget_bytes, peak_bytes, memory = self.budget_bytes, step.peak_bytes or 0, self._memory
        limit_bytes = self.budget_bytes + NEAR * self.capacity_bytes
        for _ in range(REPAIRS):
            seconds = deadline - time.perf_counter()
            if not self.budget_bytes < peak_bytes <= limit_bytes or seconds <= 0:
                break
            budget_bytes -= peak_bytes - self.budget_bytes
            program = self._new_program(budget_bytes)
            gap, cutoff = self.tolerance_ns / 2 / program.time_unit_ns, self._cutoff_units(cutoff_ns)
            answer = solve_mip(program, seconds=seconds, gap=gap, cutoff=cutoff)
            if answer.point is None:
                break
            other = self._decoded(program, answer.point, answer.cost, step.ended, cutoff_ns)
            peak_bytes, self._memory = other.peak_bytes or 0, memory
            if peak_bytes <= self.budget_bytes:
                return other
        return step

    def _update_incumbent(self, sequence: list[int], time_ns: int, peak_bytes: int) -> None:
        if peak_bytes <= self.budget_bytes and (self.incumbent_ns is None or time_ns < self.incumbent_ns):
            self.incumbent, self.incumbent_ns = sequence, time_ns

    # The first moments

    def _first_anchors(self) -> list[int]:
        """The op of most memory in each slice of the step; in free order, a chain of such ops."""
        count = len(self.problem.ops)
        edges = [count * k // FIRST_ANCHORS for k in range(FIRST_ANCHORS + 1)]
        slices = [range(a, b) for a, b in pairwise(edges) if a < b]
        if self.graph.order is Order.GIVEN:
            return [max(ops, key=lambda op: int(self._profile[op])) for ops in slices]
        chosen: list[int] = []
        fits = np.ones(count, dtype=bool)
        for ops in sorted(slices, key=lambda s: -int(self._profile[s.start : s.stop].max())):
            candidates = [op for op in ops if fits[op]]
            if candidates:
                op = max(candidates, key=lambda op: int(self._profile[op]))
                chosen.append(op)
                fits &= self.graph.before(op) | self.graph.after(op)
                fits[op] = False
        return sorted(chosen, key=lambda op: sum(bool(self.graph.before(op)[other]) for other in chosen))
