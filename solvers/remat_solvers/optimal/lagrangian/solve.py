"""Bounds and plans of networks of many alike layers, in a time that hardly grows with their number.

    at <- the op of most memory in the store-all step
    repeat
        price the memory at the moments of `at`, and climb to the best prices (layered_prices.py): a bound
        mix the points met on the way (layered_mixture.py) into one that fits at the moments
        decode_point it to a sequence and replay it; within the budget: that is the plan
        else add an anchor where the replay holds most

The program is that of stages.py, whose memory rows are relaxed to prices; everything else stays whole, and the graph is
taken apart along its layers (layered_network.py), alike ones once (layered_tables.py, repeats.py). What the prices
leave open is less than what one layer can do, so the more layers, the closer bound and plan are. A graph of few layers
leaves a gap to lazy.py.

Where memory is so tight that tables get too large before a sequence fits, layered_tight.py goes on with bounds only.
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

__all__ = ["lagrangian_steps"]

TOLERANCE = 5e-4  # of store-all's time: a gap that is closed
DEARER = 1.3  # by what prices rise until a point fits
MOST_RISES = 40


def lagrangian_steps(
    problem: Problem, budget_bytes: int, *, watch: Stopwatch, order: Order = Order.GIVEN
) -> Iterator[RefinementStep]:
    """After each round what is known: the best bound so far, and this round's sequence, which may exceed the budget.

    Ends when a sequence fits and is within `TOLERANCE` of the bound, or no anchor helps, or the graph is too entangled
    for more anchors (maybe for the first one: no steps at all), or the watch expires. Later steps may have bounds only.
    """
    if not problem.ops:
        return
    layers = _Layers(problem, budget_bytes, order)
    try:
        while not watch.expired:
            step = layers.step(watch)
            yield step
            if step.done or not layers.refine():
                return
    except TooLargeError:
        for at, bound_ns, impossible in tight_bounds(layers.graph, budget_bytes, layers.repeats, watch):
            layers.bound_ns = max(layers.bound_ns, bound_ns)
            ended = SolveEnd.EMPTY if impossible else SolveEnd.LIMIT
            yield RefinementStep(at, layers.bound_ns, impossible, ended, None, done=impossible)


class _Layers:
    def __init__(self, problem: Problem, budget_bytes: int, order: Order) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.graph = OpGraph(problem, order)
        self.repeats = find_repeats(problem)
        self.total_ns = int(self.graph.time_ns.sum())
        self.bound_ns = self.total_ns
        self.worst = bytes_at_first_computations(problem, store_all(problem))[0]  # where to refine
        self.anchors: tuple[int, ...] = (int(self.worst.argmax()),)
        self.prices: dict[int, float] = {}  # of anchors, the best so far

    def step(self, watch: Stopwatch) -> RefinementStep:
        """Bound and plan for the anchors at hand; raises TooLargeError."""
        priced = LagrangianProgram(Stages(self.graph, self.anchors), self.repeats)
        ascent = DualAscent(priced, self.budget_bytes, np.array([self.prices.get(a, 0.0) for a in self.anchors]))
        ascent.climb(watch)
        self.prices = dict(zip(self.anchors, ascent.prices.tolist(), strict=True))
        if ascent.impossible:
            return RefinementStep(self.anchors, self.bound_ns, True, SolveEnd.EMPTY, None, done=True)
        self.bound_ns = max(self.bound_ns, ascent.bound_ns)
        point = _fitting(priced, ascent, watch)
        if point is None:
            return RefinementStep(self.anchors, self.bound_ns, False, SolveEnd.LIMIT, None)
        return self._expanded(priced, point)

    def _expanded(self, priced: LagrangianProgram, point: Point) -> RefinementStep:
        sequence = decode_point(priced.stages, *priced.masks(point))
        plan = plan_from_sequence(self.problem, sequence)
        timeline = simulate(self.problem, plan)
        self.worst = np.maximum(*bytes_at_first_computations(self.problem, plan))
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
        """Add an anchor where the last sequence holds most; whether there is one that holds more than the budget."""
        stages = Stages(self.graph, self.anchors)
        free = stages.low == stages.high  # comparable with all anchors
        free[list(self.anchors)] = False
        most = np.where(free, self.worst, 0)
        anchor = int(most.argmax())
        if most[anchor] <= self.budget_bytes:
            return False
        place = int(stages.low[anchor])
        self.anchors = (*self.anchors[:place], anchor, *self.anchors[place:])
        return True


def _fitting(priced: LagrangianProgram, ascent: DualAscent, watch: Stopwatch) -> Point | None:
    """The fastest point found that fits at the moments; None: no prices were high enough for one in time."""
    points = list(ascent.points)
    prices = ascent.prices
    for _ in range(MOST_RISES):
        if watch.expired or any((p.used_bytes <= ascent.room).all() for p in points):
            break
        prices = prices * DEARER
        points.append(priced.minimum(prices)[1])
    fitting = [p for p in points if (p.used_bytes <= ascent.room).all()]
    if not fitting:
        return None
    best = min(fitting, key=lambda p: p.time_ns)
    for other in sorted(points, key=lambda p: -p.time_ns):
        best = recover_primal(priced, ascent.room, best, other)
    return best
