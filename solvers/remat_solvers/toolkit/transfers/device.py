"""A model of the device that performs one action at a time on the clock of the replay (`simulate`) and records them.

The three executions of this folder share it: demand paging (demand_paging.py), chosen idle intervals (scheduler.py) and
a rewritten graph (graph_rewriting.py). They differ in what they decide before and after an op.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from remat_solvers.plan import Action, Compute, Fetch, Free, Offload
from remat_solvers.toolkit.transfers.intervals import IdleInterval
from remat_solvers.toolkit.transfers.profile import StepProfile


@dataclass(frozen=True, slots=True)
class Overflow:
    """An op that does not fit the budget: an execution ended there."""

    position: int  # of the sequence; its length: the results do not fit at the end
    excess_bytes: int

    def place(self, profile: StepProfile) -> str:
        """The op, or the end, in words."""
        if self.position == len(profile.sequence):
            return "the results at the end"
        return profile.problem.ops[profile.sequence[self.position]].name


class Device:
    """The actions so far, the time at which they are over, and the bytes in use."""

    def __init__(self, profile: StepProfile, budget_bytes: int) -> None:
        problem = profile.problem
        assert problem.link is not None
        self.profile, self.problem, self.budget_bytes = profile, problem, budget_bytes
        self.size_bytes = profile.size_bytes
        self.actions: list[Action] = []
        self.now_ns = self.to_host_free_ns = self.to_device_free_ns = 0
        self.held_bytes = problem.static_bytes
        self.host: set[int] = set()  # values with a host copy, complete or under way
        self.host_left_bytes = problem.link.host_bytes
        self.offload_end_ns: dict[int, int] = {}  # value -> end of its last copy to the host
        self.fetch_end_ns: dict[int, int] = {}  # value -> end of its last copy back

    def compute(self, position: int, time_ns: int) -> None:
        """Run the op at `position` of the sequence; the outputs that were not resident add to the bytes in use."""
        op = self.profile.sequence[position]
        self.actions.append(Compute(op))
        arrivals = (self.fetch_end_ns.get(v, 0) for v in self.problem.ops[op].inputs)
        self.now_ns = max([self.now_ns, *arrivals]) + time_ns
        self.held_bytes += self.profile.growth_bytes[position]

    def free(self, value: int) -> None:
        """Wait for the value's copies under way, and free it."""
        self.actions.append(Free(value))
        self.now_ns = max(self.now_ns, self.offload_end_ns.get(value, 0), self.fetch_end_ns.get(value, 0))
        self.held_bytes -= self.size_bytes[value]

    def host_has_room(self, value: int) -> bool:
        """Whether the value may be copied to the host."""
        return value in self.host or self.host_left_bytes is None or self.size_bytes[value] <= self.host_left_bytes

    def offload(self, value: int) -> None:
        """Start a copy to the host."""
        if value not in self.host:
            self.host.add(value)
            if self.host_left_bytes is not None:
                self.host_left_bytes -= self.size_bytes[value]
        self.actions.append(Offload(value))
        start_ns = max(self.now_ns, self.to_host_free_ns, self.fetch_end_ns.get(value, 0))
        self.to_host_free_ns = self.offload_end_ns[value] = start_ns + self.profile.offload_ns[value]

    def fetch(self, value: int) -> None:
        """Start the copy back; from now on the value's bytes are in use."""
        self.actions.append(Fetch(value))
        start_ns = max(self.now_ns, self.to_device_free_ns)
        self.to_device_free_ns = self.fetch_end_ns[value] = start_ns + self.profile.fetch_ns[value]
        self.held_bytes += self.size_bytes[value]


class SwappingDevice(Device):
    """A device for idle intervals chosen beforehand: it knows the memory that they leave at every position."""

    def __init__(self, profile: StepProfile, intervals: Iterable[IdleInterval], budget_bytes: int) -> None:
        super().__init__(profile, budget_bytes)
        self.planned_bytes = profile.used_bytes_without(intervals)  # per position, if no copy is late
        self.copying: dict[int, int] = {}  # values freed as soon as their copy to the host ends -> its end in ns
        self.absent: set[int] = set()  # values that are on the host only

    def free_copied(self) -> None:
        """Free the values whose copies to the host have ended by now."""
        for value in [v for v, end_ns in self.copying.items() if end_ns <= self.now_ns]:
            self._free_copied(value)

    def make_room(self, needed_bytes: int) -> None:
        """Wait for copies to the host, the first to end first, until `needed_bytes` fit beside the resident values."""
        while self.copying and self.held_bytes + needed_bytes > self.budget_bytes:
            value = min(self.copying, key=self.copying.__getitem__)
            self.now_ns = max(self.now_ns, self.copying[value])
            self._free_copied(value)

    def fetch_if_it_fits(self, value: int, position: int, back: int, op_bytes: int) -> bool:
        """Fetch `value`, which the op at `back` reads, before the op at `position` that needs `op_bytes`.

        It waits (False) where it would not fit at some position before `back`; the op that reads it waits for nothing.
        """
        size = self.size_bytes[value]
        if back > position:
            planned = int(self.planned_bytes[position:back].max())
            if max(self.held_bytes + op_bytes, planned) + size > self.budget_bytes:
                return False
            self.planned_bytes[position:back] += size
        self.make_room(op_bytes + size)
        self.absent.discard(value)
        self.fetch(value)
        return True

    def _free_copied(self, value: int) -> None:
        del self.copying[value]
        self.absent.add(value)
        self.free(value)
