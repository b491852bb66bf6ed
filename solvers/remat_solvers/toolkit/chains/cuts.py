"""Chooses where the forward pass of a training step is cut into the stages of a chain.

A cut after forward position c has a state x_c: the values computed up to c that are needed beyond. Only droppable
values count (`droppable`): all others stay on the device anyway. With T_c, the last backward op that reads a value
computed after c,

    x_c = {v computed up to c : a forward op after c reads v, or a backward op up to T_c does}

so that everything after the cut, forward and backward, can be recomputed from x_c. Since T_c falls as c grows, each
value crosses one interval of cuts. In a recurrent network x_c is the hidden state of a time step, a set of values.

    every     after every op
    minima    positions whose state is no larger than at both neighbours
    renewed   of the minima, smallest states first, each that shares no value with the chosen ones and, between two of
              them, is at most RENEWED_SIZE times as large: the time steps of a recurrent network. Values that are only
              carried along do not count in this: those that cross an eighth of the forward pass (the inputs of all
              steps), and those that wait for an op that collects many (the outputs of all steps)

Where there are more than a given number of stages, cuts are removed one at a time: always the one of least weight per
byte of its state, where the weight is the share of time, of bytes computed and of ops of the two stages that it parts.
"""

from __future__ import annotations

import heapq
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.dropped_values import droppable

Cuts: TypeAlias = Literal["minima", "renewed", "every"]

CARRIED_SHARE = 8  # a value that crosses more than this part of the forward ops is carried along
COLLECTED = 8  # and so is one that is read by an op with more inputs than this
RENEWED_SIZE = 2  # a state between two chosen ones is at most this many times as large as the larger of them


class Crossings:
    """Per droppable value, the interval of cuts that it crosses; from these, the choice of cuts."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.droppable = droppable(problem)
        self.position = {op: k for k, op in enumerate(problem.forward_ops)}
        self.place = {op: k for k, op in enumerate(problem.backward_ops)}
        self.count = len(self.position)
        self.reads: list[list[int]] = [  # per backward op, by its place: the droppable values that it reads
            [v for v in dict.fromkeys(problem.ops[op].inputs) if self.droppable[v]] for op in problem.backward_ops
        ]
        self.last = self._last_backward_readers()
        self.start, self.end = self._intervals()

    def choose(self, cuts: Cuts, max_stages: int) -> list[int]:
        """The positions after which to cut into at most `max_stages` stages, ascending."""
        if cuts == "every":
            return self._merged(list(range(self.count - 1)), max_stages)
        minima = self._minima()
        return self._merged(minima if cuts == "minima" else self._renewed(minima), max_stages)

    def state(self, cut: int) -> tuple[int, ...]:
        """x_c of the cut after position `cut`."""
        return tuple(v for v, drop in enumerate(self.droppable) if drop and self.start[v] <= cut < self.end[v])

    def _last_backward_readers(self) -> list[int]:
        """T_c per position c: place of the last backward op that reads a droppable value computed after c; -1: none."""
        last = [-1] * self.count
        for place, values in enumerate(self.reads):
            for value in values:
                computed = self.position[self.problem.producer[value]]
                if computed:
                    last[computed - 1] = max(last[computed - 1], place)
        for c in range(self.count - 2, -1, -1):
            last[c] = max(last[c], last[c + 1])
        return last

    def _intervals(self) -> tuple[list[int], list[int]]:
        """Per value: it crosses the cuts start <= c < end. Empty for values that are not droppable."""
        start = [0] * len(self.droppable)
        end = [0] * len(self.droppable)
        descending = -np.array(self.last, dtype=np.int64)  # negated, so ascending, for the search
        for value, drop in enumerate(self.droppable):
            if not drop:
                continue
            readers = self.problem.consumers[value]
            start[value] = end[value] = self.position[self.problem.producer[value]]
            for reader in readers:
                if reader in self.position:
                    end[value] = max(end[value], self.position[reader])
                else:
                    beyond = int(np.searchsorted(descending, -self.place[reader], side="right"))
                    end[value] = max(end[value], beyond)
                    break  # the first backward reader decides
        return start, end

    def _carried(self) -> list[bool]:
        """Per value: whether it is only carried along, so that no stage renews it."""
        long = max(CARRIED_SHARE, self.count // CARRIED_SHARE)
        collected = {v for op in self.problem.forward_ops for v in self._collected(self.problem.ops[op].inputs)}
        return [self.end[v] - self.start[v] > long or v in collected for v in range(len(self.droppable))]

    def _collected(self, inputs: Sequence[int]) -> set[int]:
        values = {v for v in inputs if self.droppable[v]}
        return values if len(values) > COLLECTED else set()

    def _state_bytes(self, without: Sequence[bool] = ()) -> list[int]:
        """Bytes of x_c per position c, without the values that `without` marks."""
        change = [0] * (self.count + 1)
        for value, drop in enumerate(self.droppable):
            if drop and self.end[value] > self.start[value] and not (without and without[value]):
                change[self.start[value]] += self.problem.values[value].bytes
                change[self.end[value]] -= self.problem.values[value].bytes
        total, sizes = 0, []
        for c in range(self.count):
            total += change[c]
            sizes.append(total)
        return sizes

    def _minima(self) -> list[int]:
        size = self._state_bytes()[:-1]  # nothing comes after the last position
        return [
            c
            for c, bytes_here in enumerate(size)
            if (c == 0 or bytes_here <= size[c - 1]) and (c + 1 == len(size) or bytes_here <= size[c + 1])
        ]

    def _renewed(self, cuts: Sequence[int]) -> list[int]:
        carried = self._carried()
        size = self._state_bytes(carried)
        span = self._spans(carried)
        chosen: list[int] = []
        for cut in sorted(cuts, key=lambda c: (size[c], c)):
            index = bisect(chosen, cut)
            left = chosen[index - 1] if index else None
            right = chosen[index] if index < len(chosen) else None
            if (left is not None and span[left][1] > cut) or (right is not None and span[right][0] <= cut):
                continue
            if left is None or right is None or size[cut] <= RENEWED_SIZE * max(size[left], size[right]):
                chosen.insert(index, cut)
        return chosen

    def _spans(self, without: Sequence[bool]) -> list[tuple[int, int]]:
        """Per cut: the first cut that any value of its state crosses, and the first beyond all of them."""
        first = list(range(1, self.count + 1))
        beyond = list(range(self.count))
        for value, drop in enumerate(self.droppable):
            if drop and not without[value]:
                for cut in range(self.start[value], self.end[value]):
                    first[cut] = min(first[cut], self.start[value])
                    beyond[cut] = max(beyond[cut], self.end[value])
        return list(zip(first, beyond, strict=True))

    def _merged(self, cuts: Sequence[int], max_stages: int) -> list[int]:
        """Remove cuts until there are at most `max_stages` stages, each time the one of least weight per byte."""
        running, size = self._weights(), self._state_bytes()
        typical = max(1, sum(size[c] for c in cuts) // max(1, len(cuts)))
        edges = [-1, *cuts, self.count - 1]
        before = {b: a for a, b in pairwise(edges)}
        after = dict(pairwise(edges))

        def weight(cut: int) -> float:
            return (running[after[cut] + 1] - running[before[cut] + 1]) / (size[cut] + typical)

        heap = [(weight(c), c) for c in cuts]
        heapq.heapify(heap)
        left = set(cuts)
        while heap and len(left) >= max(1, max_stages):
            known, cut = heapq.heappop(heap)
            now = weight(cut)
            if now > known:
                heapq.heappush(heap, (now, cut))
                continue
            left.remove(cut)
            after[before[cut]], before[after[cut]] = after[cut], before[cut]
        return sorted(left)

    def _weights(self) -> list[float]:
        """Running sum over the forward ops of their shares of time, of bytes computed, and of number."""
        ops = [self.problem.ops[op] for op in self.problem.forward_ops]
        output_bytes = [sum(self.problem.values[v].bytes for v in op.outputs) for op in ops]
        time_ns, size = max(1, sum(op.time_ns for op in ops)), max(1, sum(output_bytes))
        running = [0.0]
        for op, new in zip(ops, output_bytes, strict=True):
            running.append(running[-1] + op.time_ns / time_ns + new / size + 1e-3 / len(ops))
        return running
