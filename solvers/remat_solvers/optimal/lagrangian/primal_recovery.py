"""Two points of the program, mixed: some parts of the step as in one, the others as in the other.

At the best prices the cheapest point is seldom the plan sought: a small rise of the price makes all alike layers change
their mind at once, from a point that needs too much memory to one that leaves some unused. What fits best is between
the two: some layers as in the one, the rest as in the other.

Take the ops whose runs differ, and call two of them joined when they touch the same value. What a value costs depends
only on the ops that touch it, so each connected part can be taken from either point, whatever is taken elsewhere: the
mixture obeys rows (1) to (4), and times and bytes add up. Which parts to take from the cheaper point is a knapsack with
a row per moment. Alike parts are counted, not told apart, so it stays small.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remat_solvers.optimal.lagrangian.program import LagrangianProgram, Point
from remat_solvers.toolkit.arrays import Floats, Ints, Mask
from remat_solvers.toolkit.programs.highs import new_highs
from remat_solvers.toolkit.programs.rows import Rows

__all__ = ["recover_primal"]

KNAPSACK_S = 1.0
KNAPSACK_GAP = 1e-5  # of the store-all time


def recover_primal(priced: LagrangianProgram, room: Ints, fits: Point, other: Point) -> Point:
    """The fastest mixture that fits into `room`, where `fits` does; or `fits`."""
    parts = _parts(priced, fits, other)
    if not parts:
        return fits
    graph = priced.graph
    owner = np.full(len(fits.runs), -1)
    for number, part in enumerate(parts):
        owner[part] = number
    bits = np.arange(priced.moments + 1)[:, None]
    runs = (other.runs >> bits & 1).sum(axis=0) - (fits.runs >> bits & 1).sum(axis=0)
    time = np.bincount(owner[owner >= 0], (runs * graph.time_ns)[owner >= 0], len(parts))
    stays = (other.stays >> bits[:-1] & 1) - (fits.stays >> bits[:-1] & 1)
    home = np.full(len(graph.bytes), -1)
    home[graph.reads] = np.maximum(home[graph.reads], -1)
    np.maximum.at(home, graph.reads, owner[graph.readers])
    home = np.maximum(home, np.where(graph.produced, owner[graph.producer], -1))
    moved = np.flatnonzero(stays.any(axis=0))
    used = np.zeros((priced.moments, len(parts)))
    for k in range(priced.moments):
        np.add.at(used[k], home[moved], stays[k, moved] * graph.bytes[moved])
    taken = _knapsack(time, used, room - fits.used_bytes, KNAPSACK_GAP * float(graph.time_ns.sum()))
    mixed = np.where((owner >= 0) & taken[owner], other.runs, fits.runs)
    point = priced.point(mixed)
    return point if point.time_ns < fits.time_ns and (point.used_bytes <= room).all() else fits


def _parts(priced: LagrangianProgram, one: Point, two: Point) -> list[list[int]]:
    """The connected sets of ops whose runs differ."""
    graph = priced.graph
    differs = (one.runs != two.runs).tolist()
    root = list(range(len(differs)))

    def find(op: int) -> int:
        while root[op] != op:
            root[op] = op = root[root[op]]
        return op

    first: dict[int, int] = {}
    for op, known in enumerate(graph.problem.ops):
        if differs[op]:
            for value in (*graph.inputs[op], *known.outputs):
                root[find(op)] = find(first.setdefault(value, op))
    parts: dict[int, list[int]] = defaultdict(list)
    for op, there in enumerate(differs):
        if there:
            parts[find(op)].append(op)
    return list(parts.values())


def _knapsack(time: NDArray[Any], used: Floats, room: Ints, gap: float) -> Mask:
    """Which parts to take: the least time within the room."""
    import highspy

    kinds, kind, count = np.unique(np.vstack((time, used)), axis=1, return_inverse=True, return_counts=True)
    kind = kind.ravel()
    unit = max(1.0, float(np.abs(kinds[0]).max()))
    sizes = np.maximum(1.0, np.abs(kinds[1:]).max(axis=1, initial=0))
    many = kinds.shape[1]
    rows = Rows()
    rows.add_dense(kinds[1:] / sizes[:, None], -np.inf, room / sizes)
    highs = new_highs(time_limit=KNAPSACK_S, mip_rel_gap=0.0, mip_abs_gap=gap / unit)
    highs.passModel(rows.to_highs(kinds[0] / unit, count.astype(np.float64), np.ones(many, dtype=bool)))
    highs.run()
    left = np.zeros(many, dtype=np.int64)
    if highs.getInfo().primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible):
        left = np.round(np.array(highs.getSolution().col_value)).astype(np.int64)
    taken = np.zeros(len(kind), dtype=bool)
    for part, k in enumerate(kind.tolist()):
        if left[k] > 0:
            left[k] -= 1
            taken[part] = True
    return taken
