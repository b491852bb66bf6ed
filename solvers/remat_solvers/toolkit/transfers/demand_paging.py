"""Demand paging: runs a sequence on a device of a given size, and evicts values to the host when one does not fit.

Before an op, those of its values that are off the device are fetched; where these, or what the op allocates, do not
fit, victims are evicted one by one until they do: copied to the host (once, since values do not change), and freed when
the copy has ended. Compute waits for both. A victim is a movable value that the op does not use ("locked"), the first
in the order of

    lru        its latest access: the one whose is longest ago
    list       its first access: the start of the list of all accesses so far
    farthest   its next use: the one whose is farthest in the future

Two things happen ahead of need, if a method asks for them: values of `eager` are copied as soon as they are computed,
and freed when the copy has ended and no forward op reads them any more; and `prefetch` names, per position, a value
that is fetched there if it fits beside the op.

These must be on the device: what an op reads; the forward results, from the last first computation of a forward op on;
all results, at the end. So paging succeeds down to `smallest_paging_budget` exactly, if the host has room.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import boundary_of
from remat_solvers.toolkit.transfers.device import Device, Overflow
from remat_solvers.toolkit.transfers.intervals import IdleInterval
from remat_solvers.toolkit.transfers.profile import StepProfile, frees_by_position

VictimOrder: TypeAlias = Literal["lru", "list", "farthest"]


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """The plan of an execution that fits the budget."""

    plan: Plan
    intervals: tuple[IdleInterval, ...]  # in which values were off the device, in the order of the evictions


def movable_values(problem: Problem, sequence: Sequence[int]) -> set[int]:
    """The values that can be offloaded as one instance: those with bytes whose producer is computed once."""
    computations = [0] * len(problem.ops)
    for op in sequence:
        computations[op] += 1
    return {v for v, p in enumerate(problem.producer) if p >= 0 and computations[p] == 1 and problem.values[v].bytes}


def required_values(problem: Problem, sequence: Sequence[int]) -> list[tuple[int, ...]]:
    """Per position, and for the end: the values that must be on the device, the outputs of the op left out."""
    boundary = boundary_of(problem, sequence)
    required: list[tuple[int, ...]] = []
    for position, op in enumerate(sequence):
        values = [v for v in problem.ops[op].inputs if problem.producer[v] >= 0]
        if 0 <= boundary - 1 <= position:
            values += [v for v in problem.forward_results if v not in problem.ops[op].outputs]
        required.append(tuple(dict.fromkeys(values)))
    return [*required, tuple(v for v in problem.results if problem.producer[v] >= 0)]


def smallest_paging_budget(problem: Problem, sequence: Sequence[int], movable: set[int]) -> int:
    """The smallest budget, in bytes, in which `sequence` runs if movable values are resident only while required.

    `sequence` has the tangents where `tangents_first` puts them.
    """
    size = [v.bytes for v in problem.values]
    resident = [v.kind == "constant" for v in problem.values]
    held = problem.static_bytes
    budget_bytes = held
    frees = [*frees_by_position(problem, sequence), []]
    for op, required, freed in zip([*sequence, None], required_values(problem, sequence), frees, strict=True):
        used = held + sum(size[v] for v in required if v in movable)
        if op is not None:
            outputs = problem.ops[op].outputs
            used += sum(size[v] for v in outputs) + problem.ops[op].workspace_bytes
            held += sum(size[v] for v in outputs if not resident[v] and v not in movable)
            for value in outputs:
                resident[value] = True
        budget_bytes = max(budget_bytes, used)
        for value in freed:
            resident[value] = False
            held -= 0 if value in movable else size[value]
    return budget_bytes


class DemandPaging(Device):
    """One execution of a sequence.

    movable: the values that may be evicted, each computed once in the sequence (`movable_values`); victims: the order
    in which they are evicted; eager: values that are copied to the host as soon as they are computed; prefetch: the
    value to fetch ahead at a position.
    """

    def __init__(
        self,
        profile: StepProfile,
        movable: Iterable[int],
        budget_bytes: int,
        victims: VictimOrder,
        *,
        eager: Collection[int] = (),
        prefetch: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(profile, budget_bytes)
        self.movable = set(movable)
        self.victims = victims
        self.eager = eager
        self.prefetch = prefetch or {}
        self.boundary = boundary_of(self.problem, profile.sequence)
        self.required = required_values(self.problem, profile.sequence)
        self.uses = _uses(self.required, self.movable)
        self.resident: set[int] = set()  # movable values on the device
        self.copying: dict[int, int] = {}  # eager copies whose value is not freed yet -> their end in ns
        self.order: list[tuple[int, int]] = []  # heap of (rank, value); stale if the rank has changed since
        self.rank: dict[int, int] = {}
        self.first_access: dict[int, int] = {}  # positions
        self.last_access: dict[int, int] = {}
        self.intervals: list[IdleInterval] = []

    def run(self) -> PagedPlan | Overflow:
        """The plan, or the first op that does not fit."""
        profile = self.profile
        for position, op in enumerate(profile.sequence):
            excess_bytes = self._admit(position, self.op_bytes(position))
            if excess_bytes > 0:
                return Overflow(position, excess_bytes)
            self.compute(position, self.op_time_ns(position))
            self._register(position, self.problem.ops[op].outputs)
            for value in profile.frees[position]:
                self.free(value)
            self._free_copied(position)
        end = len(profile.sequence)
        excess_bytes = self._admit(end, 0)
        return Overflow(end, excess_bytes) if excess_bytes > 0 else PagedPlan(Plan(self.actions), tuple(self.intervals))

    def op_bytes(self, position: int) -> int:
        """The bytes that the op at `position` needs at least, beside the resident values."""
        return self.profile.op_bytes[position]

    def op_time_ns(self, position: int) -> int:
        """The time of the op at `position` once all its inputs are resident."""
        return self.problem.ops[self.profile.sequence[position]].time_ns

    def _admit(self, position: int, op_bytes: int) -> int:
        """Fetch the inputs of the op and make room for it; return the bytes that are in excess even so."""
        required = self.required[position]
        missing = [v for v in required if v in self.movable and v not in self.resident]
        needed_bytes = op_bytes + sum(self.size_bytes[v] for v in missing)
        while self.held_bytes + needed_bytes > self.budget_bytes:
            victim = self._victim(required)
            if victim is None:
                return self.held_bytes + needed_bytes - self.budget_bytes
            self._evict(victim, position)
        for value in missing:
            self.fetch(value)
        for value in required:
            self._access(value, position)
        self._fetch_ahead(position, op_bytes)
        return 0

    def _fetch_ahead(self, position: int, op_bytes: int) -> None:
        value = self.prefetch.get(position)
        if value is None or value not in self.host or value in self.resident:
            return
        if self.held_bytes + op_bytes + self.size_bytes[value] <= self.budget_bytes:
            self.fetch(value)
            self._access(value, position)

    def _victim(self, locked: Collection[int]) -> int | None:
        """The first value in the order of victims that may be evicted. Those that are skipped keep their rank."""
        popped = []
        victim = None
        while self.order and victim is None:
            entry = heapq.heappop(self.order)
            rank, value = entry
            if value in self.resident and self.rank[value] == rank:
                popped.append(entry)
                if value not in locked and self.host_has_room(value):
                    victim = value
        for entry in popped:
            heapq.heappush(self.order, entry)
        return victim

    def _access(self, value: int, position: int) -> None:
        """Give `value` the rank that its access at `position` means."""
        self.last_access[value] = position
        if value in self.resident:
            ranks = {
                "lru": position,
                "list": self.first_access[value],
                "farthest": -self._next_use(value, position + 1),
            }
            self.rank[value] = ranks[self.victims]
            heapq.heappush(self.order, (self.rank[value], value))

    def _next_use(self, value: int, position: int) -> int:
        """The first use at `position` or later; the sequence's length where there is none."""
        uses = self.uses[value]
        index = bisect_left(uses, position)
        return uses[index] if index < len(uses) else len(self.profile.sequence)

    def _evict(self, value: int, position: int) -> None:
        self._copy(value)
        self.intervals.append(IdleInterval(value, self.last_access[value], self._next_use(value, position)))
        self.free(value)

    def _copy(self, value: int) -> None:
        if value not in self.host:
            self.offload(value)

    def free(self, value: int) -> None:
        """Free it, and forget its rank and its eager copy."""
        super().free(value)
        self.resident.discard(value)
        self.copying.pop(value, None)

    def fetch(self, value: int) -> None:
        """Start the copy back; the value is resident."""
        super().fetch(value)
        self.resident.add(value)

    def _register(self, position: int, outputs: Iterable[int]) -> None:
        """Take note of the outputs of the op at `position`, and copy the eager ones."""
        for value in outputs:
            if value in self.movable:
                self.resident.add(value)
                self.first_access[value] = position
                self._access(value, position)
                if value in self.eager and self.host_has_room(value):
                    self._copy(value)
                    self.copying[value] = self.offload_end_ns[value]

    def _free_copied(self, position: int) -> None:
        """In the forward, free the eager values whose copy has ended and that only backward still reads."""
        if position + 1 < self.boundary:
            for value, end_ns in list(self.copying.items()):
                if end_ns <= self.now_ns and self._next_use(value, position + 1) >= self.boundary:
                    self._evict(value, position + 1)


def _uses(required: Sequence[Sequence[int]], movable: set[int]) -> dict[int, list[int]]:
    """Per movable value: the positions at which it must be resident, ascending."""
    uses: dict[int, list[int]] = {value: [] for value in movable}
    for position, values in enumerate(required):
        for value in values:
            if value in movable:
                uses[value].append(position)
    return uses
