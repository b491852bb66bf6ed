"""Idle intervals of values, the swaps that use them, and the plan that follows from a set of swaps.

A method that swaps chooses an op sequence (as a method that recomputes does) and swaps: this value is off the device
between these two of its uses. Everything is stated in positions of the sequence:

    offload  after it the copy to the host starts
    free     after it the device bytes are freed; compute waits there if the copy is still under way
    fetch    before it the copy back starts, and its bytes count
    back     the occurrence that reads the value next

`plan_with_swaps` inserts the actions into the plan. `free_when_copied` and `latest_fetches` find the positions at which
compute does not wait, on a clock of compute that never stalls, with one queue per direction.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from remat_solvers.errors import PlanError
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import plan_from_sequence, tangents_first
from remat_solvers.simulate import copy_ns


@dataclass(frozen=True, slots=True)
class Swap:
    """A value that is off the device for a while, in positions of the op sequence: offload <= free < fetch."""

    value: int
    offload: int
    free: int
    fetch: int
    copy: bool = True  # False: the host copy of an earlier swap serves


@dataclass(frozen=True, slots=True)
class IdleInterval:
    """The time in which an instance of a value is alive and not used: between two of its uses, or up to the end."""

    value: int
    last: int  # the occurrence that computes or reads it
    back: int  # the next one that reads it; the sequence's length for a result that is read no more


def plan_with_swaps(problem: Problem, sequence: Sequence[int], swaps: Iterable[Swap]) -> Plan:
    """The plan that computes `sequence` with Frees by liveness and with `swaps`.

    Copies to the host that start at one position start in the order given, copies back in the order in which the values
    are read. A swap that fetches at the sequence's length brings a result back for the end. Raises PlanError where
    swaps of one value overlap, or are out of order.
    """
    sequence = tangents_first(problem, sequence)
    readers: dict[int, list[int]] = {}
    for position, op in enumerate(sequence):
        for value in problem.ops[op].inputs:
            readers.setdefault(value, []).append(position)

    def back(swap: Swap) -> int:
        reads = readers.get(swap.value, [])
        index = bisect_left(reads, swap.fetch)
        return reads[index] if index < len(reads) else len(sequence)

    fetches: list[list[Action]] = [[] for _ in range(len(sequence) + 1)]  # before each position
    offloads: list[list[Action]] = [[] for _ in sequence]  # after each position
    frees: list[list[Action]] = [[] for _ in sequence]
    swaps = _checked(swaps)
    for swap in swaps:
        if swap.copy:
            offloads[swap.offload].append(Offload(swap.value))
        frees[swap.free].append(Free(swap.value))
    for swap in sorted(swaps, key=back):
        fetches[swap.fetch].append(Fetch(swap.value))
    actions: list[Action] = []
    position = -1
    for action in plan_from_sequence(problem, sequence):
        if isinstance(action, Compute):
            if position >= 0:
                actions += frees[position]
            position += 1
            actions += fetches[position]
            actions.append(action)
            actions += offloads[position]
        else:
            actions.append(action)
    if position >= 0:
        actions += frees[position]
    return Plan([*actions, *fetches[len(sequence)]])


def _checked(swaps: Iterable[Swap]) -> list[Swap]:
    swaps = list(swaps)
    by_value: dict[int, list[Swap]] = {}
    for swap in swaps:
        by_value.setdefault(swap.value, []).append(swap)
    for value, own in by_value.items():
        own.sort(key=lambda s: s.free)
        disordered = any(s.offload > s.free or s.free >= s.fetch for s in own)
        if disordered or any(a.fetch > b.offload for a, b in pairwise(own)):
            raise PlanError(None, f"the swaps of value {value} overlap")
    return swaps


class Clock:
    """The times in ns at which each occurrence of a sequence starts and ends if compute never waits."""

    def __init__(self, problem: Problem, sequence: Sequence[int]) -> None:
        self.ends = list(accumulate(problem.ops[op].time_ns for op in sequence))
        self.starts = [0, *self.ends]  # one more: the end of the step

    def first_ending_at(self, time_ns: int) -> int:
        """The first occurrence that ends at `time_ns` or later; the sequence's length where none does."""
        return bisect_left(self.ends, time_ns)

    def last_starting_at(self, time_ns: int) -> int:
        """The last occurrence that starts at `time_ns` or earlier; -1 where none does."""
        return bisect_right(self.starts, time_ns) - 1


def idle_intervals(problem: Problem, sequence: Sequence[int]) -> list[IdleInterval]:
    """Every idle interval in the order in which they begin, except those of forward results: the caller owns these.

    `sequence` has the tangents where `tangents_first` puts them.
    """
    forward_results = set(problem.forward_results)
    results = set(problem.results)
    last: dict[int, int] = {}
    found: list[IdleInterval] = []
    for position, op in enumerate(sequence):
        for value in dict.fromkeys(problem.ops[op].inputs):
            if value in last and value not in forward_results:
                found.append(IdleInterval(value, last[value], position))
                last[value] = position
        for value in problem.ops[op].outputs:
            last[value] = position
    to_the_end = (v for v in last if v in results and v not in forward_results)
    found += [IdleInterval(v, last[v], len(sequence)) for v in to_the_end]
    return sorted((i for i in found if i.back - i.last > 1), key=lambda i: (i.last, i.back, i.value))


def free_when_copied(problem: Problem, clock: Clock, offloads: Sequence[tuple[int, int]]) -> list[int]:
    """Per (value, offload), in the order of the queue: the first position at which the copy has ended: no Free waits.

    The sequence's length where the copy outlasts the step.
    """
    assert problem.link is not None
    rate, latency_ns = problem.link.to_host_bytes_per_s, problem.link.latency_ns
    queue_free_ns = 0
    positions: list[int] = []
    for value, offload in offloads:
        start_ns = max(queue_free_ns, clock.ends[offload])
        queue_free_ns = start_ns + copy_ns(problem.values[value].bytes, rate, latency_ns)
        positions.append(max(offload, clock.first_ending_at(queue_free_ns)))
    return positions


def latest_fetches(problem: Problem, clock: Clock, backs: Sequence[tuple[int, int]]) -> list[int]:
    """Per (value, back), in any order: the latest position from which its copy arrives before `back` starts.

    The queue serves the values in the order of `back`; a copy that has to be over earlier, for the next one's sake,
    starts earlier. -1 where even the start of the step would be too late.
    """
    assert problem.link is not None
    rate, latency_ns = problem.link.to_device_bytes_per_s, problem.link.latency_ns
    busy_from_ns = clock.starts[-1] if clock.starts else 0
    positions = [-1] * len(backs)
    for index in sorted(range(len(backs)), key=lambda i: (backs[i][1], i), reverse=True):
        value, back = backs[index]
        copy_time_ns = copy_ns(problem.values[value].bytes, rate, latency_ns)
        busy_from_ns = min(busy_from_ns, clock.starts[back]) - copy_time_ns
        positions[index] = min(back, clock.last_starting_at(busy_from_ns))
    return positions
