"""Demand paging: the ops of a sequence run on a device that holds a given number of bytes, and values leave when one
does not fit.

Before an op, the values of it that are away are fetched; where that, or what the op makes, does not fit, victims leave
one by one until it does: copied to the host (once, they do not change), and freed when the copy has ended. Compute
waits for both. A victim is a movable value that the op does not use ("locked"), the first in the order of

    lru        its latest access: the one whose is longest ago
    list       its first access: the start of the list of all accesses so far
    farthest   its next use: the one whose is farthest away

Two things happen ahead of need, if a method asks for them: values of `eager` are copied as soon as they are made, and
leave when the copy has ended and no forward op reads them any more; and `prefetch` names, per position, a value that is
fetched there if it fits beside the op.

What must be on the device: what an op reads; the forward results, from the last first run of a forward op on; all
results, at the end. So paging succeeds down to `least_bytes` exactly, if the host has room.
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
from remat_solvers.toolkit.transfers.device import Device
from remat_solvers.toolkit.transfers.intervals import Absence
from remat_solvers.toolkit.transfers.scheduler import Overflow, Traffic, frees_of

__all__ = ["Paged", "Paging", "Victims", "least_bytes", "movable_values", "needs_of"]

Victims: TypeAlias = Literal["lru", "list", "farthest"]


@dataclass(frozen=True, slots=True)
class Paged:
    """What came of it."""

    plan: Plan
    absences: tuple[Absence, ...]  # who was away, between which uses


def movable_values(problem: Problem, sequence: Sequence[int]) -> set[int]:
    """What can be moved as one instance: values of bytes whose producer runs once."""
    runs = [0] * len(problem.ops)
    for op in sequence:
        runs[op] += 1
    return {v for v, p in enumerate(problem.producer) if p >= 0 and runs[p] == 1 and problem.values[v].bytes}


def needs_of(problem: Problem, sequence: Sequence[int]) -> list[tuple[int, ...]]:
    """Per position, and for the end: the values that must be on the device, those that the op makes left out."""
    made = [v for v in problem.results if problem.producer[v] >= 0]
    forward_results = [v for v in made if problem.ops[problem.producer[v]].phase == "forward"]
    from_position = boundary_of(problem, sequence) - 1
    needs: list[tuple[int, ...]] = []
    for position, op in enumerate(sequence):
        reads = [v for v in problem.ops[op].inputs if problem.producer[v] >= 0]
        if position >= from_position >= 0:
            reads += [v for v in forward_results if v not in problem.ops[op].outputs]
        needs.append(tuple(dict.fromkeys(reads)))
    return [*needs, tuple(made)]


def least_bytes(problem: Problem, sequence: Sequence[int], movable: set[int]) -> int:
    """The smallest budget in which `sequence` runs with movable values on the device only while they are needed.

    `sequence` has the tangents where `tangents_first` puts them.
    """
    size = [v.bytes for v in problem.values]
    there = [v.kind == "constant" for v in problem.values]
    held = problem.static_bytes
    least = held
    for op, needs, ends in zip(
        [*sequence, None], needs_of(problem, sequence), [*frees_of(problem, sequence), []], strict=True
    ):
        used = held + sum(size[v] for v in needs if v in movable)
        if op is not None:
            outputs = problem.ops[op].outputs
            used += sum(size[v] for v in outputs) + problem.ops[op].workspace_bytes
            held += sum(size[v] for v in outputs if not there[v] and v not in movable)
            for value in outputs:
                there[value] = True
        least = max(least, used)
        for value in ends:
            there[value] = False
            held -= 0 if value in movable else size[value]
    return least


class Paging(Device):
    """One run. `movable`: values that may leave, each made once in the sequence (`movable_values`)."""

    def __init__(
        self,
        traffic: Traffic,
        movable: Iterable[int],
        budget_bytes: int,
        victims: Victims,
        *,
        eager: Collection[int] = (),
        prefetch: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(traffic, budget_bytes)
        self.movable = set(movable)
        self.victims = victims
        self.eager = eager
        self.prefetch = prefetch or {}
        self.boundary = boundary_of(self.problem, traffic.sequence)
        self.needs = needs_of(self.problem, traffic.sequence)
        self.uses = _uses(self.needs, self.movable)
        self.here: set[int] = set()  # movable values on the device
        self.waiting: dict[int, int] = {}  # eager copies whose value has not left yet -> their end
        self.order: list[tuple[int, int]] = []  # heap of (rank, value); stale where the rank has changed since
        self.rank: dict[int, int] = {}
        self.first: dict[int, int] = {}  # access
        self.last: dict[int, int] = {}
        self.absences: list[Absence] = []

    def run(self) -> Paged | Overflow:
        """The plan, or the first op that does not fit."""
        traffic = self.traffic
        for position, op in enumerate(traffic.sequence):
            excess = self._admit(position, self.fresh_bytes(position))
            if excess > 0:
                return Overflow(position, excess)
            self.compute(position, self.time_ns(position))
            self._made(position, self.problem.ops[op].outputs)
            for value in traffic.frees[position]:
                self.free(value)
            self._let_go(position)
        excess = self._admit(len(traffic.sequence), 0)
        return (
            Overflow(len(traffic.sequence), excess) if excess > 0 else Paged(Plan(self.actions), tuple(self.absences))
        )

    def fresh_bytes(self, position: int) -> int:
        """What the op at `position` needs beside what is there, at least."""
        return self.traffic.fresh[position]

    def time_ns(self, position: int) -> int:
        """How long the op at `position` takes, everything it needs being there."""
        return self.problem.ops[self.traffic.sequence[position]].time_ns

    def _admit(self, position: int, fresh_bytes: int) -> int:
        """Bring in what the op needs and make room; the bytes that are too many even so."""
        needs = self.needs[position]
        missing = [v for v in needs if v in self.movable and v not in self.here]
        room = fresh_bytes + sum(self.size[v] for v in missing)
        while self.held + room > self.budget_bytes:
            victim = self._victim(needs)
            if victim is None:
                return self.held + room - self.budget_bytes
            self._evict(victim, position)
        for value in missing:
            self.fetch(value)
        for value in needs:
            self._touch(value, position)
        self._fetch_ahead(position, fresh_bytes)
        return 0

    def _fetch_ahead(self, position: int, fresh_bytes: int) -> None:
        value = self.prefetch.get(position)
        if value is None or value not in self.host or value in self.here:
            return
        if self.held + fresh_bytes + self.size[value] <= self.budget_bytes:
            self.fetch(value)
            self._touch(value, position)

    def _victim(self, locked: Collection[int]) -> int | None:
        """The first in the order of victims that may leave. What is passed over keeps its place."""
        passed = []
        victim = None
        while self.order and victim is None:
            entry = heapq.heappop(self.order)
            rank, value = entry
            if value in self.here and self.rank[value] == rank:
                passed.append(entry)
                if value not in locked and self.host_has_room(value):
                    victim = value
        for entry in passed:
            heapq.heappush(self.order, entry)
        return victim

    def _touch(self, value: int, position: int) -> None:
        """`value` is accessed."""
        self.last[value] = position
        if value in self.here:
            ranks = {"lru": position, "list": self.first[value], "farthest": -self._next_use(value, position + 1)}
            self.rank[value] = ranks[self.victims]
            heapq.heappush(self.order, (self.rank[value], value))

    def _next_use(self, value: int, position: int) -> int:
        """The first use at `position` or later; the sequence's length where there is none."""
        uses = self.uses[value]
        at = bisect_left(uses, position)
        return uses[at] if at < len(uses) else len(self.traffic.sequence)

    def _evict(self, value: int, position: int) -> None:
        self._copy(value)
        self.absences.append(Absence(value, self.last[value], self._next_use(value, position)))
        self.free(value)

    def _copy(self, value: int) -> None:
        if value not in self.host:
            self.offload(value)

    def free(self, value: int) -> None:
        """It is not here any more."""
        super().free(value)
        self.here.discard(value)
        self.waiting.pop(value, None)

    def fetch(self, value: int) -> None:
        """It is here again."""
        super().fetch(value)
        self.here.add(value)

    def _made(self, position: int, outputs: Iterable[int]) -> None:
        for value in outputs:
            if value in self.movable:
                self.here.add(value)
                self.first[value] = position
                self._touch(value, position)
                if value in self.eager and self.host_has_room(value):
                    self._copy(value)
                    self.waiting[value] = self.copied[value]

    def _let_go(self, position: int) -> None:
        """In the forward, free what has been copied ahead of need and is read in the backward only."""
        if position + 1 < self.boundary:
            for value, end in list(self.waiting.items()):
                if end <= self.now and self._next_use(value, position + 1) >= self.boundary:
                    self._evict(value, position + 1)


def _uses(needs: Sequence[Sequence[int]], movable: set[int]) -> dict[int, list[int]]:
    """Per movable value: the positions at which it must be there, ascending."""
    uses: dict[int, list[int]] = {value: [] for value in movable}
    for position, values in enumerate(needs):
        for value in values:
            if value in movable:
                uses[value].append(position)
    return uses
