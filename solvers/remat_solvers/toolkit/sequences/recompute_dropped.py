"""Builds the op sequence of a step that drops some values of the forward pass and recomputes them for backward.

A dropped value leaves the device after its last reader in the forward pass. When a backward op reads one, its producer
is recomputed, and before it the producers of its inputs that are dropped as well, back to values that are resident, in
the problem's order. How much is restored at once, and for how long, depends on the group of the producer:

- no group: the value alone, with what is computed on the way; each op is recomputed at most once
- a group: every value of the group that backward reads, at once, when the first of them is read; each op once
- a group in `every_time`: the values that this one backward op reads; none of them stays for the next one

Only values that `droppable` names can be dropped.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.dropped_values import ops_to_restore


def recompute_dropped(
    problem: Problem, dropped: Sequence[bool], groups: Mapping[int, int], every_time: Container[int] = ()
) -> list[int]:
    """The ops of one step in execution order.

    dropped: per value, whether the forward pass drops it. groups: op -> its group, for the ops that have one.
    """
    return _Recomputation(problem, dropped, groups, every_time).sequence()


class _Recomputation:
    def __init__(
        self, problem: Problem, dropped: Sequence[bool], groups: Mapping[int, int], every_time: Container[int]
    ) -> None:
        self.problem = problem
        self.groups = groups
        self.every_time = every_time
        self.dropped = bytearray(dropped)  # per value; restored ones are dropped no more
        self.members: dict[int, list[int]] = {}  # group -> its dropped values that backward reads
        for op, group in groups.items():
            read = [v for v in problem.ops[op].outputs if self.dropped[v] and self._backward_reads(v)]
            self.members.setdefault(group, []).extend(read)

    def _backward_reads(self, value: int) -> bool:
        return any(self.problem.ops[reader].phase == "backward" for reader in self.problem.consumers[value])

    def sequence(self) -> list[int]:
        problem, dropped, producer = self.problem, self.dropped, self.problem.producer
        sequence = list(problem.forward_ops)
        for op in problem.backward_ops:
            transient: list[int] = []
            for value in sorted((v for v in problem.ops[op].inputs if dropped[v]), key=producer.__getitem__):
                group = self.groups.get(producer[value])
                if group is not None and group in self.every_time:
                    transient.append(value)
                elif dropped[value]:
                    sequence += self._restore([value] if group is None else self.members[group])
            sequence += ops_to_restore(problem, transient, dropped)
            sequence.append(op)
        return sequence

    def _restore(self, values: Iterable[int]) -> list[int]:
        ops = ops_to_restore(self.problem, values, self.dropped)
        for op in ops:
            group = self.groups.get(op)
            if group is None or group not in self.every_time:
                for value in self.problem.ops[op].outputs:
                    self.dropped[value] = 0
        return ops
