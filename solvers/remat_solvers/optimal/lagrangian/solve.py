"""Bounds and plans for networks of many identical layers, in a time that hardly grows with their number.

    anchors <- the op of most memory in the store-all step
    repeat
        put prices on the memory at the anchors' moments, and climb to the best prices (dual_ascent.py): a bound
        combine the points met on the way (primal_recovery.py) into one that fits at the moments
        decode it to a sequence and replay it; within the budget: that is the plan
        else add an anchor at the op during which the replay has most bytes on the device

The program is that of ../program/program.py, whose memory rows are relaxed to prices; everything else stays an integer
program, and the graph is solved layer by layer (program.py), identical layers once (elimination.py,
repeated_blocks.py). The gap that prices leave is less than the effect of one layer, so the more layers, the closer
bound and plan are. A graph of few layers leaves a gap to ../program/refinement.py.

Where memory is so tight that tables get too large before a sequence fits, tight_budgets.py goes on with bounds only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from remat_solvers.optimal.lagrangian.dual_ascent import DualAscent
from remat_solvers.optimal.lagrangian.elimination import TooLargeError
from remat_solvers.optimal.lagrangian.primal_recovery import recover_primal
from remat_solvers.optimal.lagrangian.program import LagrangianProgram, Point
from remat_solvers.optimal.lagrangian.repeated_blocks import find_repeats
from remat_solvers.optimal.lagrangian.tight_budgets import tight_bounds
from remat_solvers.optimal.program.decoding import bytes_at_first_computations, decode_point
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.refinement import RefinementStep
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Order
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.highs import SolveEnd

TOLERANCE = 5e-4  # of the time of store-all: a smaller gap counts as closed
PRICE_STEP = 1.3  # factor by which prices rise until a point fits
MAX_RISES = 40


def lagrangian_steps(
    problem: Problem, budget_bytes: int, *, watch: Stopwatch, order: Order = Order.GIVEN
) -> Iterator[RefinementStep]:
    """Yield after each round the best bound so far and the round's sequence, which may exceed the budget.

    Ends when a sequence fits and is within `TOLERANCE` of the bound, or no anchor helps, or the graph is too entangled
    for more anchors (maybe for the first one: no steps at all), or the watch expires. Later steps may have bounds only.
    """
    if not problem.ops:
        return
    rounds = _Rounds(problem, budget_bytes, order)
    try:
        while not watch.expired:
            step = rounds.step(watch)
            yield step
            if step.done or not rounds.refine():
                return
    except TooLargeError:
        for anchors, bound_ns, impossible in tight_bounds(rounds.graph, budget_bytes, rounds.repeats, watch):
            rounds.bound_ns = max(rounds.bound_ns, bound_ns)
            ended = SolveEnd.EMPTY if impossible else SolveEnd.LIMIT
            yield RefinementStep(anchors, rounds.bound_ns, impossible, ended, None, done=impossible)


class _Rounds:
    def __init__(self, problem: Problem, budget_bytes: int, order: Order) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.graph = OpGraph(problem, order)
        self.repeats = find_repeats(problem)
        self.total_ns = int(self.graph.time_ns.sum())
        self.bound_ns = self.total_ns
        # Bytes per op; the next anchor is the op with most.
        self.memory = bytes_at_first_computations(problem, store_all(problem))[0]
        self.anchors: tuple[int, ...] = (int(self.memory.argmax()),)
        self.prices: dict[int, float] = {}  # per anchor, the best so far

    def step(self, watch: Stopwatch) -> RefinementStep:
        """Find a bound and a plan with the present anchors. Raises TooLargeError."""
        program = LagrangianProgram(Stages(self.graph, self.anchors), self.repeats)
        ascent = DualAscent(program, self.budget_bytes, np.array([self.prices.get(a, 0.0) for a in self.anchors]))
        ascent.climb(watch)
        self.prices = dict(zip(self.anchors, ascent.prices.tolist(), strict=True))
        if ascent.impossible:
            return RefinementStep(self.anchors, self.bound_ns, True, SolveEnd.EMPTY, None, done=True)
        self.bound_ns = max(self.bound_ns, ascent.bound_ns)
        point = _fitting(program, ascent, watch)
        if point is None:
            return RefinementStep(self.anchors, self.bound_ns, False, SolveEnd.LIMIT, None)
        return self._decoded(program, point)

    def _decoded(self, program: LagrangianProgram, point: Point) -> RefinementStep:
        sequence = decode_point(program.stages, *program.masks(point))
        plan = plan_from_sequence(self.problem, sequence)
        timeline = simulate(self.problem, plan)
        self.memory = np.maximum(*bytes_at_first_computations(self.problem, plan))
        fits = timeline.peak_bytes <= self.budget_bytes
        return RefinementStep(
            self.anchors,
            self.bound_ns,
            False,
            SolveEnd.COMPLETE,
            point.time_ns,
            sequence,
            timeline.time_ns,
            timeline.peak_bytes,
            done=fits and timeline.time_ns - self.bound_ns <= TOLERANCE * self.total_ns,
        )

    def refine(self) -> bool:
        """Add an anchor at the op of most memory in the last sequence; False if none exceeds the budget."""
        stages = Stages(self.graph, self.anchors)
        candidates = stages.low == stages.high  # comparable with all anchors
        candidates[list(self.anchors)] = False
        memory = np.where(candidates, self.memory, 0)
        anchor = int(memory.argmax())
        if memory[anchor] <= self.budget_bytes:
            return False
        place = int(stages.low[anchor])
        self.anchors = (*self.anchors[:place], anchor, *self.anchors[place:])
        return True


def _fitting(program: LagrangianProgram, ascent: DualAscent, watch: Stopwatch) -> Point | None:
    """The fastest point found that fits at the moments; None: no prices were high enough for one in time."""
    points = list(ascent.points)
    prices = ascent.prices
    for _ in range(MAX_RISES):
        if watch.expired or any((p.used_bytes <= ascent.capacity).all() for p in points):
            break
        prices = prices * PRICE_STEP
        points.append(program.minimum(prices)[1])
    fitting = [p for p in points if (p.used_bytes <= ascent.capacity).all()]
    if not fitting:
        return None
    best = min(fitting, key=lambda p: p.time_ns)
    for other in sorted(points, key=lambda p: -p.time_ns):
        best = recover_primal(program, ascent.capacity, best, other)
    return best
