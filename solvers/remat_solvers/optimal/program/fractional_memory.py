"""Where a fractional point of the program needs more memory than there is: the next anchor.

Were op t of stage k an anchor, stage k would be two, and the least part of value d that is there at t follows from the
point, as long as it recomputes no more than it does. With r = R[p(d), k] where p(d) first ran in an earlier stage, all
of which may come after t:

    1                                   t makes or reads d, or d was made in this stage and is read in it after t
    1 - r, or what the next line says   d was made before and is read in this stage by a first run after t
    S[d, k] - r                         it is not; S[d, k] where d was made in this stage

The sum of bytes times these parts, beside the workspace, is the pressure at t. It is the memory itself where the point
is a plan's that repeats nothing.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from remat_solvers.optimal.program.interval_cuts import values_at
from remat_solvers.optimal.program.stages import Program
from remat_solvers.toolkit.arrays import Floats, Ints

__all__ = ["pressure"]


def pressure(program: Program, point: Floats) -> Ints:
    """Per op, the bytes during its first run, constants and reserve included; for the given order."""
    graph, stages = program.graph, program.stages
    count = len(graph.time_ns)
    edges = np.searchsorted(stages.low, np.arange(len(stages.at) + 2))
    size = graph.bytes.astype(np.float64)
    steps = np.zeros(count + 1)

    def hold(first: Ints, last: Ints, held_bytes: Floats) -> None:
        """Bytes from op `first` to op `last`, where there are any ops between."""
        there = first <= last
        np.add.at(steps, first[there], held_bytes[there])
        np.add.at(steps, last[there] + 1, -held_bytes[there])

    for k, (begin, end) in enumerate(pairwise(edges)):
        after = values_at(point, program.stay[k])
        again = np.where(graph.made, values_at(point, program.run[k])[graph.producer], 0.0)
        last = np.full(len(size), begin - 1)  # first run that reads the value in this stage
        here = np.flatnonzero((graph.readers >= begin) & (graph.readers < end))
        np.maximum.at(last, graph.reads[here], graph.readers[here])
        made = np.flatnonzero(graph.made & (graph.producer >= begin) & (graph.producer < end))
        ends = np.maximum(last[made], graph.producer[made])
        hold(graph.producer[made], ends, size[made])
        hold(ends + 1, np.full(len(made), end - 1), size[made] * after[made])
        old = np.flatnonzero(graph.made & (graph.producer < begin))
        later = np.zeros(len(size))
        later[old] = np.clip(after[old] - again[old], 0.0, 1.0)
        before = np.maximum(np.clip(1.0 - again, 0.0, 1.0), later)
        hold(np.full(len(old), begin), last[old], (size * before)[old])
        hold(last[old] + 1, np.full(len(old), end - 1), (size * later)[old])
        reads = here[graph.producer[graph.reads[here]] < begin]
        values, readers = graph.reads[reads], graph.readers[reads]
        hold(readers, readers, (size * (1.0 - before))[values])
    workspace = np.array([op.workspace_bytes for op in graph.problem.ops], dtype=np.int64)
    return np.rint(np.cumsum(steps)[:count]).astype(np.int64) + workspace + graph.floor_bytes
