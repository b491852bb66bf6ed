"""From what is to be away to when it moves: the copies of a set of absences, scheduled around compute under a budget.

A method chooses an op sequence and absences (`trips.absences`); this gives a plan for them, in one pass over the
sequence on the clock of the replay:

- out: every chosen value is copied as soon as its last use before the absence is over, in that order
- leave: its bytes go when the copy has ended; compute waits for a copy under way only where the next op would not fit
  otherwise, for the oldest copy first
- fetch: as late as the queue allows without a wait (`latest_fetches`, the clock shifted by the waits so far), later
  where it would not fit up to the op that reads it, at the latest before that op; in the order of reading

A value whose copy is still under way when it is read again stays, and so does one that the host has no room for. Where
an op does not fit although every finished copy has left, the pass ends and says at which position, by how many bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import plan_from_sequence, tangents_first
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.transfers.device import Device
from remat_solvers.toolkit.transfers.intervals import Absence, Clock, latest_fetches

__all__ = ["Overflow", "Traffic", "frees_of"]


@dataclass(frozen=True, slots=True)
class Overflow:
    """An op that does not fit."""

    position: int
    excess_bytes: int


class Traffic:
    """Plans of one problem and one op sequence, for any choice of absences."""

    def __init__(self, problem: Problem, sequence: Sequence[int]) -> None:
        self.problem = problem
        self.sequence = list(tangents_first(problem, sequence))
        self.clock = Clock(problem, self.sequence)
        self.size = [v.bytes for v in problem.values]
        link = problem.link
        assert link is not None
        self.out_ns = [copy_ns(size, link.to_host_bytes_per_s, link.latency_ns) for size in self.size]
        self.back_ns = [copy_ns(size, link.to_device_bytes_per_s, link.latency_ns) for size in self.size]
        self.frees = frees_of(problem, self.sequence)
        self.fresh, self.stays = self._made()
        self.profile = self._profile()

    def _made(self) -> tuple[list[int], list[int]]:
        """Per position: bytes that the op needs beside what is there, and those that stay of them."""
        there = [v.kind == "constant" for v in self.problem.values]
        fresh, stays = [], []
        for position, op in enumerate(self.sequence):
            outputs = self.problem.ops[op].outputs
            new = sum(self.size[v] for v in outputs if not there[v])
            fresh.append(sum(self.size[v] for v in outputs) + self.problem.ops[op].workspace_bytes)
            stays.append(new)
            for value in outputs:
                there[value] = True
            for value in self.frees[position]:
                there[value] = False
        return fresh, stays

    def _profile(self) -> Ints:
        """Per position: bytes on the device while the op runs, with nothing away."""
        held = self.problem.static_bytes
        profile = []
        for position, (fresh, stays) in enumerate(zip(self.fresh, self.stays, strict=True)):
            profile.append(held + fresh)
            held += stays - sum(self.size[v] for v in self.frees[position])
        return np.array(profile, dtype=np.int64)

    def plan(
        self, away: Iterable[Absence], budget_bytes: int, triggers: Mapping[Absence, int] | None = None
    ) -> Plan | Overflow:
        """The plan in which the values of `away` are away, or where it does not fit.

        triggers: the position from which an absence's copy back may start, in place of the latest without a wait.
        """
        return _Pass(self, away, budget_bytes, triggers).run()


def frees_of(problem: Problem, sequence: Sequence[int]) -> list[list[int]]:
    """Per position, the values that liveness frees after it."""
    frees: list[list[int]] = []
    for action in plan_from_sequence(problem, sequence):
        if isinstance(action, Compute):
            frees.append([])
        elif isinstance(action, Free):
            frees[-1].append(action.value)
    return frees


class _Pass(Device):
    def __init__(
        self, traffic: Traffic, away: Iterable[Absence], budget_bytes: int, triggers: Mapping[Absence, int] | None
    ) -> None:
        super().__init__(traffic, budget_bytes)
        chosen = sorted(away, key=lambda a: (a.back, a.last))
        if triggers is None:
            latest = latest_fetches(traffic.problem, traffic.clock, [(a.value, a.back) for a in chosen])
            triggers = dict(zip(chosen, latest, strict=True))
        self.returns = deque((a, max(triggers[a], a.last + 1)) for a in chosen)
        self.leaving: dict[int, list[Absence]] = {}
        self.planned = traffic.profile.copy()  # per position, once everything is where it should be
        for absence in chosen:
            self.planned[absence.last + 1 : absence.back] -= traffic.size[absence.value]
            self.leaving.setdefault(absence.last, []).append(absence)
        self.copying: dict[int, int] = {}  # values whose copy is under way or over, not freed yet -> its end
        self.gone: set[int] = set()  # values that are away

    def run(self) -> Plan | Overflow:
        traffic = self.traffic
        for position, op in enumerate(traffic.sequence):
            self._let_go()
            overflow = self._bring_back(position, traffic.fresh[position])
            if overflow is not None:
                return overflow
            self.compute(position, self.problem.ops[op].time_ns)
            for value in traffic.frees[position]:
                self.free(value)
            for absence in self.leaving.get(position, ()):
                self._send(absence.value)
        overflow = self._bring_back(len(traffic.sequence), 0)
        return Plan(self.actions) if overflow is None else overflow

    def _let_go(self) -> None:
        """Free what has been copied by now."""
        while self.copying:
            value, end = next(iter(self.copying.items()))
            if end > self.now:
                return
            self._depart(value)

    def _bring_back(self, position: int, need_bytes: int) -> Overflow | None:
        """Fetch what is due, as far as it fits beside the op at `position`, and make room for that op."""
        while self.returns:
            absence, trigger = self.returns[0]
            if trigger > position:
                break
            value = absence.value
            if value in self.copying:
                if absence.back > position:
                    break
                del self.copying[value]  # too late to leave: it stays
            elif value in self.gone:
                if absence.back > position and not self._fits(value, position, absence.back, need_bytes):
                    break
                self.planned[position : absence.back] += self.size[value]
                self._make_room(need_bytes + self.size[value])
                self.gone.discard(value)
                self.fetch(value)
            self.returns.popleft()
        self._make_room(need_bytes)
        excess = self.held + need_bytes - self.budget_bytes
        return Overflow(position, excess) if excess > 0 else None

    def _make_room(self, need_bytes: int) -> None:
        """Wait for copies until `need_bytes` fit beside what is there."""
        while self.copying and self.held + need_bytes > self.budget_bytes:
            value, end = next(iter(self.copying.items()))
            self.now = max(self.now, end)
            self._depart(value)

    def _fits(self, value: int, position: int, back: int, need_bytes: int) -> bool:
        """Whether `value` may be on the device from `position` on, already."""
        now = self.held + need_bytes
        later = int(self.planned[position:back].max())
        return max(now, later) + self.size[value] <= self.budget_bytes

    def _send(self, value: int) -> None:
        if self.host_has_room(value):  # else it stays
            self.offload(value)
            self.copying[value] = self.copied[value]

    def _depart(self, value: int) -> None:
        del self.copying[value]
        self.gone.add(value)
        self.free(value)
