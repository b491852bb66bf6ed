"""Drop some values of the forward pass, and the op sequence that brings them back for backward.

A dropped value leaves after its last reader in the forward pass. When a backward op reads one, its producer runs again,
and before it the producers of what that reads and misses, back to values that are there, in the problem's order. How
much is brought back at once, and for how long, depends on the group of its producer:

- no group: the value alone, and what was computed on the way; each op runs again at most once;
- a group: every value of the group that backward reads, at once, when the first of them is read; each op once;
- a group in `every_time`: what this one backward op reads, and nothing of it is there for the next.

Only outputs of recomputable forward ops that are no results can be dropped (`droppable`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from remat_solvers.problem import Problem

__all__ = ["droppable", "recompute_dropped", "word"]


def droppable(problem: Problem) -> set[int]:
    """Values that may be dropped: outputs of recomputable forward ops, results excepted."""
    forward = (problem.ops[op] for op in problem.forward_ops)
    return {v for op in forward if op.recomputable for v in op.outputs}.difference(problem.results)


def word(target: str) -> str:
    """The operator's own name: `mm` of `aten.mm.default`, of `mm`; `add` of `add.Tensor`."""
    parts = target.removeprefix("torch.ops.").split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[0]


def recompute_dropped(
    problem: Problem, dropped: Iterable[int], groups: Mapping[int, int], every_time: Container[int] = ()
) -> list[int]:
    """The ops of one step in execution order. groups: op -> its group, for the ops that have one."""
    return _Dropping(problem, dropped, groups, every_time).run()


class _Dropping:
    def __init__(
        self, problem: Problem, dropped: Iterable[int], groups: Mapping[int, int], every_time: Container[int]
    ) -> None:
        self.problem = problem
        self.groups = groups
        self.every_time = every_time
        self.missing = bytearray(len(problem.values))
        for value in dropped:
            self.missing[value] = 1
        self.members: dict[int, list[int]] = {}  # group -> its dropped values that backward reads
        for op, group in groups.items():
            wanted = [v for v in problem.ops[op].outputs if self.missing[v] and self._is_wanted(v)]
            self.members.setdefault(group, []).extend(wanted)

    def _is_wanted(self, value: int) -> bool:
        return any(self.problem.ops[reader].phase == "backward" for reader in self.problem.consumers[value])

    def run(self) -> list[int]:
        problem, missing, producer = self.problem, self.missing, self.problem.producer
        sequence = list(problem.forward_ops)
        for op in problem.backward_ops:
            transient: list[int] = []
            for value in sorted((v for v in problem.ops[op].inputs if missing[v]), key=producer.__getitem__):
                group = self.groups.get(producer[value])
                if group is not None and group in self.every_time:
                    transient.append(value)
                elif missing[value]:
                    sequence += self._restore([value] if group is None else self.members[group])
            sequence += self._needed(transient)
            sequence.append(op)
        return sequence

    def _restore(self, targets: list[int]) -> list[int]:
        run = self._needed(targets)
        for op in run:
            group = self.groups.get(op)
            if group is None or group not in self.every_time:
                for value in self.problem.ops[op].outputs:
                    self.missing[value] = 0
        return run

    def _needed(self, targets: Iterable[int]) -> list[int]:
        problem, missing = self.problem, self.missing
        stack = [v for v in targets if missing[v]]
        needed: set[int] = set()
        while stack:
            op = problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in problem.ops[op].inputs if missing[v])
        return sorted(needed)
