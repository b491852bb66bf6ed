"""A device that acts one action at a time, on the clock of the replay (`simulate`), and remembers its actions.

What the executions of this folder share: demand paging (paging.py), chosen absences (traffic.py), a rewritten graph
(rewriting.py). They differ in what they decide before and after an op.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remat_solvers.plan import Action, Compute, Fetch, Free, Offload

if TYPE_CHECKING:
    from remat_solvers.toolkit.transfers.scheduler import Traffic

__all__ = ["Device"]


class Device:
    """Its actions so far, when it is through with them, and what it holds."""

    def __init__(self, traffic: Traffic, budget_bytes: int) -> None:
        problem = traffic.problem
        assert problem.link is not None
        self.traffic, self.problem, self.budget_bytes = traffic, problem, budget_bytes
        self.size = traffic.size
        self.actions: list[Action] = []
        self.now = self.to_host_free = self.to_device_free = 0
        self.held = problem.static_bytes
        self.host: set[int] = set()  # values with a copy there, complete or under way
        self.host_left = problem.link.host_bytes
        self.copied: dict[int, int] = {}  # value -> end of its last copy to the host
        self.arrival: dict[int, int] = {}  # value -> end of its last copy back

    def compute(self, position: int, time_ns: int) -> None:
        """Run the op at `position` of the sequence; what it makes anew stays."""
        op = self.traffic.sequence[position]
        self.actions.append(Compute(op))
        self.now = max([self.now, *(self.arrival.get(v, 0) for v in self.problem.ops[op].inputs)]) + time_ns
        self.held += self.traffic.stays[position]

    def free(self, value: int) -> None:
        """Wait for the value's copies under way, and let it go."""
        self.actions.append(Free(value))
        self.now = max(self.now, self.copied.get(value, 0), self.arrival.get(value, 0))
        self.held -= self.size[value]

    def host_has_room(self, value: int) -> bool:
        """Whether the value may be copied to the host."""
        return value in self.host or self.host_left is None or self.size[value] <= self.host_left

    def offload(self, value: int) -> None:
        """Start a copy to the host."""
        if value not in self.host:
            self.host.add(value)
            if self.host_left is not None:
                self.host_left -= self.size[value]
        self.actions.append(Offload(value))
        start = max(self.now, self.to_host_free, self.arrival.get(value, 0))
        self.to_host_free = self.copied[value] = start + self.traffic.out_ns[value]

    def fetch(self, value: int) -> None:
        """Start the copy back; the value holds its bytes at once."""
        self.actions.append(Fetch(value))
        self.to_device_free = self.arrival[value] = max(self.now, self.to_device_free) + self.traffic.back_ns[value]
        self.held += self.size[value]
