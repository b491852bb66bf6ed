"""Bounds at budgets so tight that no few moments make a plan: more moments, in a lenient program.

The best prices come with weights of points (the dual of the cutting planes' LP): the mixture in which the points would
fit at the moments if layers could be split. Where that mixture, expanded, holds most at first runs of other ops is
where a price would bite; an anchor is added there. When the tables get too large, the anchor of the lowest price goes,
for good. Every anchors' bound holds, so the best is kept; it ends when it has not risen for a while.
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

__all__ = ["tight_bounds"]

PATIENCE = 4  # rounds without a better bound
BETTER = 1e-4  # of the store-all time
LEAST_WEIGHT = 1e-6


def tight_bounds(
    graph: OpGraph, budget_bytes: int, runs: Sequence[Run], watch: Stopwatch
) -> Iterator[tuple[tuple[int, ...], int, bool]]:
    """Per round: the anchors, a bound in ns, and whether no plan fits at all."""
    problem = graph.problem
    total_ns = int(graph.time_ns.sum())
    new = int(bytes_at_first_computations(problem, store_all(problem))[0].argmax())
    at: tuple[int, ...] = (new,)
    prices: dict[int, float] = {}
    gone: set[int] = set()
    best_ns, stale = 0, 0
    while at and stale <= PATIENCE and not watch.expired:
        stages = Stages(graph, at)
        try:
            priced = LagrangianProgram(stages, runs, lenient=True)
        except TooLargeError:
            dropped = min((a for a in at if a != new), key=lambda a: prices.get(a, 0.0), default=new)
            gone.add(dropped)
            at = tuple(a for a in at if a != dropped)
            continue
        ascent = DualAscent(priced, budget_bytes, np.array([prices.get(a, 0.0) for a in at]))
        ascent.climb(watch)
        if ascent.impossible:
            yield at, best_ns, True
            return
        stale = 0 if ascent.bound_ns > best_ns + BETTER * total_ns else stale + 1
        best_ns = max(best_ns, ascent.bound_ns)
        yield at, best_ns, False
        prices = dict(zip(at, ascent.prices.tolist(), strict=True))
        held = np.where(stages.low == stages.high, _held(priced, ascent), 0.0)
        held[[*at, *gone]] = 0.0
        new = int(held.argmax())
        if held[new] <= budget_bytes:
            return
        place = int(stages.low[new])
        at = (*at[:place], new, *at[place:])


def _held(priced: LagrangianProgram, ascent: DualAscent) -> Floats:
    """Per op, the bytes on the device during its first run, on average over the points by their weights."""
    problem = priced.graph.problem
    held, total = np.zeros(len(problem.ops)), 0.0
    for weight, point in zip(ascent.weights.tolist(), ascent.points, strict=True):
        if weight > LEAST_WEIGHT:
            plan = plan_from_sequence(problem, decode_point(priced.stages, *priced.masks(point)))
            held += weight * bytes_at_first_computations(problem, plan)[0]
            total += weight
    return held / total if total else held
