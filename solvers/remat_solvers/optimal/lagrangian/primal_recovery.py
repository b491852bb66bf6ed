"""Combines two points of the program, part by part, into a faster one that still fits.

At the best prices the cheapest point is seldom the fastest that fits: a small rise of the price flips the decision of
all identical layers at once, from a point that needs too much memory to one that leaves some unused. The best point is
between the two: some layers are as in the one, the rest as in the other.

Take the ops whose stages differ, and connect two of them when they touch the same value. The cost of a value depends
only on the ops that touch it, so each connected part can be taken from either point, whatever is taken elsewhere: the
combination obeys rows (1) to (4), and times and bytes add up. Which parts to take from the cheaper point is a knapsack
with a row per moment. Identical parts are counted, not distinguished, so the knapsack stays small.
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

KNAPSACK_S = 1.0
KNAPSACK_GAP = 1e-5  # of the store-all time


def recover_primal(program: LagrangianProgram, capacity: Ints, fits: Point, other: Point) -> Point:
    """Return the fastest combination within `capacity`, the bytes per moment, where `fits` is within it; or `fits`."""
    parts = _parts(program, fits, other)
    if not parts:
        return fits
    graph = program.graph
    part_of_op = np.full(len(fits.computed), -1)
    for number, part in enumerate(parts):
        part_of_op[part] = number
    bits = np.arange(program.moments + 1)[:, None]
    num_more = (other.computed >> bits & 1).sum(axis=0) - (fits.computed >> bits & 1).sum(axis=0)
    time = np.bincount(part_of_op[part_of_op >= 0], (num_more * graph.time_ns)[part_of_op >= 0], len(parts))
    present = (other.present >> bits[:-1] & 1) - (fits.present >> bits[:-1] & 1)
    part_of_value = np.full(len(graph.bytes), -1)
    np.maximum.at(part_of_value, graph.reads, part_of_op[graph.readers])
    part_of_value = np.maximum(part_of_value, np.where(graph.produced, part_of_op[graph.producer], -1))
    changed = np.flatnonzero(present.any(axis=0))
    used = np.zeros((program.moments, len(parts)))
    for k in range(program.moments):
        np.add.at(used[k], part_of_value[changed], present[k, changed] * graph.bytes[changed])
    taken = _knapsack(time, used, capacity - fits.used_bytes, KNAPSACK_GAP * float(graph.time_ns.sum()))
    combined = np.where((part_of_op >= 0) & taken[part_of_op], other.computed, fits.computed)
    point = program.point(combined)
    return point if point.time_ns < fits.time_ns and (point.used_bytes <= capacity).all() else fits


def _parts(program: LagrangianProgram, one: Point, two: Point) -> list[list[int]]:
    """The connected sets of ops whose stages differ between two points."""
    graph = program.graph
    differs = (one.computed != two.computed).tolist()
    root = list(range(len(differs)))

    def find(op: int) -> int:
        while root[op] != op:
            root[op] = op = root[root[op]]
        return op

    first: dict[int, int] = {}
    for index, op in enumerate(graph.problem.ops):
        if differs[index]:
            for value in (*graph.inputs[index], *op.outputs):
                root[find(index)] = find(first.setdefault(value, index))
    parts: dict[int, list[int]] = defaultdict(list)
    for index, different in enumerate(differs):
        if different:
            parts[find(index)].append(index)
    return list(parts.values())


def _knapsack(time: NDArray[Any], used: Floats, capacity: Ints, gap: float) -> Mask:
    """Mask of the parts to take: those of minimal total time within the capacity."""
    import highspy

    kinds, kind, count = np.unique(np.vstack((time, used)), axis=1, return_inverse=True, return_counts=True)
    kind = kind.ravel()
    unit = max(1.0, float(np.abs(kinds[0]).max()))
    sizes = np.maximum(1.0, np.abs(kinds[1:]).max(axis=1, initial=0))
    num_kinds = kinds.shape[1]
    rows = Rows()
    rows.add_dense(kinds[1:] / sizes[:, None], -np.inf, capacity / sizes)
    highs = new_highs(time_limit=KNAPSACK_S, mip_rel_gap=0.0, mip_abs_gap=gap / unit)
    highs.passModel(rows.to_highs(kinds[0] / unit, count.astype(np.float64), np.ones(num_kinds, dtype=bool)))
    highs.run()
    left = np.zeros(num_kinds, dtype=np.int64)
    if highs.getInfo().primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible):
        left = np.round(np.array(highs.getSolution().col_value)).astype(np.int64)
    taken = np.zeros(len(kind), dtype=bool)
    for part, k in enumerate(kind.tolist()):
        if left[k] > 0:
            left[k] -= 1
            taken[part] = True
    return taken
