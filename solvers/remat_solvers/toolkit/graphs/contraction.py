"""Contracts a problem to a smaller one: groups of consecutive ops become single ops.

Ops are merged pairwise, neighbours in the problem's order and of one phase, until few enough are left; of these, about
FORWARD_SHARE are for the forward pass. In the backward pass the pair is merged first that has the smallest

    (bytes of its inputs + bytes of its outputs + workspace) * sqrt(number of ops)

in the manner of HiRemate's partitioner. In the forward pass this would merge ops that are expensive to compute with
cheap ones of large outputs, which are then not worth dropping any more. So there the pair is merged first that has the
smallest

    time of the first * output bytes of the second + time of the second * output bytes of the first

and the former number decides between equals. The inputs of a merged op are the values that its ops read from outside;
its outputs are those of their outputs that later ops read or that are results. Its workspace covers all other bytes
that its ops hold at their peak, so the expanded plan never needs more memory than the plan of the small problem.
Constants become reserve.

Ops that cannot be recomputed and have outputs stay by themselves, so that those outputs can be planned. Ops that cannot
be recomputed and have none (buffer updates) are merged with their neighbours, and left out where a merged op is
recomputed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from remat_solvers.problem import Op, Phase, Problem
from remat_solvers.schedule import tangents_op

FORWARD_SHARE = 2 / 3


@dataclass(frozen=True, slots=True)
class ContractedProblem:
    """A problem whose ops are groups of consecutive ops of another."""

    original: Problem
    problem: Problem
    groups: tuple[tuple[int, ...], ...]  # per op of `problem`, the ops of `original`

    def expand(self, sequence: Sequence[int]) -> list[int]:
        """The ops of `original` for a sequence of ops of `problem`."""
        seen: set[int] = set()
        expanded: list[int] = []
        for group in sequence:
            repeated = group in seen
            seen.add(group)
            expanded += [op for op in self.groups[group] if not repeated or self.original.ops[op].recomputable]
        return expanded


def contract(problem: Problem, max_ops: int) -> ContractedProblem:
    """`problem` with at most `max_ops` ops, or as few as the ops that stay by themselves allow."""
    groups = _merge(problem, max_ops)
    interfaces = [_interface(problem, group) for group in groups]
    used = sorted({v for inputs, outputs in interfaces for v in (*inputs, *outputs)})
    number = {v: k for k, v in enumerate(used)}
    ops = []
    for group, (inputs, outputs) in zip(groups, interfaces, strict=True):
        first = problem.ops[group[0]]
        recomputable = [op for op in group if problem.ops[op].recomputable]
        ops.append(
            Op(
                name=first.name,
                phase=first.phase,
                inputs=tuple(number[v] for v in inputs),
                outputs=tuple(number[v] for v in outputs),
                time_ns=sum(problem.ops[op].time_ns for op in recomputable or group),
                workspace_bytes=_workspace_bytes(problem, group, outputs),
                recomputable=bool(recomputable),
            )
        )
    contracted = Problem(
        name=problem.name,
        ops=tuple(ops),
        values=tuple(problem.values[v] for v in used),
        results=tuple(number[v] for v in problem.results if v in number),
        reserve_bytes=problem.static_bytes,
    )
    return ContractedProblem(problem, contracted, tuple(tuple(g) for g in groups))


def _merge(problem: Problem, max_ops: int) -> list[list[int]]:
    """Groups of consecutive ops, ascending."""
    forward, backward = len(problem.forward_ops), len(problem.backward_ops)
    max_forward = max(round(FORWARD_SHARE * max_ops), max_ops - backward)
    merging = _Merging(problem)
    merging.reduce("forward", forward, max_forward)
    merging.reduce("backward", backward, max_ops - min(forward, max_forward))
    return [merging.groups[first] for first in sorted(merging.groups)]


class _Merging:
    """Groups of ops by their first op, and per phase a heap of neighbouring pairs (some of outdated groups)."""

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

    def reduce(self, phase: Phase, count: int, max_count: int) -> None:
        """Merge the `count` groups of a phase until there are at most `max_count`, or no pair can be merged."""
        heap, version = self.heaps[phase], self.version
        while count > max_count and heap:
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
        if (
            right not in self.groups
            or ops[left].phase != ops[right].phase
            or self._stays_alone(left)
            or self._stays_alone(right)
        ):
            return
        both = self.groups[left] + self.groups[right]
        inputs, outputs = _interface(self.problem, both)
        size = _bytes(self.problem, (*inputs, *outputs)) + _workspace_bytes(self.problem, both, outputs)
        mismatch = 0
        if ops[left].phase == "forward":
            (left_ns, left_bytes), (right_ns, right_bytes) = self._time_and_bytes(left), self._time_and_bytes(right)
            mismatch = left_ns * right_bytes + right_ns * left_bytes
        versions = self.version[left], self.version[right]
        heapq.heappush(self.heaps[ops[left].phase], (mismatch, size * sqrt(len(both)), left, right, *versions))

    def _stays_alone(self, op: int) -> bool:
        first = self.problem.ops[op]
        return op == self.tangents or (not first.recomputable and bool(first.outputs))

    def _time_and_bytes(self, first: int) -> tuple[int, int]:
        """Time of a group in ns, and bytes of its outputs."""
        group = self.groups[first]
        _, outputs = _interface(self.problem, group)
        return sum(self.problem.ops[op].time_ns for op in group), _bytes(self.problem, outputs)


def _interface(problem: Problem, group: Sequence[int]) -> tuple[list[int], list[int]]:
    """The inputs of a group, without constants, and its outputs: the values of its ops that are needed after it."""
    inside = set(group)
    results = set(problem.results)
    inputs = dict.fromkeys(
        v
        for op in group
        for v in problem.ops[op].inputs
        if problem.producer[v] not in inside and problem.values[v].kind != "constant"
    )
    outputs = [
        v
        for op in group
        for v in problem.ops[op].outputs
        if v in results or any(reader not in inside for reader in problem.consumers[v])
    ]
    return list(inputs), outputs


def _workspace_bytes(problem: Problem, group: Sequence[int], outputs: Iterable[int]) -> int:
    """Bytes that the group needs at its peak beside its inputs and all of its outputs."""
    stay = set(outputs)
    last = {v: op for op in group for v in problem.ops[op].inputs}
    held = peak = 0
    for op in group:
        computed = problem.ops[op].outputs
        held += _bytes(problem, computed)
        peak = max(peak, held + problem.ops[op].workspace_bytes)
        freed = {v for v in computed if v not in stay and v not in last}
        freed.update(
            v
            for v in problem.ops[op].inputs
            if last[v] == op and v not in stay and problem.producer[v] in range(group[0], op)
        )
        held -= _bytes(problem, freed)
    return max(0, peak - _bytes(problem, stay))


def _bytes(problem: Problem, values: Iterable[int]) -> int:
    return sum(problem.values[v].bytes for v in values)
