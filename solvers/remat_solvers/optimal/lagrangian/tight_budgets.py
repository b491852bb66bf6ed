"""Bounds at budgets so tight that no few moments give a plan: more moments, in a lenient program.

The best prices come with weights of points (the dual of the cutting planes' LP): the mixture in which the points would
fit at the moments if layers could be split. A price has most effect at the op whose first computation has most bytes on
the device in that mixture, decoded; the next anchor is that op. When the tables get too large, the anchor of the lowest
price is removed for good. The bound of every set of anchors holds, so the best is kept; the search ends when it has not
risen for `PATIENCE` rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from remat_solvers.optimal.lagrangian.dual_ascent import DualAscent
from remat_solvers.optimal.lagrangian.elimination import TooLargeError
from remat_solvers.optimal.lagrangian.program import LagrangianProgram
from remat_solvers.optimal.lagrangian.repeated_blocks import Run
from remat_solvers.optimal.program.decoding import bytes_at_first_computations, decode_point
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.toolkit.arrays import Floats

PATIENCE = 4  # rounds without a better bound
MIN_GAIN = 1e-4  # of the store-all time: a bound that rises by less has not risen
MIN_WEIGHT = 1e-6


def tight_bounds(
    graph: OpGraph, budget_bytes: int, repeats: Sequence[Run], watch: Stopwatch
) -> Iterator[tuple[tuple[int, ...], int, bool]]:
    """Yield per round the anchors, a bound in ns, and whether it is proven that no plan fits."""
    problem = graph.problem
    total_ns = int(graph.time_ns.sum())
    new = int(bytes_at_first_computations(problem, store_all(problem))[0].argmax())
    anchors: tuple[int, ...] = (new,)
    prices: dict[int, float] = {}
    removed: set[int] = set()
    best_ns, stale = 0, 0
    while anchors and stale <= PATIENCE and not watch.expired:
        stages = Stages(graph, anchors)
        try:
            program = LagrangianProgram(stages, repeats, lenient=True)
        except TooLargeError:
            dropped = min((a for a in anchors if a != new), key=lambda a: prices.get(a, 0.0), default=new)
            removed.add(dropped)
            anchors = tuple(a for a in anchors if a != dropped)
            continue
        ascent = DualAscent(program, budget_bytes, np.array([prices.get(a, 0.0) for a in anchors]))
        ascent.climb(watch)
        if ascent.impossible:
            yield anchors, best_ns, True
            return
        stale = 0 if ascent.bound_ns > best_ns + MIN_GAIN * total_ns else stale + 1
        best_ns = max(best_ns, ascent.bound_ns)
        yield anchors, best_ns, False
        prices = dict(zip(anchors, ascent.prices.tolist(), strict=True))
        held = np.where(stages.low == stages.high, _mean_bytes(program, ascent), 0.0)
        held[[*anchors, *removed]] = 0.0
        new = int(held.argmax())
        if held[new] <= budget_bytes:
            return
        place = int(stages.low[new])
        anchors = (*anchors[:place], new, *anchors[place:])


def _mean_bytes(program: LagrangianProgram, ascent: DualAscent) -> Floats:
    """Per op, the bytes on the device during its first computation, on average over the points by their weights."""
    problem = program.graph.problem
    held, total = np.zeros(len(problem.ops)), 0.0
    for weight, point in zip(ascent.weights.tolist(), ascent.points, strict=True):
        if weight > MIN_WEIGHT:
            plan = plan_from_sequence(problem, decode_point(program.stages, *program.masks(point)))
            held += weight * bytes_at_first_computations(problem, plan)[0]
            total += weight
    return held / total if total else held
