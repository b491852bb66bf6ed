"""The dynamic program of Kusumoto et al. over lower sets and overheads; `solver.py` states the method.

    opt[L, t] = smallest m(U) of all sequences that end with L, have overhead t and stay within B
    opt[L', t + T(V' - d(L'))] <- opt[L, t] + m(d(L') - L)     for L < L', V' = L' - L, within B

L' adds d(L') - L to U, since a node of L that is read outside of L' is read outside of L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from remat_solvers.recompute.kusumoto.lower_sets import ForwardGraph, membership, set_boundaries, set_boundary
from remat_solvers.toolkit.arrays import Floats, Mask
from remat_solvers.toolkit.graphs.bit_sets import indices_of

Strategy: TypeAlias = Literal["time-centric", "memory-centric"]

STRATEGIES: tuple[Strategy, ...] = ("time-centric", "memory-centric")


def binned_times(times_ns: Sequence[int], bins: int) -> list[int]:
    """The times in whole bins, of which their sum has `bins`; unchanged where the sum is less than `bins` ns.

    The running sum is rounded, not each time, so that errors do not add up over consecutive nodes.
    """
    total = sum(times_ns)
    if total <= bins:
        return list(times_ns)
    running = before = 0
    binned = []
    for time_ns in times_ns:
        running += time_ns
        rounded = (2 * running * bins + total) // (2 * total)
        binned.append(rounded - before)
        before = rounded
    return binned


def _outside(sets: Floats, inside: Floats, weights: Sequence[int]) -> Floats:
    """[S, L]: the weight of S - L."""
    return (sets * np.array(weights, dtype=np.float64)) @ (1 - inside.T)


def _all_reader_bytes(graph: ForwardGraph, within: Mask) -> Floats:
    """`_reader_bytes` of every set, node by node over all sets."""
    beside = np.zeros_like(within)
    total = np.zeros(within.shape[1])
    for node, mask in enumerate(graph.predecessors):
        reads = list(indices_of(mask))
        reader = within[reads].any(axis=0) & ~within[node]
        total += reader * float(graph.bytes[node])
        for p in reads:
            beside[p] |= reader & ~within[p]
    return total + np.array(graph.bytes, dtype=np.float64) @ beside


def segment_bytes(graph: ForwardGraph, sets: Sequence[int]) -> list[int]:
    """The memory of each segment of the sequence `sets`, without the empty set, by the paper's formula."""
    kept = before = 0
    memory = []
    for lower in sets:
        memory.append(_bytes(graph, kept) + 2 * _bytes(graph, lower & ~before) + _reader_bytes(graph, lower))
        kept |= set_boundary(graph, lower)
        before = lower
    return memory


def _reader_bytes(graph: ForwardGraph, lower: int) -> int:
    """m(d+(L) - L) + m(d-(d+(L)) - L): bytes outside of L that the backward of a segment ending with L needs."""
    readers = [n for n in indices_of(graph.everything & ~lower) if graph.predecessors[n] & lower]
    beside = 0
    for node in readers:
        beside |= graph.predecessors[node] & ~lower
    return sum(graph.bytes[n] for n in readers) + _bytes(graph, beside)


def _bytes(graph: ForwardGraph, nodes: int) -> int:
    return sum(graph.bytes[node] for node in indices_of(nodes))


class LowerSetProgram:
    """The dynamic program of a graph over a family of lower sets, for any B."""

    def __init__(self, graph: ForwardGraph, sets: Sequence[int], *, bins: int = 256, keep_last: bool = False) -> None:
        """`sets`: smaller ones first, from the empty set to all nodes. `bins`: parts in which overheads are counted."""
        self.graph = graph
        self.sets = list(sets)
        time = binned_times(graph.time_ns, bins)
        self.bins = sum(time)
        within = membership(self.sets, len(graph.ops))
        inside, edges = within.T.astype(np.float64), set_boundaries(graph, within).T.astype(np.float64)
        count = inside.sum(axis=1)
        smaller = (inside @ inside.T == count[None, :]) & (count[None, :] < count[:, None])  # [L', L]: L < L'
        kept_bytes = _outside(edges, inside, graph.bytes)  # m(d(L') - L)
        lost_time = _outside(inside, inside, time) - _outside(edges, inside, time)  # T(V' - d(L'))
        if keep_last:
            lost_time[-1] = 0
        need_bytes = 2 * _outside(inside, inside, graph.bytes) + _all_reader_bytes(graph, within)[:, None]
        self.before = [np.flatnonzero(row) for row in smaller]  # per L' the sets L < L', in the order of the next three
        self.new = [row[b] for row, b in zip(kept_bytes, self.before, strict=True)]
        self.shift = [row[b].astype(np.intp) for row, b in zip(lost_time, self.before, strict=True)]
        self.need = [row[b] for row, b in zip(need_bytes, self.before, strict=True)]  # of the segment, without m(U)

    def smallest_kept_bytes(self, limit: float) -> float:
        """The smallest m(U) of any sequence within B = `limit`, at any overhead; inf where none is."""
        smallest = np.full(len(self.sets), np.inf)
        smallest[0] = 0
        for k in range(1, len(self.sets)):
            kept = smallest[self.before[k]]
            options = np.where(kept + self.need[k] <= limit, kept + self.new[k], np.inf)
            smallest[k] = options.min(initial=np.inf)
        return float(smallest[-1])

    def smallest_limit(self) -> int:
        """The smallest B for which a sequence exists, by bisection."""
        low, high = 0, self.largest_limit()
        while low < high:
            middle = (low + high) // 2
            if np.isfinite(self.smallest_kept_bytes(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def largest_limit(self) -> int:
        """A B that excludes no sequence: no term of the formula exceeds all memory, and one counts twice."""
        return int(sum(self.graph.bytes)) * 5

    def table(self, limit: float) -> Floats:
        """opt[L, t] for B = `limit`; t in bins."""
        width = self.bins + 1
        cost = np.full((len(self.sets), 2 * width), np.inf)  # the left half, infinite, is for overheads below 0
        cost[0, width] = 0
        flat = cost.reshape(-1)
        bins = np.arange(width)
        for k in range(1, len(self.sets)):
            if not len(self.before[k]):
                continue
            start = self.before[k] * (2 * width) + width - self.shift[k]
            kept = np.take(flat, start[:, None] + bins, mode="clip")
            kept[kept > (limit - self.need[k])[:, None]] = np.inf
            kept += self.new[k][:, None]
            np.min(kept, axis=0, out=cost[k, width:])
        return cost[:, width:]

    def sequence(self, table: Floats, limit: float, strategy: Strategy) -> list[int] | None:
        """The lower sets, without the empty one, of the smallest or largest overhead within B; None where none is."""
        finite = np.flatnonzero(np.isfinite(table[-1]))
        if not len(finite):
            return None
        k, t = len(self.sets) - 1, int(finite[0] if strategy == "time-centric" else finite[-1])
        chosen: list[int] = []
        while k:
            chosen.append(self.sets[k])
            earlier = t - self.shift[k]
            kept = np.where(earlier >= 0, table[self.before[k], np.maximum(earlier, 0)], np.inf)
            kept[kept > limit - self.need[k]] = np.inf
            best = int(np.argmin(kept + self.new[k]))
            k, t = int(self.before[k][best]), int(earlier[best])
        return chosen[::-1]


def reference_front(graph: ForwardGraph, sets: Sequence[int], limit: int, *, keep_last: bool = False) -> dict[int, int]:
    """Overhead -> smallest m(U) over all sequences within B, one by one, for tests of `LowerSetProgram`."""
    front: dict[int, dict[int, int]] = {0: {0: 0}}
    for lower in sets[1:]:
        options: dict[int, int] = {}
        edge, reader_bytes = set_boundary(graph, lower), _reader_bytes(graph, lower)
        for before, overheads in front.items():
            if before & ~lower:
                continue
            inside = lower & ~before
            lost = sum(graph.time_ns[node] for node in indices_of(inside & ~edge))
            if keep_last and lower == graph.everything:
                lost = 0
            for overhead, kept in overheads.items():
                if kept + 2 * _bytes(graph, inside) + reader_bytes <= limit:
                    new = kept + _bytes(graph, edge & ~before)
                    options[overhead + lost] = min(new, options.get(overhead + lost, new))
        front[lower] = options
    return front[graph.everything]
