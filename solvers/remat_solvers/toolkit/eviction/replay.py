"""Replays a step as a caching runtime would execute it: evicts values when memory is short, recomputes missing ones.

The problem's order is replayed under the budget. Before an op is computed, its missing inputs are restored: the
producer of each is recomputed, and before it the producers of its own missing inputs, in the problem's order. The
inputs of these ops are not evicted before they are read, unless there is nothing else to evict. Where an op's outputs
and workspace do not fit, values are evicted, one at a time, as an `Evictor` chooses. The result is an op sequence;
`schedule.plan_from_sequence` frees at least as early, so its peak is never above.

Dynamic runtimes leave some questions to their framework. They are settled here, where the whole step is known:

- A value with no reader left in the problem's order is deallocated. deallocate="eager" drops it at once, as DTR does
  by default (it is recomputed if something evicted needs it, and dropped again after that); "ignore" leaves it to the
  evictor.
- Results stay on the device from their first computation on.
- An output of an op that is not recomputable stays while an evicted value may need it. It is freed after its last
  reader when nothing evicted depends on it; from then on the ops that read it are not recomputed either (the "banish"
  of DTR).
- An evicted value comes back through all that it needs and that is missing as well. In a dense graph with long edges
  that is soon most of the graph: 250 random ops of some 4 inputs each are beyond all of these rules at 90 % of their
  memory, although plans with 1.2 % more time exist. The values that would have to stay have no reader left, and were
  freed before they were missed.
- Where nothing is left to evict, the replay exceeds the budget and goes on, so that it ends with a peak that it does
  reach. It gives up when it has computed for more than `limit_ns`: then it is thrashing. `settings` says how much that
  is.
"""

from __future__ import annotations

from collections.abc import Callable

from remat_solvers.problem import Problem
from remat_solvers.toolkit.eviction.memory import NEVER, Deallocate, Evictor, Memory

CHECK_EVERY = 64  # ops between two looks at the stopwatch


class Replay:
    """One replay of the step under a budget; `sequence` has the ops that it has computed, in order."""

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        evictor: Callable[[Memory], Evictor],
        *,
        deallocate: Deallocate = "eager",
        limit_ns: int,
        expired: Callable[[], bool] = lambda: False,
    ) -> None:
        self.memory = Memory(problem, budget_bytes, deallocate)
        self.evictor = evictor(self.memory)
        self.limit_ns = limit_ns
        self.expired = expired
        self.sequence: list[int] = []
        self.spent_ns = 0
        self.held_back: set[int] = set()  # outputs without a reader left, of ops that may not be recomputed
        self.last_needed: list[list[int]] = [[] for _ in problem.ops]  # per position, the values of that `last_need`
        for value, position in enumerate(self.memory.last_need):
            if position >= 0:
                self.last_needed[position].append(value)

    def run(self) -> bool:
        """Whether the step came to its end. Otherwise it was given up: it exceeds `limit_ns`, or `expired` says so."""
        for index in range(len(self.memory.problem.ops)):
            self.memory.position = index
            if not self._compute_with_inputs(index):
                return False
            self.memory.advance(index)
            self._deallocate(index)
        return True

    def _compute_with_inputs(self, index: int) -> bool:
        """Compute `index`, and before it all that is missing. False: given up."""
        memory = self.memory
        resident, awaited = memory.resident, memory.awaited
        agendas = [self._open(index)]
        while agendas:
            agenda = agendas[-1]
            op = agenda.pop()
            if agenda and not any(awaited[v] and not resident[v] for v in memory.problem.ops[op].outputs):
                self._close(op)  # computed by an agenda within this one
            elif agenda and not all(resident[v] for v in memory.reads[op]):
                agendas.append(self._open(op))  # an input was evicted since then, for want of anything else
                self._close(op)
            else:
                if not self._compute(op):
                    return False
                self._close(op)
                if not agenda:
                    for value in memory.reads[op]:
                        memory.unlock(value)
                    agendas.pop()
        return True

    def _open(self, op: int) -> list[int]:
        """The agenda of `op`: the ops to compute for it, itself included, the last first. Its inputs are locked."""
        memory = self.memory
        resident, reads, producer = memory.resident, memory.reads, memory.producer
        stack, needed = [op], {op}
        while stack:
            for value in reads[stack.pop()]:
                if not resident[value] and producer[value] not in needed:
                    needed.add(producer[value])
                    stack.append(producer[value])
        for other in needed:
            for value in reads[other]:
                memory.expect(value, 1)
        for value in reads[op]:
            memory.lock(value)
        return sorted(needed, reverse=True)

    def _close(self, op: int) -> None:
        """An op leaves its agenda: its inputs are awaited once less."""
        for value in self.memory.reads[op]:
            self.memory.expect(value, -1)
            if self.memory.deallocate == "eager":
                self._drop_unused(value)

    def _compute(self, op: int) -> bool:
        memory = self.memory
        for value in memory.reads[op]:
            memory.lock(value)
        while memory.held_bytes + memory.new_bytes[op] > memory.budget_bytes:
            candidates = memory.candidates()
            if not len(candidates):
                break
            self._evict(self.evictor.choose(candidates))
        self.sequence.append(op)
        self.spent_ns += memory.time[op]
        memory.now_ns += max(1, memory.time[op])
        memory.computed[op] = 1
        fresh = [value for value in memory.problem.ops[op].outputs if not memory.resident[value]]
        for value in fresh:
            memory.add(value)
        self.evictor.computed(op, fresh)
        for value in memory.reads[op]:
            memory.unlock(value)
        for value in fresh:
            self._drop_unused(value)
        return self.spent_ns <= self.limit_ns and not (len(self.sequence) % CHECK_EVERY == 0 and self.expired())

    def _drop_unused(self, value: int) -> None:
        """Drop a value that was restored only to recompute others, or has no reader."""
        memory = self.memory
        if not memory.resident[value] or memory.locks[value] or memory.awaited[value] or memory.pinned[value]:
            return
        if memory.next_use[value] != NEVER or not memory.repeatable[memory.producer[value]]:
            return
        if memory.last_need[value] < memory.position:
            memory.remove(value)
        elif memory.deallocate == "eager":
            self._evict(value)

    def _evict(self, value: int) -> None:
        self.memory.remove(value)
        self.evictor.evicted(value)

    def _deallocate(self, index: int) -> None:
        """After the first computation of `index`, free the values without a reader left."""
        memory = self.memory
        for value in (*memory.reads[index], *memory.problem.ops[index].outputs):
            if memory.next_use[value] == NEVER and memory.resident[value] and not memory.pinned[value]:
                if memory.repeatable[memory.producer[value]]:
                    self._drop_unused(value)
                else:
                    self.held_back.add(value)
        for value in self.last_needed[index]:
            if memory.resident[value] and not memory.pinned[value] and memory.repeatable[memory.producer[value]]:
                memory.remove(value)
            if not memory.resident[value]:
                self.evictor.released(value)
        for value in [v for v in self.held_back if memory.last_need[v] <= index]:
            self._drop_finally(value)

    def _drop_finally(self, value: int) -> None:
        """Drop an output that cannot be recomputed, unless an evicted value depends on it."""
        memory = self.memory
        readers = [op for op in memory.problem.consumers[value] if memory.repeatable[op]]
        if any(self._is_required(op) for op in readers):
            return
        self._forbid_recomputation(readers)
        self.held_back.discard(value)
        memory.remove(value)

    def _forbid_recomputation(self, ops: list[int]) -> None:
        """Never recompute these ops from now on, nor the readers of those of their outputs that are missing."""
        memory = self.memory
        stack = list(ops)
        while stack:
            op = stack.pop()
            if not memory.repeatable[op]:
                continue
            memory.repeatable[op] = 0
            for output in memory.problem.ops[op].outputs:
                memory.touch(output)
                if not memory.resident[output]:
                    stack.extend(memory.problem.consumers[output])
                elif not memory.pinned[output] and memory.next_use[output] == NEVER:
                    self.held_back.add(output)

    def _is_required(self, op: int) -> bool:
        """Whether `op` must be recomputed for an evicted value that is still read."""
        memory = self.memory
        stack, seen = [op], {op}
        while stack:
            for value in memory.problem.ops[stack.pop()].outputs:
                if memory.resident[value]:
                    continue
                if memory.next_use[value] != NEVER:
                    return True
                for reader in memory.problem.consumers[value]:
                    if reader not in seen and memory.computed[reader] and memory.repeatable[reader]:
                        seen.add(reader)
                        stack.append(reader)
        return False
