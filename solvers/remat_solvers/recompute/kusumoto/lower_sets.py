"""The forward graph of a training step and its lower sets: sets of nodes that are closed under predecessors.

Kusumoto et al. 2019; see `solver.py`. Nodes are the forward ops with a droppable output (see
`toolkit/graphs/dropped_values.py`), in the problem's order. Constants, and ops whose outputs stay anyway, are no nodes.
An edge u -> w means that w reads a droppable output of u. Ops that are no nodes still order the others: w comes after u
where any path leads from u to w. A set of nodes is an int with a bit per node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Mask
from remat_solvers.toolkit.graphs.bit_sets import indices_of
from remat_solvers.toolkit.graphs.dropped_values import droppable


@dataclass(frozen=True, slots=True)
class ForwardGraph:
    """The droppable forward ops, and which of them read which others."""

    ops: tuple[int, ...]  # per node: its op
    predecessors: tuple[int, ...]  # per node: the set of nodes it reads
    ancestors: tuple[int, ...]  # per node: the set of nodes from which a path leads to it, itself excluded
    bytes: tuple[int, ...]  # per node: its droppable outputs
    time_ns: tuple[int, ...]

    @property
    def everything(self) -> int:
        """The set of all nodes."""
        return (1 << len(self.ops)) - 1


def forward_graph(problem: Problem) -> ForwardGraph:
    """The graph of `problem`."""
    drop = droppable(problem)
    node: dict[int, int] = {}
    above: dict[int, int] = {}  # per forward op: the nodes from which a path leads to it
    predecessors = []
    for op in problem.forward_ops:
        inputs = [v for v in problem.ops[op].inputs if problem.producer[v] >= 0]
        reads = 0
        above[op] = 0
        for value in inputs:
            producer = problem.producer[value]
            above[op] |= above[producer] | (1 << node[producer] if producer in node else 0)
            if drop[value]:
                reads |= 1 << node[producer]
        if any(drop[v] for v in problem.ops[op].outputs):
            node[op] = len(node)
            predecessors.append(reads)
    return ForwardGraph(
        ops=tuple(node),
        predecessors=tuple(predecessors),
        ancestors=tuple(above[op] for op in node),
        bytes=tuple(sum(problem.values[v].bytes for v in problem.ops[op].outputs if drop[v]) for op in node),
        time_ns=tuple(problem.ops[op].time_ns for op in node),
    )


def all_lower_sets(graph: ForwardGraph, max_sets: int) -> list[int] | None:
    """Every lower set, smaller ones first; None where there are more than `max_sets`."""
    found = {0}
    layer = [0]
    while layer:
        larger: set[int] = set()
        for lower in layer:
            for node, ancestors in enumerate(graph.ancestors):
                if not lower >> node & 1 and not ancestors & ~lower:
                    larger.add(lower | 1 << node)
            if len(found) + len(larger) > max_sets:
                return None
        found |= larger
        layer = sorted(larger)
    return sorted(found, key=lambda s: (s.bit_count(), s))


def ancestor_sets(graph: ForwardGraph) -> list[int]:
    """The approximate family: each node with all its ancestors, the empty set, and all nodes. Smaller ones first."""
    family = {0, graph.everything, *(above | 1 << node for node, above in enumerate(graph.ancestors))}
    return sorted(family, key=lambda s: (s.bit_count(), s))


def thin_out(graph: ForwardGraph, sets: list[int], max_sets: int) -> list[int]:
    """At most `max_sets` of `sets`: the first, the last, and of even parts of the others those of smallest boundary."""
    if len(sets) <= max_sets:
        return sets
    kept_bytes = np.array(graph.bytes, dtype=np.float64) @ set_boundaries(graph, membership(sets, len(graph.ops)))
    inner = len(sets) - 2
    marks = [1 + inner * k // (max_sets - 2) for k in range(max_sets - 1)] if max_sets > 2 else []
    return [sets[0], *(sets[a + int(np.argmin(kept_bytes[a:b]))] for a, b in pairwise(marks)), sets[-1]]


def set_boundary(graph: ForwardGraph, lower: int) -> int:
    """d(L): the nodes of `lower` that are read outside of it."""
    read = 0
    for node in indices_of(graph.everything & ~lower):
        read |= graph.predecessors[node]
    return read & lower


def set_boundaries(graph: ForwardGraph, within: Mask) -> Mask:
    """[node, set]: whether the node is in d(L) of the set; `within` is the `membership` of the sets."""
    edge = np.zeros_like(within)
    for node, reads in enumerate(graph.predecessors):
        for p in indices_of(reads):
            edge[p] |= within[p] & ~within[node]
    return edge


def membership(sets: Sequence[int], count: int) -> Mask:
    """[node, set]: whether the node is in the set; `count` nodes."""
    width = max(1, -(-count // 8))
    raw = b"".join(s.to_bytes(width, "little") for s in sets)
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8).reshape(len(sets), width), axis=1, bitorder="little")
    return np.ascontiguousarray(bits[:, :count].T).astype(bool)
