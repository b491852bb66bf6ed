"""Evict when memory is short, recompute when something is missing: the step as a caching runtime would run it.

The problem's order is replayed under the budget. Before an op runs, what it reads is brought back: the producer of a
missing value runs again, and before it those of what that reads and misses, in the problem's order. What these ops read
is not evicted before they have run, unless there is nothing else to evict. Where an op's outputs and workspace do not
fit, values are evicted, one at a time, as an `Evictor` chooses. The result is an op sequence;
`schedule.plan_from_sequence` frees at least as early, so its peak is never above.

What dynamic runtimes leave to their framework is settled here, where the whole step is known:

- A value with no reader left in the problem's order is deallocated. deallocate="eager" drops it at once, as DTR does
  by default (it is computed again if something evicted needs it, and dropped again after that); "ignore" leaves it to
  the evictor.
- Results stay from their first computation on.
- An output of an op that is not recomputable stays while an evicted value may need it; it goes after its last reader
  when nothing evicted depends on it, and then the ops that read it do not run again either (DTR's "banish").
- An evicted value comes back through whatever it needs that is gone as well. In a dense graph with long edges that is
  soon most of the graph: 250 random ops of some 4 inputs each are beyond all of these rules at 90 % of their memory,
  although plans with 1.2 % more time exist. What would have to stay has no reader left, and went before it was missed.
- Where nothing is left to evict, the replay goes over the budget and on, so that it ends with a peak it does reach.
  It gives up when it has computed more than `most_ns`: it is thrashing. `try_ways` says how much that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.toolkit.arrays import Indices
from remat_solvers.toolkit.trials import Trials

__all__ = ["PATIENCE", "THRASHING", "Deallocate", "Evictor", "Memory", "Replay", "Way", "try_ways"]

Deallocate: TypeAlias = Literal["eager", "ignore"]

NEVER = 2**62
FREELY, AT_NEED = 1, 2
CHECK_EVERY = 64  # ops between two looks at the clock
THRASHING = 2  # times the unmodified step's time: DTR's paper (figure 2) calls that much or more thrashing
PATIENCE = 6  # the same, where thrashing is better than no plan
PATIENT_OPS = 50_000  # computed in all replays: beyond that there is no such patience
SEARCH_STEPS = 4  # larger budgets tried where the one asked for is too small


class Evictor(Protocol):
    """Chooses what goes, and is told what happens."""

    def choose(self, candidates: Indices) -> int:
        """The value to evict, out of `candidates` (values on the device that may go and have bytes; not empty)."""
        ...

    def evicted(self, value: int) -> None:
        """`value` has left the device and may be computed again."""
        ...

    def gone(self, value: int) -> None:
        """Nothing will need `value` any more, as far as is known."""
        ...

    def computed(self, op: int, fresh: list[int]) -> None:
        """`op` has run; `fresh` are the outputs that were not there before."""
        ...


class Memory:
    """What is on the device, and what an evictor may ask about."""

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
        self.fresh = [sum(self.size[v] for v in op.outputs) + op.workspace_bytes for op in ops]
        self.held = problem.static_bytes
        self.here = bytearray(len(values))
        self.done = bytearray(len(ops))
        self.locks = [0] * len(values)  # read by the op that runs, or by one that runs as soon as its inputs are there
        self.hopes = [0] * len(values)  # read by ops that are about to run
        self.may_run = bytearray(op.recomputable for op in ops)
        self.pinned = bytearray(len(values))
        for value in problem.results:
            self.pinned[value] = 1
        self._may_go = bytearray(len(values))  # here, unlocked, not pinned, can be computed again, not empty
        self._candidates = np.frombuffer(self._may_go, dtype=np.uint8)
        self.position = 0  # in the problem's order
        self.uses: list[tuple[int, ...]] = [tuple(c) for c in problem.consumers]
        self.used = [0] * len(values)
        self.next_use = [u[0] if u else NEVER for u in self.uses]
        self.last_need = self._last_need()
        self.now_ns = 0  # time computed so far, every op at least 1

    def _last_need(self) -> list[int]:
        """Per value, the last position at which its first readers run, or may run again for the sake of others.

        Backward ops count with their own position only: gradients are rarely computed again, see `_banish`.
        """
        ops = self.problem.ops
        need = [-1] * len(self.size)
        for index in range(len(ops) - 1, -1, -1):
            op = ops[index]
            until = index
            if op.recomputable and op.phase == "forward":
                until = max([index, *(need[v] for v in op.outputs if not self.pinned[v])])
            for value in self.reads[index]:
                need[value] = max(need[value], until)
        return need

    def candidates(self) -> Indices:
        """Values that may be evicted; where there are none, those that are only hoped for."""
        candidates = np.flatnonzero(self._candidates == FREELY)
        return candidates if len(candidates) else np.flatnonzero(self._candidates == AT_NEED)

    def touch(self, value: int) -> None:
        """Find out anew whether `value` may be evicted."""
        may = (
            self.here[value]
            and not self.locks[value]
            and not self.pinned[value]
            and self.size[value] > 0
            and self.may_run[self.producer[value]]
        )
        self._may_go[value] = (AT_NEED if self.hopes[value] else FREELY) if may else 0

    def lock(self, value: int) -> None:
        self.locks[value] += 1
        self._may_go[value] = 0

    def unlock(self, value: int) -> None:
        self.locks[value] -= 1
        self.touch(value)

    def hope(self, value: int, change: int) -> None:
        self.hopes[value] += change
        self.touch(value)

    def remove(self, value: int) -> None:
        self.here[value] = 0
        self._may_go[value] = 0
        self.held -= self.size[value]

    def advance(self, op: int) -> None:
        """The first computation of `op` has run: its inputs' next use is a later one."""
        for value in self.reads[op]:
            self.used[value] += 1
            uses = self.uses[value]
            self.next_use[value] = uses[self.used[value]] if self.used[value] < len(uses) else NEVER


class Replay:
    """One run of the step under a budget; `sequence` is what it has computed, in order."""

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        evictor: Callable[[Memory], Evictor],
        *,
        deallocate: Deallocate = "eager",
        most_ns: int,
        expired: Callable[[], bool] = lambda: False,
    ) -> None:
        self.memory = Memory(problem, budget_bytes, deallocate)
        self.evictor = evictor(self.memory)
        self.most_ns = most_ns
        self.expired = expired
        self.sequence: list[int] = []
        self.spent_ns = 0
        self.held_back: set[int] = set()  # outputs of ops that may not run again, without a reader left
        self.leaving: list[list[int]] = [[] for _ in problem.ops]
        for value, position in enumerate(self.memory.last_need):
            if position >= 0:
                self.leaving[position].append(value)

    def run(self) -> bool:
        """Whether the step came to its end; otherwise it is given up: it takes more than `most_ns`, or has expired."""
        for index in range(len(self.memory.problem.ops)):
            self.memory.position = index
            if not self._bring(index):
                return False
            self.memory.advance(index)
            self._deallocate(index)
        return True

    def _bring(self, index: int) -> bool:
        """Run `index`, and before it whatever is missing. False: given up."""
        memory = self.memory
        here, hopes = memory.here, memory.hopes
        agendas = [self._open(index)]
        while agendas:
            agenda = agendas[-1]
            op = agenda.pop()
            if agenda and not any(hopes[v] and not here[v] for v in memory.problem.ops[op].outputs):
                self._close(op)  # run by an agenda within this one
            elif agenda and not all(here[v] for v in memory.reads[op]):
                agendas.append(self._open(op))  # something was evicted since, for want of anything else
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
        """What has to run for `op`, itself included, the last first; their inputs are hoped for, its own are locked."""
        memory = self.memory
        here, reads, producer = memory.here, memory.reads, memory.producer
        stack, needed = [op], {op}
        while stack:
            for value in reads[stack.pop()]:
                if not here[value] and producer[value] not in needed:
                    needed.add(producer[value])
                    stack.append(producer[value])
        for other in needed:
            for value in reads[other]:
                memory.hope(value, 1)
        for value in reads[op]:
            memory.lock(value)
        return sorted(needed, reverse=True)

    def _close(self, op: int) -> None:
        """An op of an agenda is through: its inputs are hoped for once less."""
        for value in self.memory.reads[op]:
            self.memory.hope(value, -1)
            if self.memory.deallocate == "eager":
                self._drop_unused(value)

    def _compute(self, op: int) -> bool:
        memory = self.memory
        for value in memory.reads[op]:
            memory.lock(value)
        while memory.held + memory.fresh[op] > memory.budget_bytes:
            candidates = memory.candidates()
            if not len(candidates):
                break
            self._evict(self.evictor.choose(candidates))
        self.sequence.append(op)
        self.spent_ns += memory.time[op]
        memory.now_ns += max(1, memory.time[op])
        memory.done[op] = 1
        fresh = [value for value in memory.problem.ops[op].outputs if not memory.here[value]]
        for value in fresh:
            memory.here[value] = 1
            memory.held += memory.size[value]
            memory.touch(value)
        self.evictor.computed(op, fresh)
        for value in memory.reads[op]:
            memory.unlock(value)
        for value in fresh:
            self._drop_unused(value)
        return self.spent_ns <= self.most_ns and not (len(self.sequence) % CHECK_EVERY == 0 and self.expired())

    def _drop_unused(self, value: int) -> None:
        """Drop what came back for others only, or was never of use."""
        memory = self.memory
        if not memory.here[value] or memory.locks[value] or memory.hopes[value] or memory.pinned[value]:
            return
        if memory.next_use[value] != NEVER or not memory.may_run[memory.producer[value]]:
            return
        if memory.last_need[value] < memory.position:
            memory.remove(value)
        elif memory.deallocate == "eager":
            self._evict(value)

    def _evict(self, value: int) -> None:
        self.memory.remove(value)
        self.evictor.evicted(value)

    def _deallocate(self, index: int) -> None:
        """After the first computation of `index`, let go of what has no reader left."""
        memory = self.memory
        for value in (*memory.reads[index], *memory.problem.ops[index].outputs):
            if memory.next_use[value] == NEVER and memory.here[value] and not memory.pinned[value]:
                if memory.may_run[memory.producer[value]]:
                    self._drop_unused(value)
                else:
                    self.held_back.add(value)
        for value in self.leaving[index]:
            if memory.here[value] and not memory.pinned[value] and memory.may_run[memory.producer[value]]:
                memory.remove(value)
            if not memory.here[value]:
                self.evictor.gone(value)
        for value in [v for v in self.held_back if memory.last_need[v] <= index]:
            self._banish(value)

    def _banish(self, value: int) -> None:
        """Drop an output that cannot be computed again, unless something evicted depends on it."""
        memory = self.memory
        readers = [op for op in memory.problem.consumers[value] if memory.may_run[op]]
        if any(self._is_missed(op) for op in readers):
            return
        self._forbid(readers)
        self.held_back.discard(value)
        memory.remove(value)

    def _forbid(self, ops: list[int]) -> None:
        """These do not run again, nor do those that read what they made and is gone."""
        memory = self.memory
        stack = list(ops)
        while stack:
            op = stack.pop()
            if not memory.may_run[op]:
                continue
            memory.may_run[op] = 0
            for output in memory.problem.ops[op].outputs:
                memory.touch(output)
                if not memory.here[output]:
                    stack.extend(memory.problem.consumers[output])
                elif not memory.pinned[output] and memory.next_use[output] == NEVER:
                    self.held_back.add(output)

    def _is_missed(self, op: int) -> bool:
        """Whether something evicted that is still read needs `op` to run again."""
        memory = self.memory
        stack, seen = [op], {op}
        while stack:
            for value in memory.problem.ops[stack.pop()].outputs:
                if memory.here[value]:
                    continue
                if memory.next_use[value] != NEVER:
                    return True
                for reader in memory.problem.consumers[value]:
                    if reader not in seen and memory.done[reader] and memory.may_run[reader]:
                        seen.add(reader)
                        stack.append(reader)
        return False


@dataclass(frozen=True, slots=True)
class Way:
    """One way to replay."""

    form: str  # for people
    evictor: Callable[[Memory], Evictor]
    deallocate: Deallocate


def try_ways(
    problem: Problem, budget_bytes: int, ways: Sequence[Way], limits: Limits, on_progress: OnProgress | None
) -> Outcome:
    """The fastest plan that any of `ways` finds.

    A way is given up when it is slower than the best before it, or takes THRASHING times the unmodified step. Where all
    are given up and have not computed more than PATIENT_OPS ops together, each is tried again up to PATIENCE times.
    Where none fits, larger budgets are tried for a smaller peak that can be reached, the way that came closest first.
    """
    trials = _Trials(problem, budget_bytes, limits, on_progress)
    with trials.trials:
        trials.run(ways)
    return trials.trials.outcome()


class _Trials:
    def __init__(self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.trials = Trials(problem, budget_bytes, limits, on_progress)
        self.unmodified_ns = sum(op.time_ns for op in problem.ops)
        self.times = THRASHING
        self.computed_ops = 0

    def run(self, ways: Sequence[Way]) -> None:
        frugal, reached = (
            ways[0],
            (NEVER, len(self.problem.ops)),
        )  # the way of the smallest peak, or else the one that got farthest
        while self.trials.best is None:
            given_up = []
            for way in ways:
                if self._expired():
                    return
                peak_bytes, left = self._replay(way, self.budget_bytes)
                if left:
                    given_up.append(way)
                if (peak_bytes, left) < reached:
                    frugal, reached = way, (peak_bytes, left)
            if self.times == PATIENCE or not given_up or self.computed_ops > PATIENT_OPS:
                break
            self.times, ways = PATIENCE, given_up
        if self.trials.best is None:
            self._search((frugal, *(way for way in ways if way is not frugal)))

    def _search(self, ways: Sequence[Way]) -> None:
        """By bisection, as if success were monotone in the budget; the first of `ways` that gets through counts."""
        low, high = self.budget_bytes, baseline(self.problem).peak_bytes
        for _ in range(SEARCH_STEPS):
            smallest = self.trials.smallest_peak_bytes
            high = high if smallest is None else min(high, smallest)
            middle = (low + high) // 2
            if middle <= low or self._expired():
                return
            for way in ways:
                _, left = self._replay(way, middle)
                if not left or self.computed_ops > PATIENT_OPS or self._expired():
                    break
            if self.trials.smallest_peak_bytes is None or self.trials.smallest_peak_bytes > middle:
                low = middle

    def _expired(self) -> bool:
        if self.trials.watch.expired:
            self.trials.stopped = Stopped.TIME
            return True
        return False

    def _replay(self, way: Way, budget_bytes: int) -> tuple[int, int]:
        """The peak, NEVER where the replay was given up, and how many ops of the problem's order were left then."""
        best = self.trials.best
        replay = Replay(
            self.problem,
            budget_bytes,
            way.evictor,
            deallocate=way.deallocate,
            most_ns=self.times * self.unmodified_ns if best is None else best.time_ns,
            expired=lambda: self.trials.watch.expired,
        )
        through = replay.run()
        self.computed_ops += len(replay.sequence)
        if not through:
            return NEVER, len(self.problem.ops) - replay.memory.position
        return self.trials.replay_sequence(replay.sequence, way.form).peak_bytes, 0
