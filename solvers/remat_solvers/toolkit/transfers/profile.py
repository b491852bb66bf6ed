"""The memory and the copy times of a sequence of ops, before anything is offloaded.

A `StepProfile` is the data that all swapping methods decide by: the bytes that each op needs, the values freed after
it, the time of each value's copies, and the time at which each op runs if compute never waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from remat_solvers.plan import Compute, Free
from remat_solvers.problem import Problem
from remat_solvers.schedule import plan_from_sequence, tangents_first
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.transfers.intervals import Clock, IdleInterval


@dataclass(frozen=True, slots=True, eq=False)
class StepProfile:
    """One problem with a link and one sequence of its ops. Lists are per position of the sequence, or per value."""

    problem: Problem
    sequence: list[int]  # with the tangents where `tangents_first` puts them
    clock: Clock
    size_bytes: list[int]  # per value
    offload_ns: list[int]  # per value: its copy to the host
    fetch_ns: list[int]  # per value: its copy back
    frees: list[list[int]]  # per position: the values that liveness frees after it
    op_bytes: list[int]  # per position: outputs and workspace, which the op needs beside the resident values
    growth_bytes: list[int]  # per position: those of its outputs that were not resident before
    used_bytes: Ints  # per position: bytes in use while the op runs, with every live value resident

    @classmethod
    def of(cls, problem: Problem, sequence: Sequence[int]) -> StepProfile:
        """The profile of `sequence`. Raises PlanError where an op reads a value that no earlier op computes."""
        link = problem.link
        assert link is not None
        sequence = list(tangents_first(problem, sequence))
        size = [v.bytes for v in problem.values]
        frees = frees_by_position(problem, sequence)
        resident = [v.kind == "constant" for v in problem.values]
        held = problem.static_bytes
        op_bytes, growth_bytes, used_bytes = [], [], []
        for position, op in enumerate(sequence):
            outputs = problem.ops[op].outputs
            growth = sum(size[v] for v in outputs if not resident[v])
            needed = sum(size[v] for v in outputs) + problem.ops[op].workspace_bytes
            op_bytes.append(needed)
            growth_bytes.append(growth)
            used_bytes.append(held + needed)
            for value in outputs:
                resident[value] = True
            for value in frees[position]:
                resident[value] = False
            held += growth - sum(size[v] for v in frees[position])
        return cls(
            problem=problem,
            sequence=sequence,
            clock=Clock(problem, sequence),
            size_bytes=size,
            offload_ns=[copy_ns(s, link.to_host_bytes_per_s, link.latency_ns) for s in size],
            fetch_ns=[copy_ns(s, link.to_device_bytes_per_s, link.latency_ns) for s in size],
            frees=frees,
            op_bytes=op_bytes,
            growth_bytes=growth_bytes,
            used_bytes=np.array(used_bytes, dtype=np.int64),
        )

    def used_bytes_without(self, intervals: Iterable[IdleInterval]) -> Ints:
        """`used_bytes` if every interval's value were off the device during all of it: if copies were instant."""
        used = self.used_bytes.copy()
        for interval in intervals:
            used[interval.last + 1 : interval.back] -= self.size_bytes[interval.value]
        return used

    def idle_ns(self, interval: IdleInterval) -> int:
        """The length of the interval if compute never waits."""
        return self.clock.starts[interval.back] - self.clock.ends[interval.last]

    def slack_ns(self, interval: IdleInterval) -> int:
        """The time between the end of the copy out and the start of the copy back if the link were idle.

        Where it is negative, so much of the copies cannot be hidden behind compute.
        """
        return self.idle_ns(interval) - self.offload_ns[interval.value] - self.fetch_ns[interval.value]


def frees_by_position(problem: Problem, sequence: Sequence[int]) -> list[list[int]]:
    """Per position, the values that liveness frees after it."""
    frees: list[list[int]] = []
    for action in plan_from_sequence(problem, sequence):
        if isinstance(action, Compute):
            frees.append([])
        elif isinstance(action, Free):
            frees[-1].append(action.value)
    return frees
