"""The device memory of a replay that evicts, and the interface of the rule that chooses what to evict."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Indices

Deallocate: TypeAlias = Literal["eager", "ignore"]

NEVER = 2**62  # a position in the problem's order after every op
FREELY, IF_NEEDED = 1, 2  # kinds of candidates for eviction


class Evictor(Protocol):
    """A rule that chooses the values to evict. The replay calls the other methods to keep it up to date."""

    def choose(self, candidates: Indices) -> int:
        """Choose the value to evict. `candidates`, never empty, are resident, may be evicted and have bytes."""
        ...

    def evicted(self, value: int) -> None:
        """Take note that `value` was evicted, and may be recomputed."""
        ...

    def released(self, value: int) -> None:
        """Take note that no op is expected to need `value` any more."""
        ...

    def computed(self, op: int, fresh: list[int]) -> None:
        """Take note that `op` was computed; `fresh` are the outputs that were not resident before."""
        ...


class Memory:
    """The values on the device and their next uses, as an evictor may read them."""

    def __init__(self, problem: Problem, budget_bytes: int, deallocate: Deallocate) -> None:
        ops, values = problem.ops, problem.values
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.deallocate = deallocate
        self.size = [v.bytes for v in values]
        self.producer = problem.producer
        self.time = [op.time_ns for op in ops]
        self.reads = [
            tuple(sorted({v for v in op.inputs if values[v].kind != "constant"}, key=problem.producer.__getitem__))
            for op in ops
        ]
        self.new_bytes = [sum(self.size[v] for v in op.outputs) + op.workspace_bytes for op in ops]
        self.held_bytes = problem.static_bytes
        self.resident = bytearray(len(values))
        self.computed = bytearray(len(ops))
        self.locks = [0] * len(values)  # read by the op at work, or by one that follows as soon as it has its inputs
        self.awaited = [0] * len(values)  # reads by the ops on an agenda
        self.repeatable = bytearray(op.recomputable for op in ops)  # ops that may still be recomputed
        self.pinned = bytearray(len(values))
        for value in problem.results:
            self.pinned[value] = 1
        self._evictable = bytearray(len(values))  # resident, not locked, not pinned, can be recomputed, not empty
        self._candidates = np.frombuffer(self._evictable, dtype=np.uint8)
        self.position = 0  # in the problem's order
        self.uses: list[tuple[int, ...]] = [tuple(c) for c in problem.consumers]
        self.used = [0] * len(values)
        self.next_use = [u[0] if u else NEVER for u in self.uses]
        self.last_need = self._last_need()
        self.now_ns = 0  # time computed so far, every op at least 1

    def _last_need(self) -> list[int]:
        """Per value, the last position at which its readers are computed, or may be recomputed for the sake of others.

        Backward ops count with their own position only: gradients are rarely recomputed, see `Replay._drop_finally`.
        """
        ops = self.problem.ops
        need = [-1] * len(self.size)
        for index in range(len(ops) - 1, -1, -1):
            op = ops[index]
            last = index
            if op.recomputable and op.phase == "forward":
                last = max([index, *(need[v] for v in op.outputs if not self.pinned[v])])
            for value in self.reads[index]:
                need[value] = max(need[value], last)
        return need

    def candidates(self) -> Indices:
        """Values that may be evicted and that no op on an agenda reads; if there are none, those that one reads."""
        candidates = np.flatnonzero(self._candidates == FREELY)
        return candidates if len(candidates) else np.flatnonzero(self._candidates == IF_NEEDED)

    def touch(self, value: int) -> None:
        """Determine anew whether `value` may be evicted."""
        evictable = (
            self.resident[value]
            and not self.locks[value]
            and not self.pinned[value]
            and self.size[value] > 0
            and self.repeatable[self.producer[value]]
        )
        self._evictable[value] = (IF_NEEDED if self.awaited[value] else FREELY) if evictable else 0

    def lock(self, value: int) -> None:
        """Keep `value` on the device until `unlock` was called as often."""
        self.locks[value] += 1
        self._evictable[value] = 0

    def unlock(self, value: int) -> None:
        """Undo one call of `lock`."""
        self.locks[value] -= 1
        self.touch(value)

    def expect(self, value: int, reads: int) -> None:
        """Add `reads` to the number of reads of `value` by ops on an agenda."""
        self.awaited[value] += reads
        self.touch(value)

    def add(self, value: int) -> None:
        """Make `value`, which was computed, resident."""
        self.resident[value] = 1
        self.held_bytes += self.size[value]
        self.touch(value)

    def remove(self, value: int) -> None:
        """Take `value` off the device."""
        self.resident[value] = 0
        self._evictable[value] = 0
        self.held_bytes -= self.size[value]

    def advance(self, op: int) -> None:
        """Advance the next use of the inputs of `op`, whose first computation is over."""
        for value in self.reads[op]:
            self.used[value] += 1
            uses = self.uses[value]
            self.next_use[value] = uses[self.used[value]] if self.used[value] < len(uses) else NEVER
