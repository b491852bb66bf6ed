"""Any training step as a chain of stages: where the forward order is cut, and what each stage and its backward need.

The methods made for chains (revolve, Gruslys et al., rotor) see a step as stages 0..L-1, each taking the state before
it to the state after it, and a backward of each, in reverse order. Here is that view of a general joint graph.

Cuts. A cut after forward position c has a state x_c: all that was made up to c and is needed beyond. Only droppable
values count: outputs of recomputable forward ops that are no results of the step (everything else stays on the device
anyway, see `droppable`). With T_c, the last backward op that reads a value made after c,

    x_c = {v made up to c : a forward op after c reads v, or a backward op up to T_c does}

so that from x_c everything after the cut can be computed again, forward and backward. Since T_c falls as c grows, each
value crosses one interval of cuts. In a recurrent network x_c is the hidden state of a time step, a set of values.

Backward. The backward ops, in their order, fall into one chunk per stage, the last stage's first. The chunk of the
stages beyond c ends after T_c, and before the first op that reads a value made up to c that is not in x_c; among the
places between, where the fewest bytes of gradients are alive, the latest of them.

Which cuts. `every`: after every op. `minima`: positions whose state is no larger than at both neighbours. `renewed`: of
these, smallest states first, each that shares no value with the chosen ones and, between two of them, is at most twice
as large: the time steps of a recurrent network. Values that are only carried along do not count in this: those that
cross an eighth of the forward pass (the inputs of all steps), and those that wait for an op that collects many (the
outputs of all steps). Where there are more than `most` stages, the cut with the largest state between the lightest
neighbours goes, again and again (weight: shares of time, bytes made and ops; over the bytes of the state).
"""

from __future__ import annotations

import heapq
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.graphs.dropped_values import droppable

__all__ = ["MOST_SLOTS", "MOST_STAGES", "Chain", "Cuts", "Stage", "chain_view", "live_gradients"]

MOST_SLOTS = 10_000  # parts of memory, in tables by slots over all pairs of stages
MOST_STAGES = 1_000  # of such a table
Cuts: TypeAlias = Literal["minima", "renewed", "every"]

CARRIED_SHARE = 8  # a value that crosses more than this part of the forward ops is carried along
COLLECTED = 8  # and so is one that goes to an op that reads more values than this
RENEWED_SIZE = 2  # a state between two chosen ones is at most this many times as large as the larger of them


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive forward ops, and the consecutive backward ops that go with them."""

    ops: tuple[int, ...]  # forward ops, in order
    backward: tuple[int, ...]  # backward ops, in order
    state: tuple[int, ...]  # droppable values made before, from which this and all later stages follow
    saved: tuple[int, ...]  # droppable values that its backward ops read, of this stage or of its state


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages of a problem. The state after the last stage is empty."""

    problem: Problem
    stages: tuple[Stage, ...]
    droppable: tuple[bool, ...]  # per value

    def state(self, stage: int) -> tuple[int, ...]:
        """Values from which stage `stage` and all later ones follow; empty after the last stage."""
        return self.stages[stage].state if stage < len(self.stages) else ()

    def bytes(self, values: Sequence[int] | set[int]) -> int:
        """Sum of the sizes of `values`."""
        return sum(self.problem.values[v].bytes for v in values)


def chain_view(problem: Problem, *, cuts: Cuts = "minima", most: int = 100) -> Chain:
    """The chain of at most `most` stages; one stage where the problem has no forward op that could be cut after."""
    crossing = _Crossing(problem)
    chosen = list(range(crossing.count - 1)) if cuts == "every" else crossing.minima()
    if cuts == "renewed":
        chosen = crossing.renewed(chosen)
    chosen = crossing.merged(chosen, most)
    return crossing.chain(chosen)


def live_gradients(problem: Problem) -> Ints:
    """Bytes of what backward has made and still needs, before each backward op (by its place) and at the end."""
    place = {op: k for k, op in enumerate(problem.backward_ops)}
    results = set(problem.results)
    change = [0] * (len(place) + 2)
    for value, producer in enumerate(problem.producer):
        if producer in place:
            size = problem.values[value].bytes
            readers = problem.consumers[value]
            change[place[producer] + 1] += size
            if value not in results:
                change[(place[readers[-1]] if readers else place[producer]) + 1] -= size
    return np.cumsum(np.array(change[:-1], dtype=np.int64))


class _Crossing:
    """Per droppable value, the interval of cuts that it crosses; from these the cuts and the stages."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.drop = droppable(problem)
        self.position = {op: k for k, op in enumerate(problem.forward_ops)}
        self.place = {op: k for k, op in enumerate(problem.backward_ops)}
        self.count = len(self.position)
        self.reads: list[list[int]] = [  # per backward op, by its place: the droppable values it reads
            [v for v in dict.fromkeys(problem.ops[op].inputs) if self.drop[v]] for op in problem.backward_ops
        ]
        self.last = self._last_backward_readers()
        self.start, self.end = self._intervals()

    def _last_backward_readers(self) -> list[int]:
        """T_c per position c: place of the last backward op that reads a droppable value made after c; -1: none."""
        last = [-1] * self.count
        for place, values in enumerate(self.reads):
            for value in values:
                made = self.position[self.problem.producer[value]]
                if made:
                    last[made - 1] = max(last[made - 1], place)
        for c in range(self.count - 2, -1, -1):
            last[c] = max(last[c], last[c + 1])
        return last

    def _intervals(self) -> tuple[list[int], list[int]]:
        """Per value: it crosses the cuts start <= c < end. Empty for what is not droppable."""
        start = [0] * len(self.drop)
        end = [0] * len(self.drop)
        falling = -np.array(self.last, dtype=np.int64)  # ascending, for the search
        for value, drop in enumerate(self.drop):
            if not drop:
                continue
            readers = self.problem.consumers[value]
            start[value] = end[value] = self.position[self.problem.producer[value]]
            for reader in readers:
                if reader in self.position:
                    end[value] = max(end[value], self.position[reader])
                else:
                    beyond = int(np.searchsorted(falling, -self.place[reader], side="right"))
                    end[value] = max(end[value], beyond)
                    break  # the first backward reader decides
        return start, end

    def _carried(self) -> list[bool]:
        """Per value: carried along, not part of what a stage renews."""
        long = max(CARRIED_SHARE, self.count // CARRIED_SHARE)
        collected = {v for op in self.problem.forward_ops for v in self._collected(self.problem.ops[op].inputs)}
        return [self.end[v] - self.start[v] > long or v in collected for v in range(len(self.drop))]

    def _collected(self, inputs: Sequence[int]) -> set[int]:
        values = {v for v in inputs if self.drop[v]}
        return values if len(values) > COLLECTED else set()

    def state_bytes(self, without: Sequence[bool] = ()) -> list[int]:
        """Bytes of x_c per position c, the values not counted that `without` marks."""
        change = [0] * (self.count + 1)
        for value, drop in enumerate(self.drop):
            if drop and self.end[value] > self.start[value] and not (without and without[value]):
                change[self.start[value]] += self.problem.values[value].bytes
                change[self.end[value]] -= self.problem.values[value].bytes
        total, sizes = 0, []
        for c in range(self.count):
            total += change[c]
            sizes.append(total)
        return sizes

    def state(self, cut: int) -> tuple[int, ...]:
        return tuple(v for v, drop in enumerate(self.drop) if drop and self.start[v] <= cut < self.end[v])

    def minima(self) -> list[int]:
        size = self.state_bytes()[:-1]  # nothing comes after the last position
        return [
            c
            for c, here in enumerate(size)
            if (c == 0 or here <= size[c - 1]) and (c + 1 == len(size) or here <= size[c + 1])
        ]

    def renewed(self, cuts: Sequence[int]) -> list[int]:
        carried = self._carried()
        size = self.state_bytes(carried)
        span = self._spans(carried)
        chosen: list[int] = []
        for cut in sorted(cuts, key=lambda c: (size[c], c)):
            at = bisect(chosen, cut)
            left = chosen[at - 1] if at else None
            right = chosen[at] if at < len(chosen) else None
            if (left is not None and span[left][1] > cut) or (right is not None and span[right][0] <= cut):
                continue
            if left is None or right is None or size[cut] <= RENEWED_SIZE * max(size[left], size[right]):
                chosen.insert(at, cut)
        return chosen

    def _spans(self, without: Sequence[bool]) -> list[tuple[int, int]]:
        """Per cut: the first cut that any value of its state crosses, and the first beyond all of them."""
        first = list(range(1, self.count + 1))
        beyond = list(range(self.count))
        for value, drop in enumerate(self.drop):
            if drop and not without[value]:
                for cut in range(self.start[value], self.end[value]):
                    first[cut] = min(first[cut], self.start[value])
                    beyond[cut] = max(beyond[cut], self.end[value])
        return list(zip(first, beyond, strict=True))

    def merged(self, cuts: Sequence[int], most: int) -> list[int]:
        """Drop cuts until there are at most `most` stages, each time the one of least weight per byte of state."""
        running, size = self._weights(), self.state_bytes()
        typical = max(1, sum(size[c] for c in cuts) // max(1, len(cuts)))
        edges = [-1, *cuts, self.count - 1]
        before = {b: a for a, b in pairwise(edges)}
        after = dict(pairwise(edges))

        def weight(cut: int) -> float:
            return (running[after[cut] + 1] - running[before[cut] + 1]) / (size[cut] + typical)

        heap = [(weight(c), c) for c in cuts]
        heapq.heapify(heap)
        left = set(cuts)
        while heap and len(left) >= max(1, most):
            known, cut = heapq.heappop(heap)
            now = weight(cut)
            if now > known:
                heapq.heappush(heap, (now, cut))
                continue
            left.remove(cut)
            after[before[cut]], before[after[cut]] = after[cut], before[cut]
        return sorted(left)

    def _weights(self) -> list[float]:
        """Running sum over the forward ops of their shares of time, of bytes made, and of number."""
        ops = [self.problem.ops[op] for op in self.problem.forward_ops]
        made = [sum(self.problem.values[v].bytes for v in op.outputs) for op in ops]
        time_ns, size = max(1, sum(op.time_ns for op in ops)), max(1, sum(made))
        running = [0.0]
        for op, new in zip(ops, made, strict=True):
            running.append(running[-1] + op.time_ns / time_ns + new / size + 1e-3 / len(ops))
        return running

    def chain(self, cuts: Sequence[int]) -> Chain:
        edges = [0, *(cut + 1 for cut in cuts), self.count]
        chunks = [0, *self._chunk_ends(cuts)[::-1], len(self.reads)]  # places, the last stage's chunk first
        stages = []
        for k, (first, end) in enumerate(pairwise(edges)):
            begin, stop = chunks[len(cuts) - k], chunks[len(cuts) - k + 1]
            stages.append(
                Stage(
                    ops=self.problem.forward_ops[first:end],
                    backward=self.problem.backward_ops[begin:stop],
                    state=self.state(first - 1) if first else (),
                    saved=tuple(sorted({v for place in range(begin, stop) for v in self.reads[place]})),
                )
            )
        return Chain(self.problem, tuple(stages), tuple(self.drop))

    def _chunk_ends(self, cuts: Sequence[int]) -> list[int]:
        """Per cut, the place where the chunks of the stages beyond it end."""
        alive = live_gradients(self.problem)
        none = self.count + 1
        earliest = [min((self.end[v] for v in values), default=none) for values in self.reads]
        ends: list[int] = []
        previous = 0 if tangents_op(self.problem) is None else 1  # tangents are there from the start of backward
        for cut in reversed(cuts):
            low = max(self.last[cut] + 1, previous)
            high = low
            while high < len(earliest) and earliest[high] > cut:
                high += 1
            window = alive[low : high + 1]
            previous = high - int(np.argmin(window[::-1]))
            ends.append(previous)
        return ends[::-1]
