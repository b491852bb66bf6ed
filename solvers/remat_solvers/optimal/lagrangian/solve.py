"""Bounds and plans of networks of many alike layers, in a time that hardly grows with their number.

    at <- the op of most memory in the store-all step
    repeat
        price the memory at the moments of `at`, and climb to the best prices (layered_prices.py): a bound
        mix the points met on the way (layered_mixture.py) into one that fits at the moments
        expand it to a sequence and replay it; within the budget: that is the plan
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

from remat_solvers.optimal.lagrangian.dual_ascent import Ascent
from remat_solvers.optimal.lagrangian.elimination import TooLargeError
from remat_solvers.optimal.lagrangian.primal_recovery import mix
from remat_solvers.optimal.lagrangian.program import Point, Priced
from remat_solvers.optimal.lagrangian.repeated_blocks import find_repeats
from remat_solvers.optimal.lagrangian.tight_budgets import tight_bounds
from remat_solvers.optimal.program.decoding import bytes_at_first_runs, expand
from remat_solvers.optimal.program.refinement import Step
from remat_solvers.optimal.program.stages import Graph, Stages
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Order
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.highs import Ended

__all__ = ["layered_steps"]

WITHIN = 5e-4  # of store-all's time: a gap that is closed
DEARER = 1.3  # by what prices rise until a point fits
MOST_RISES = 40


def layered_steps(
    problem: Problem, budget_bytes: int, *, watch: Stopwatch, order: Order = Order.GIVEN
) -> Iterator[Step]:
    """After each round what is known: the best bound so far, and this round's sequence, which may exceed the budget.

    Ends when a sequence fits and is within `WITHIN` of the bound, or no anchor helps, or the graph is too entangled for
    more anchors (maybe for the first one: no steps at all), or the watch expires. Later steps may have bounds only.
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
            ended = Ended.EMPTY if impossible else Ended.LIMIT
            yield Step(at, layers.bound_ns, impossible, ended, None, done=impossible)


class _Layers:
    def __init__(self, problem: Problem, budget_bytes: int, order: Order) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.graph = Graph(problem, order)
        self.repeats = find_repeats(problem)
        self.total_ns = int(self.graph.time_ns.sum())
        self.bound_ns = self.total_ns
        self.worst = bytes_at_first_runs(problem, store_all(problem))[0]  # where to refine
        self.at: tuple[int, ...] = (int(self.worst.argmax()),)
        self.prices: dict[int, float] = {}  # of anchors, the best so far

    def step(self, watch: Stopwatch) -> Step:
        """Bound and plan for the anchors at hand; raises TooLargeError."""
        priced = Priced(Stages(self.graph, self.at), self.repeats)
        ascent = Ascent(priced, self.budget_bytes, np.array([self.prices.get(a, 0.0) for a in self.at]))
        ascent.climb(watch)
        self.prices = dict(zip(self.at, ascent.prices.tolist(), strict=True))
        if ascent.impossible:
            return Step(self.at, self.bound_ns, True, Ended.EMPTY, None, done=True)
        self.bound_ns = max(self.bound_ns, ascent.bound_ns)
        point = _fitting(priced, ascent, watch)
        if point is None:
            return Step(self.at, self.bound_ns, False, Ended.LIMIT, None)
        return self._expanded(priced, point)

    def _expanded(self, priced: Priced, point: Point) -> Step:
        sequence = expand(priced.stages, *priced.masks(point))
        plan = plan_from_sequence(self.problem, sequence)
        timeline = simulate(self.problem, plan)
        self.worst = np.maximum(*bytes_at_first_runs(self.problem, plan))
        fits = timeline.peak_bytes <= self.budget_bytes
        return Step(
            self.at,
            self.bound_ns,
            False,
            Ended.COMPLETE,
            point.time_ns,
            sequence,
            timeline.time_ns,
            timeline.peak_bytes,
            done=fits and timeline.time_ns - self.bound_ns <= WITHIN * self.total_ns,
        )

    def refine(self) -> bool:
        """Add an anchor where the last sequence holds most; whether there is one that holds more than the budget."""
        stages = Stages(self.graph, self.at)
        free = stages.low == stages.high  # comparable with all anchors
        free[list(self.at)] = False
        most = np.where(free, self.worst, 0)
        anchor = int(most.argmax())
        if most[anchor] <= self.budget_bytes:
            return False
        place = int(stages.low[anchor])
        self.at = (*self.at[:place], anchor, *self.at[place:])
        return True


def _fitting(priced: Priced, ascent: Ascent, watch: Stopwatch) -> Point | None:
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
        best = mix(priced, ascent.room, best, other)
    return best
