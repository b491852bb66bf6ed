"""Estimates the memory at every op for a fractional point of the program, to find the op that should be an anchor next.

Were op t of stage k an anchor, stage k would be two, and the least part of value d that is resident at t follows from
the point, as long as it recomputes no more than it does. With r = R[p(d), k] where p(d) was first computed in an
earlier stage, all of which may come after t:

    1                                   t produces or reads d, or d was computed in this stage and is read in it after t
    1 - r, or what the next line says   d was computed before and is read in this stage by a first computation after t
    S[d, k] - r                         it is not; S[d, k] where d was computed in this stage

The sum of bytes times these parts, plus the workspace, is the fractional memory at t. It is the memory itself where the
point is that of a plan without recomputations.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from remat_solvers.optimal.program.interval_cuts import values_at
from remat_solvers.optimal.program.program import StageProgram
from remat_solvers.toolkit.arrays import Floats, Ints


def fractional_memory(program: StageProgram, point: Floats) -> Ints:
    """Per op, the bytes during its first computation, constants and reserve included; for the given order."""
    graph, stages = program.graph, program.stages
    count = len(graph.time_ns)
    edges = np.searchsorted(stages.low, np.arange(len(stages.anchors) + 2))
    size = graph.bytes.astype(np.float64)
    steps = np.zeros(count + 1)

    def hold(first: Ints, last: Ints, held_bytes: Floats) -> None:
        """Add bytes from op `first` to op `last`, where that is not empty."""
        nonempty = first <= last
        np.add.at(steps, first[nonempty], held_bytes[nonempty])
        np.add.at(steps, last[nonempty] + 1, -held_bytes[nonempty])

    for k, (begin, end) in enumerate(pairwise(edges)):
        after = values_at(point, program.present[k])
        recomputed = np.where(graph.produced, values_at(point, program.computed[k])[graph.producer], 0.0)
        last = np.full(len(size), begin - 1)  # first computation that reads the value in this stage
        reads_here = np.flatnonzero((graph.readers >= begin) & (graph.readers < end))
        np.maximum.at(last, graph.reads[reads_here], graph.readers[reads_here])
        new = np.flatnonzero(graph.produced & (graph.producer >= begin) & (graph.producer < end))
        ends = np.maximum(last[new], graph.producer[new])
        hold(graph.producer[new], ends, size[new])
        hold(ends + 1, np.full(len(new), end - 1), size[new] * after[new])
        old = np.flatnonzero(graph.produced & (graph.producer < begin))
        later = np.zeros(len(size))
        later[old] = np.clip(after[old] - recomputed[old], 0.0, 1.0)
        before = np.maximum(np.clip(1.0 - recomputed, 0.0, 1.0), later)
        hold(np.full(len(old), begin), last[old], (size * before)[old])
        hold(last[old] + 1, np.full(len(old), end - 1), (size * later)[old])
        reads_old = reads_here[graph.producer[graph.reads[reads_here]] < begin]
        values, readers = graph.reads[reads_old], graph.readers[reads_old]
        hold(readers, readers, (size * (1.0 - before))[values])
    workspace = np.array([op.workspace_bytes for op in graph.problem.ops], dtype=np.int64)
    return np.rint(np.cumsum(steps)[:count]).astype(np.int64) + workspace + graph.static_bytes
