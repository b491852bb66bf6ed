"""A smaller problem out of a large one: runs of consecutive ops become single ops.

Ops are merged pairwise, neighbours in the problem's order and of one phase, the pair with the smallest

    (bytes it reads + bytes it hands on + workspace) * sqrt(number of ops)

first, in the manner of HiRemate's partitioner, until few enough are left. A merged op reads what its ops read from
before, makes what later ops or the results need of them, and has as workspace what else its ops hold at their
highest moment, so a plan of the small problem, expanded, never needs more than it says. Constants become reserve.

Ops that may not run again and create something stay by themselves, so that whatever they make can be planned; those
that create nothing (buffer updates) are merged with their neighbours and left out where a merged op runs again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from remat_solvers.problem import Op, Problem
from remat_solvers.schedule import tangents_op

__all__ = ["Coarse", "contract"]


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
        reserve_bytes=problem.reserve_bytes + problem.constant_bytes,
    )
    return Coarse(problem, coarse, tuple(tuple(g) for g in groups))


def _merge(problem: Problem, most_ops: int) -> list[list[int]]:
    """Runs of consecutive ops, ascending."""
    ops = problem.ops
    tangents = tangents_op(problem)
    groups: dict[int, list[int]] = {i: [i] for i in range(len(ops))}  # by first op
    before = {i: i - 1 for i in groups}
    after = {i: i + 1 for i in groups}
    version = dict.fromkeys(groups, 0)
    heap: list[tuple[float, int, int, int, int]] = []

    def alone(op: int) -> bool:
        return op == tangents or (not ops[op].recomputable and bool(ops[op].outputs))

    def offer(left: int) -> None:
        right = after[left]
        if right not in groups or ops[left].phase != ops[right].phase or alone(left) or alone(right):
            return
        both = groups[left] + groups[right]
        reads, makes = _border(problem, both)
        size = _bytes(problem, (*reads, *makes)) + _workspace(problem, both, makes)
        heapq.heappush(heap, (size * sqrt(len(both)), left, right, version[left], version[right]))

    for left in list(groups):
        offer(left)
    while len(groups) > most_ops and heap:
        _, left, right, v_left, v_right = heapq.heappop(heap)
        if version.get(left) != v_left or version.get(right) != v_right:
            continue
        groups[left] += groups.pop(right)
        version[left] += 1
        del version[right]
        after[left] = after[right]
        if after[left] in groups:
            before[after[left]] = left
        offer(left)
        if before[left] in groups:
            offer(before[left])
    return [groups[first] for first in sorted(groups)]


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
