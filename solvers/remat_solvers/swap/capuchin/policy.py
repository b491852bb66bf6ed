"""Chooses by Capuchin's policy which tensors are evicted, and which of them are swapped, which recomputed.

The rules are in solver.py. Accesses are op indices of the measured iteration, times those of ops that never wait.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.arrays import Floats
from remat_solvers.toolkit.transfers.intervals import Clock


@dataclass
class Candidate:
    """A tensor that may be evicted after one access and swapped in or recomputed before the next."""

    value: int
    size_bytes: int
    evicted_access: int  # op
    back_access: int  # op
    sources: set[int]  # values in memory at the back-access from which it is computed
    time_ns: int  # of computing it from the sources
    ext_ns: int = 0  # of computing it for others
    recomputable: bool = True  # False: it can be swapped only

    @property
    def msps(self) -> float:
        """Bytes saved per ns of recomputation."""
        return self.size_bytes / max(1, self.overhead_ns)

    @property
    def overhead_ns(self) -> float:
        """The time that recomputing it costs."""
        return self.time_ns + self.ext_ns if self.recomputable else inf


class Lanes:
    """The swaps chosen so far: one transfer at a time per direction, SwapTime = bytes / bandwidth."""

    def __init__(self, problem: Problem) -> None:
        assert problem.link is not None
        self.link = problem.link
        self.clock = Clock(problem, range(len(problem.ops)))
        self.chosen: Floats = np.zeros((4, 0))  # a column each: evicted, back, swap out, swap in, in ns
        self.exposed_ns = 0

    def swap_times(self, candidate: Candidate) -> tuple[int, int]:
        """The SwapTimes of the copies out and in, in ns."""
        rates = self.link.to_host_bytes_per_s, self.link.to_device_bytes_per_s
        return copy_ns(candidate.size_bytes, rates[0], 0), copy_ns(candidate.size_bytes, rates[1], 0)

    def free_ns(self, candidate: Candidate) -> int:
        """FT = SwapInStart - SwapOutEnd on an idle link. Negative: so much of the transfers is exposed."""
        swap_out, swap_in = self.swap_times(candidate)
        return (
            self.clock.starts[candidate.back_access] - swap_in - (self.clock.ends[candidate.evicted_access] + swap_out)
        )

    def exposed_with(self, candidate: Candidate) -> int:
        """The longest exposed time of any swap, with `candidate` among them.

        Swaps out run as early, swaps in as late as the others allow. A wait delays everything that comes later, so the
        exposed times of several swaps are not added up.
        """
        return _exposed_ns(self._with(candidate))

    def add(self, candidate: Candidate) -> None:
        """Add the swap of a candidate to those chosen."""
        self.chosen = self._with(candidate)
        self.exposed_ns = _exposed_ns(self.chosen)

    def _with(self, candidate: Candidate) -> Floats:
        times = self.clock.ends[candidate.evicted_access], self.clock.starts[candidate.back_access]
        return np.column_stack((self.chosen, (*times, *self.swap_times(candidate))))


def _exposed_ns(swaps: Floats) -> int:
    evicted, back, swap_out, swap_in = swaps
    order = np.argsort(evicted, kind="stable")
    total = np.cumsum(swap_out[order])
    out_end = np.empty_like(evicted)
    out_end[order] = total + np.maximum.accumulate(evicted[order] - (total - swap_out[order]))
    order = np.argsort(-back, kind="stable")
    total = np.cumsum(swap_in[order])
    in_start = np.empty_like(back)
    in_start[order] = np.minimum.accumulate(back[order] + (total - swap_in[order])) - total
    return max(0, int((out_end - in_start).max()))


class EvictionPolicy:
    """Chooses the next tensor to evict: by the hybrid policy if there are lanes, else by recomputation (algorithm 2).

    taken: the recomputed tensors; swapped: the swapped ones, at most `most_swaps`; open: those not evicted so far.
    """

    def __init__(self, candidates: list[Candidate], lanes: Lanes | None = None, most_swaps: int | None = None) -> None:
        self.open = {c.value: c for c in candidates}
        self.taken: dict[int, Candidate] = {}
        self.swapped: dict[int, Candidate] = {}
        self.lanes = lanes
        self.swaps_left = len(candidates) if most_swaps is None else most_swaps
        self.dependents: dict[int, set[int]] = {}  # source -> candidates and taken ones that have it
        for candidate in candidates:
            for source in candidate.sources:
                self.dependents.setdefault(source, set()).add(candidate.value)
        self._free: list[Candidate] = []  # those whose swap costs nothing, the last first
        self._swap_ns: dict[int, int] = {}  # overhead of swapping, as last computed
        if lanes is not None:
            self._free = sorted((c for c in candidates if lanes.free_ns(c) >= 0), key=lanes.free_ns)
            self._swap_ns = {c.value: max(0, -lanes.free_ns(c)) for c in candidates}
        self._heap = [(-self._per_ns(c), c.value) for c in candidates]
        heapq.heapify(self._heap)

    def take(self) -> Candidate | None:
        """Evict one of the open tensors; None: none can be evicted.

        First, in the order of falling FT, come those whose swap leaves nothing exposed. Then comes the tensor that
        saves the most bytes per ns of the smaller of its two overheads (MSPS if that is recomputation). Ties are broken
        by the order of values.
        """
        lanes = self.lanes
        while self._free and self.swaps_left and lanes is not None:
            target = self._free.pop()
            if lanes.exposed_with(target) == 0:
                return self._swap(target, lanes)
        if lanes is not None and not self.swaps_left:
            self._stop_swapping()
        while self._heap:
            negative, value = heapq.heappop(self._heap)
            if value not in self.open:
                continue
            target = self.open[value]
            if self.lanes is not None:
                self._swap_ns[value] = max(0, self.lanes.exposed_with(target) - self.lanes.exposed_ns)
            if -negative != self._per_ns(target):
                heapq.heappush(self._heap, (-self._per_ns(target), value))
            elif self.lanes is not None and self._swap_ns[value] <= target.overhead_ns:
                return self._swap(target, self.lanes)
            else:
                return self._recompute(target)
        return None

    def _stop_swapping(self) -> None:
        """Evict by recomputation alone from now on."""
        self.lanes = None
        self._swap_ns.clear()
        self.open = {value: c for value, c in self.open.items() if c.recomputable}
        self._heap = [(-self._per_ns(c), c.value) for c in self.open.values()]
        heapq.heapify(self._heap)

    def _per_ns(self, candidate: Candidate) -> float:
        """Bytes saved per ns of overhead."""
        swap_ns = self._swap_ns.get(candidate.value)
        if swap_ns is None:
            return candidate.msps
        return candidate.size_bytes / max(1, min(swap_ns, candidate.overhead_ns))

    def _swap(self, target: Candidate, lanes: Lanes) -> Candidate:
        lanes.add(target)
        self.swaps_left -= 1
        self.swapped[target.value] = self.open.pop(target.value)
        return target

    def _recompute(self, target: Candidate) -> Candidate:
        del self.open[target.value]
        dependents = self.dependents.pop(target.value, set())
        needed_again = 0
        for name in dependents & self.taken.keys():
            self._through(self.taken[name], target)
            needed_again += 1
        self.taken[target.value] = target
        for name in dependents & self.open.keys():
            candidate = self.open[name]
            self._through(candidate, target)
            times = len(self.dependents.get(name, set()) & self.taken.keys())
            self._change(candidate, candidate.time_ns * times)
        for name in target.sources & self.open.keys():
            candidate = self.open[name]
            self._change(candidate, candidate.time_ns * (1 + needed_again))
        return target

    def _through(self, candidate: Candidate, target: Candidate) -> None:
        """`candidate` is computed through `target`, which is no longer in memory."""
        candidate.sources.discard(target.value)
        candidate.sources |= target.sources
        candidate.time_ns += target.time_ns
        for source in target.sources:
            self.dependents.setdefault(source, set()).add(candidate.value)

    def _change(self, candidate: Candidate, ext_ns: int) -> None:
        candidate.ext_ns = ext_ns
        heapq.heappush(self._heap, (-self._per_ns(candidate), candidate.value))


def candidates_of(problem: Problem, budget_bytes: int) -> list[Candidate]:
    """The tensors that can be evicted in the peak period of the unmodified step."""
    above = peak_ops(problem, budget_bytes)
    if not above:
        return []
    crowded = list(accumulate((op in above for op in range(len(problem.ops))), initial=0))
    starts = list(accumulate((max(1, op.time_ns) for op in problem.ops), initial=0))
    last = [max(readers, default=-1) for readers in problem.consumers]
    found: list[Candidate] = []
    for value, tensor in enumerate(problem.values):
        producer = problem.producer[value]
        if producer < 0 or not tensor.bytes or value in problem.results:
            continue
        accesses = (producer, *problem.consumers[value])
        gaps = [(a, b) for a, b in pairwise(accesses) if crowded[b] > crowded[a + 1]]
        if gaps:
            evicted, back = max(gaps, key=lambda gap: starts[gap[1]] - starts[gap[0]])
            sources, time_ns = _lineage(problem, value, back, last)
            if sources is not None:
                found.append(Candidate(value, tensor.bytes, evicted, back, sources, time_ns))
            elif problem.link is not None:
                found.append(Candidate(value, tensor.bytes, evicted, back, set(), 0, recomputable=False))
    return found


def peak_ops(problem: Problem, budget_bytes: int) -> set[int]:
    """The ops during which the unmodified step is above the budget."""
    ends: list[list[int]] = [[] for _ in problem.ops]
    kept = set(problem.results)
    for value, readers in enumerate(problem.consumers):
        if problem.producer[value] >= 0 and value not in kept:
            ends[max((problem.producer[value], *readers))].append(value)
    held = problem.static_bytes
    above: set[int] = set()
    for index, op in enumerate(problem.ops):
        held += sum(problem.values[v].bytes for v in op.outputs)
        if held + op.workspace_bytes > budget_bytes:
            above.add(index)
        held -= sum(problem.values[v].bytes for v in ends[index])
    return above


def _lineage(problem: Problem, value: int, back: int, last: list[int]) -> tuple[set[int] | None, int]:
    """The values in memory at op `back` from which `value` can be recomputed, and the time; None: it cannot be."""
    results = set(problem.results)
    sources: set[int] = set()
    ops = {problem.producer[value]}
    stack = list(ops)
    while stack:
        op = stack.pop()
        if not problem.ops[op].recomputable:
            return None, 0
        for read in problem.ops[op].inputs:
            producer = problem.producer[read]
            if producer < 0:
                continue
            if last[read] >= back or read in results:
                sources.add(read)
            elif producer not in ops:
                ops.add(producer)
                stack.append(producer)
    return sources, max(1, sum(problem.ops[op].time_ns for op in ops))
