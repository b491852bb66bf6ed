"""Schedules the copies of chosen idle intervals around compute, under a budget.

A method chooses an op sequence and idle intervals (`idle_intervals`) during which values are to be off the device.
`schedule_copies` gives a plan for them, in one pass over the sequence on the clock of the replay:

- offload: every chosen value is copied as soon as its last use before the interval is over, in that order
- free: its bytes are freed when the copy has ended; compute waits for a copy under way only where the next op would not
  fit otherwise, for the oldest copy first
- fetch: as late as the queue allows without a wait (`latest_fetches`, the clock shifted by the waits so far), later
  where the value would not fit up to the op that reads it, at the latest before that op; in the order of reading

A value whose copy is still under way when it is read again stays, and so does one that the host has no room for. Where
an op does not fit although every finished copy has been freed, the pass ends and returns the position and the excess.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence

from remat_solvers.plan import Plan
from remat_solvers.toolkit.transfers.device import Overflow, SwappingDevice
from remat_solvers.toolkit.transfers.intervals import IdleInterval, latest_fetches
from remat_solvers.toolkit.transfers.profile import StepProfile


def schedule_copies(
    profile: StepProfile,
    intervals: Iterable[IdleInterval],
    budget_bytes: int,
    triggers: Mapping[IdleInterval, int] | None = None,
) -> Plan | Overflow:
    """The plan in which the values of `intervals` are off the device during them, or the first op that does not fit.

    triggers: per interval, the position from which its copy back may start; None: the latest that causes no wait.
    """
    return _Pass(profile, intervals, budget_bytes, triggers).run()


def relieving_intervals(
    profile: StepProfile, intervals: Sequence[IdleInterval], chosen: Container[IdleInterval], overflow: Overflow
) -> list[IdleInterval]:
    """Further `intervals` around an op that does not fit, those of most slack first, until their bytes suffice.

    If all of them do not suffice, all are returned.
    """
    position, missing_bytes = overflow.position, overflow.excess_bytes
    around = [i for i in intervals if i.last < position < i.back and i not in chosen]
    around.sort(key=lambda i: (-profile.slack_ns(i), i.last, i.value))
    relief: list[IdleInterval] = []
    for interval in around:
        if missing_bytes <= 0:
            break
        relief.append(interval)
        missing_bytes -= profile.size_bytes[interval.value]
    return relief


class _Pass(SwappingDevice):
    def __init__(
        self,
        profile: StepProfile,
        intervals: Iterable[IdleInterval],
        budget_bytes: int,
        triggers: Mapping[IdleInterval, int] | None,
    ) -> None:
        chosen = sorted(intervals, key=lambda i: (i.back, i.last))
        super().__init__(profile, chosen, budget_bytes)
        if triggers is None:
            latest = latest_fetches(profile.problem, profile.clock, [(i.value, i.back) for i in chosen])
            triggers = dict(zip(chosen, latest, strict=True))
        self.returns = deque((i, max(triggers[i], i.last + 1)) for i in chosen)
        self.begins: dict[int, list[int]] = {}  # position -> values whose interval begins after it
        for interval in chosen:
            self.begins.setdefault(interval.last, []).append(interval.value)

    def run(self) -> Plan | Overflow:
        profile = self.profile
        for position, op in enumerate(profile.sequence):
            self.free_copied()
            overflow = self._fetch_due(position, profile.op_bytes[position])
            if overflow is not None:
                return overflow
            self.compute(position, self.problem.ops[op].time_ns)
            for value in profile.frees[position]:
                self.free(value)
            for value in self.begins.get(position, ()):
                if self.host_has_room(value):  # else it stays
                    self.offload(value)
                    self.copying[value] = self.offload_end_ns[value]
        overflow = self._fetch_due(len(profile.sequence), 0)
        return Plan(self.actions) if overflow is None else overflow

    def _fetch_due(self, position: int, op_bytes: int) -> Overflow | None:
        """Fetch what is due, as far as it fits beside the op at `position`, and make room for that op."""
        while self.returns:
            interval, trigger = self.returns[0]
            if trigger > position:
                break
            value = interval.value
            if value in self.copying:
                if interval.back > position:
                    break
                del self.copying[value]  # too late to free it: it stays
            elif value in self.absent and not self.fetch_if_it_fits(value, position, interval.back, op_bytes):
                break
            self.returns.popleft()
        self.make_room(op_bytes)
        excess_bytes = self.held_bytes + op_bytes - self.budget_bytes
        return Overflow(position, excess_bytes) if excess_bytes > 0 else None
