"""A smaller problem out of a large one: runs of consecutive ops become single ops.

Ops are merged pairwise, neighbours in the problem's order and of one phase, until few enough are left; of these, about
FORWARD_SHARE are for the forward pass. In the backward pass the pair goes first that has the smallest

    (bytes it reads + bytes it hands on + workspace) * sqrt(number of ops)

in the manner of HiRemate's partitioner. In the forward pass that would merge what is dear to compute with what is cheap
and large, which is then not worth dropping any more. So there the pair goes first that has the smallest

    time of the first * bytes that the second hands on + time of the second * bytes that the first hands on

and the former number decides between equals. A merged op reads what its ops read from before, makes what later ops or
the results need of them, and has as workspace what else its ops hold at their highest moment, so a plan of the small
problem, expanded, never needs more than it says. Constants become reserve.

Ops that may not run again and create something stay by themselves, so that whatever they make can be planned; those
that create nothing (buffer updates) are merged with their neighbours and left out where a merged op runs again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from remat_solvers.problem import Op, Phase, Problem
from remat_solvers.schedule import tangents_op

__all__ = ["Coarse", "contract"]

FORWARD_SHARE = 2 / 3


@dataclass(frozen=True, slots=True)
class Coarse:
    """A problem whose ops are runs of ops of another."""

    fine: Problem
    problem: Problem
    groups: tuple[tuple[int, ...], ...]  # per op of `problem`, the ops of `fine`

    def expand(self, sequence: Sequence[int]) -> list[int]:
        """The ops of `fine` for a sequence of ops of `problem`."""
        seen: set[int] = set()
        expanded: list[int] = []
        for group in sequence:
            again = group in seen
            seen.add(group)
            expanded += [op for op in self.groups[group] if not again or self.fine.ops[op].recomputable]
        return expanded


def contract(problem: Problem, most_ops: int) -> Coarse:
    """`problem` with at most `most_ops` ops, or as few as what may not be merged allows."""
    groups = _merge(problem, most_ops)
    borders = [_border(problem, group) for group in groups]
    used = sorted({v for reads, makes in borders for v in (*reads, *makes)})
    number = {v: k for k, v in enumerate(used)}
    ops = []
    for group, (reads, makes) in zip(groups, borders, strict=True):
        first = problem.ops[group[0]]
        again = [op for op in group if problem.ops[op].recomputable]
        ops.append(
            Op(
                name=first.name,
                phase=first.phase,
                inputs=tuple(number[v] for v in reads),
                outputs=tuple(number[v] for v in makes),
                time_ns=sum(problem.ops[op].time_ns for op in again or group),
                workspace_bytes=_workspace(problem, group, makes),
                recomputable=bool(again),
            )
        )
    coarse = Problem(
        name=problem.name,
        ops=tuple(ops),
        values=tuple(problem.values[v] for v in used),
        results=tuple(number[v] for v in problem.results if v in number),
        reserve_bytes=problem.static_bytes,
    )
    return Coarse(problem, coarse, tuple(tuple(g) for g in groups))


def _merge(problem: Problem, most_ops: int) -> list[list[int]]:
    """Runs of consecutive ops, ascending."""
    forward, backward = len(problem.forward_ops), len(problem.backward_ops)
    most_forward = max(round(FORWARD_SHARE * most_ops), most_ops - backward)
    merged = _Merged(problem)
    merged.reduce("forward", forward, most_forward)
    merged.reduce("backward", backward, most_ops - min(forward, most_forward))
    return [merged.groups[first] for first in sorted(merged.groups)]


class _Merged:
    """Runs of ops by their first op, and for each phase a heap of pairs of neighbours, those of old runs included."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tangents = tangents_op(problem)
        count = len(problem.ops)
        self.groups: dict[int, list[int]] = {i: [i] for i in range(count)}
        self.before = {i: i - 1 for i in range(count)}
        self.after = {i: i + 1 for i in range(count)}
        self.version = dict.fromkeys(range(count), 0)
        self.heaps: dict[Phase, list[tuple[float, float, int, int, int, int]]] = {"forward": [], "backward": []}
        for first in range(count):
            self._offer(first)

    def reduce(self, phase: Phase, count: int, most: int) -> None:
        """Merge the `count` runs of a phase until there are at most `most`, or none can be merged."""
        heap, version = self.heaps[phase], self.version
        while count > most and heap:
            _, _, left, right, left_version, right_version = heapq.heappop(heap)
            if version.get(left) != left_version or version.get(right) != right_version:
                continue
            count -= 1
            self.groups[left] += self.groups.pop(right)
            version[left] += 1
            del version[right]
            self.after[left] = self.after[right]
            if self.after[left] in self.groups:
                self.before[self.after[left]] = left
            self._offer(left)
            if self.before[left] in self.groups:
                self._offer(self.before[left])

    def _offer(self, left: int) -> None:
        ops, right = self.problem.ops, self.after[left]
        if right not in self.groups or ops[left].phase != ops[right].phase or self._alone(left) or self._alone(right):
            return
        both = self.groups[left] + self.groups[right]
        reads, makes = _border(self.problem, both)
        size = _bytes(self.problem, (*reads, *makes)) + _workspace(self.problem, both, makes)
        mismatch = 0
        if ops[left].phase == "forward":
            (left_ns, left_bytes), (right_ns, right_bytes) = self._worth(left), self._worth(right)
            mismatch = left_ns * right_bytes + right_ns * left_bytes
        versions = self.version[left], self.version[right]
        heapq.heappush(self.heaps[ops[left].phase], (mismatch, size * sqrt(len(both)), left, right, *versions))

    def _alone(self, op: int) -> bool:
        known = self.problem.ops[op]
        return op == self.tangents or (not known.recomputable and bool(known.outputs))

    def _worth(self, first: int) -> tuple[int, int]:
        """Time of a run of ops, and bytes that it hands on."""
        group = self.groups[first]
        return sum(self.problem.ops[op].time_ns for op in group), _bytes(self.problem, _border(self.problem, group)[1])


def _border(problem: Problem, group: Sequence[int]) -> tuple[list[int], list[int]]:
    """The values, constants aside, that a run of ops reads from before, and those of its own that outlive it."""
    inside = set(group)
    results = set(problem.results)
    reads = dict.fromkeys(
        v
        for op in group
        for v in problem.ops[op].inputs
        if problem.producer[v] not in inside and problem.values[v].kind != "constant"
    )
    makes = [
        v
        for op in group
        for v in problem.ops[op].outputs
        if v in results or any(reader not in inside for reader in problem.consumers[v])
    ]
    return list(reads), makes


def _workspace(problem: Problem, group: Sequence[int], makes: Iterable[int]) -> int:
    """Bytes that the run of ops needs at its highest moment beside what it reads and all that it hands on."""
    stay = set(makes)
    last = {v: op for op in group for v in problem.ops[op].inputs}
    held = highest = 0
    for op in group:
        made = problem.ops[op].outputs
        held += _bytes(problem, made)
        highest = max(highest, held + problem.ops[op].workspace_bytes)
        gone = {v for v in made if v not in stay and v not in last}
        gone.update(
            v
            for v in problem.ops[op].inputs
            if last[v] == op and v not in stay and problem.producer[v] in range(group[0], op)
        )
        held -= _bytes(problem, gone)
    return max(0, highest - _bytes(problem, stay))


def _bytes(problem: Problem, values: Iterable[int]) -> int:
    return sum(problem.values[v].bytes for v in values)
