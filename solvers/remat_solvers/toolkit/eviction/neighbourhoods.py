"""Costs of recomputing a value with its evicted neighbourhood: DTR's e*, and the cheap approximation of its paper.

e*(t) = the evicted ancestors that are needed to compute t, and the evicted descendants that need t, each through
evicted values only. `Neighbourhoods` keeps, per value, the sum of c0 over e* (or over its ancestors only), where c0 is
the time of a value's producer. It computes the sum anew for those values whose neighbourhood has changed. Each
direction is followed breadth first, through the nearest REACH evicted values: a value with more of them around it is
expensive anyway, and where all values have more, the replay is thrashing.

`Components` keeps the undirected connected components of the evicted values instead, in a union-find with running
sums. A value that is recomputed leaves its component, which is not split for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Indices, Ints

REACH = 16  # evicted values that a neighbourhood is followed through, in each direction


class ValueGraph:
    """A graph of values: an edge from every value that an op reads to every one that it computes; no constants."""

    def __init__(self, problem: Problem) -> None:
        ops, producer = problem.ops, problem.producer
        moving = [v.kind != "constant" for v in problem.values]
        self.producer = producer
        self.op_ns = [op.time_ns for op in ops]
        reads = [tuple(v for v in dict.fromkeys(op.inputs) if moving[v]) for op in ops]
        self.parents = [reads[p] if p >= 0 else () for p in producer]
        self.children = [
            tuple(w for reader in readers for w in ops[reader].outputs) if moving[v] else ()
            for v, readers in enumerate(problem.consumers)
        ]
        self.neighbours = [tuple(dict.fromkeys((*p, *c))) for p, c in zip(self.parents, self.children, strict=True)]

    @property
    def c0(self) -> list[int]:
        """Per value, the time of its producer."""
        return [self.op_ns[p] if p >= 0 else 0 for p in self.producer]


class Neighbourhoods:
    """Sums over e*, or over its ancestors only; an op with several outputs counts once."""

    def __init__(self, graph: ValueGraph, *, descendants: bool) -> None:
        self.graph = graph
        self.descendants = descendants
        size = len(graph.producer)
        self.evicted = bytearray(size)
        self.cost_ns = np.array(graph.c0, dtype=np.int64)  # c0(t) + sum of c0 over e*(t), where not stale
        self.stale: set[int] = set()

    def evict(self, value: int) -> None:
        self.evicted[value] = 1
        self._spread(value)

    def restore(self, value: int) -> None:
        """`value` is resident again, or will not be needed any more."""
        if self.evicted[value]:
            self._spread(value)
            self.evicted[value] = 0
        self.stale.add(value)

    def refresh(self, values: Indices) -> Ints:
        """The costs of these values, up to date."""
        if self.stale:
            op_ns = self.graph.op_ns
            for value in self.stale.intersection(values.tolist()):
                self.cost_ns[value] = sum(map(op_ns.__getitem__, self.ops(value)))
                self.stale.discard(value)
        return self.cost_ns[values]

    def ops(self, value: int) -> set[int]:
        """The producers of `value` and of e*(value)."""
        values = self._through(value, self.graph.parents)
        if self.descendants:
            values += self._through(value, self.graph.children)
        return set(map(self.graph.producer.__getitem__, values))

    def _spread(self, value: int) -> None:
        """Mark as stale every resident value with `value` in its neighbourhood (and some others)."""
        graph = self.graph
        for edges in (graph.children, graph.parents) if self.descendants else (graph.children,):
            self.stale.update(*map(edges.__getitem__, self._through(value, edges)))

    def _through(self, value: int, edges: Sequence[Sequence[int]]) -> list[int]:
        """`value` and the nearest evicted values along `edges`, breadth first."""
        evicted = self.evicted
        through, seen = [value], {value}
        for node in through:
            for neighbour in edges[node]:
                if evicted[neighbour] and neighbour not in seen:
                    seen.add(neighbour)
                    through.append(neighbour)
            if len(through) > REACH:
                break
        return through


class Components:
    """Connected components of evicted values; the cost of a value is c0 + the sums of the components next to it.

    For every component X and value r, counts[X][r] is the number of r's neighbours in X; a component of which r has a
    neighbour adds its sum to cost_ns[r] once.
    """

    def __init__(self, graph: ValueGraph) -> None:
        self.graph = graph
        self.c0 = graph.c0
        self.cost_ns = np.array(self.c0, dtype=np.int64)
        self.component = [-1] * len(self.c0)  # per evicted value
        self.members: dict[int, set[int]] = {}
        self.counts: dict[int, NDArray[np.int32]] = {}
        self.sums: dict[int, int] = {}
        self.next_name = 0

    def evict(self, value: int) -> None:
        name = self.next_name
        self.next_name += 1
        self.component[value] = name
        self.members[name] = {value}
        self.sums[name] = self.c0[value]
        counts = self.counts[name] = np.zeros(len(self.c0), dtype=np.int32)
        neighbours = list(self.graph.neighbours[value])
        counts[neighbours] = 1
        self.cost_ns[neighbours] += self.c0[value]
        for other in {self.component[n] for n in neighbours} - {-1, name}:
            name = self._merge(name, other)

    def restore(self, value: int) -> None:
        """`value` is resident again, or will not be needed any more: its c0 is subtracted, nothing is split."""
        name = self.component[value]
        if name < 0:
            return
        self.component[value] = -1
        self.members[name].discard(value)
        counts, neighbours = self.counts[name], list(self.graph.neighbours[value])
        self.cost_ns[counts > 0] -= self.c0[value]
        self.sums[name] -= self.c0[value]
        counts[neighbours] -= 1
        self.cost_ns[[n for n in neighbours if counts[n] == 0]] -= self.sums[name]
        if not self.members[name]:
            del self.members[name], self.counts[name], self.sums[name]

    def _merge(self, first: int, second: int) -> int:
        if len(self.members[first]) < len(self.members[second]):
            first, second = second, first
        touches, touched = self.counts[first] > 0, self.counts[second] > 0
        self.cost_ns[touches & ~touched] += self.sums[second]
        self.cost_ns[touched & ~touches] += self.sums[first]
        for value in self.members[second]:
            self.component[value] = first
        self.members[first] |= self.members.pop(second)
        self.counts[first] += self.counts.pop(second)
        self.sums[first] += self.sums.pop(second)
        return first
