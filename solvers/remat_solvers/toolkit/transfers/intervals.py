"""Trips to the host: what every method that swaps says, and the plan that follows from it.

A method chooses an op sequence (as a method that recomputes does) and trips: this value is away between these two
of its uses. Everything is told in positions of the sequence:

    out     after it the copy to the host starts
    leave   after it the device bytes go; compute waits there if the copy is still under way
    fetch   before it the copy back starts, and its bytes count
    back    the occurrence that reads the value next

`plan_with_trips` puts the actions where they belong. `leave_when_copied` and `latest_fetches` find the places at which
nobody waits, on a clock of compute that never stalls, with one queue per direction.
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

__all__ = ["Absence", "Clock", "Trip", "absences", "latest_fetches", "leave_when_copied", "plan_with_trips"]


@dataclass(frozen=True, slots=True)
class Trip:
    """A value away from the device, in positions of the op sequence: out <= leave < fetch."""

    value: int
    out: int
    leave: int
    fetch: int
    copy: bool = True  # False: the host copy of an earlier trip serves


@dataclass(frozen=True, slots=True)
class Absence:
    """A stretch in which an instance of a value is alive and not used: between two of its uses, or up to the end."""

    value: int
    last: int  # the occurrence that makes or reads it
    back: int  # the next one that reads it; the sequence's length for a result that is read no more


def plan_with_trips(problem: Problem, sequence: Sequence[int], trips: Iterable[Trip]) -> Plan:
    """The plan that runs `sequence` with Frees by liveness and with `trips`.

    Copies to the host that start at one place start in the order given, copies back in the order in which the values
    are read. A trip that fetches at the sequence's length brings a result back for the end. Raises PlanError where
    trips of one value overlap, or are out of order.
    """
    sequence = tangents_first(problem, sequence)
    readers: dict[int, list[int]] = {}
    for position, op in enumerate(sequence):
        for value in problem.ops[op].inputs:
            readers.setdefault(value, []).append(position)

    def back(trip: Trip) -> int:
        reads = readers.get(trip.value, [])
        at = bisect_left(reads, trip.fetch)
        return reads[at] if at < len(reads) else len(sequence)

    before: list[list[Action]] = [[] for _ in range(len(sequence) + 1)]
    out: list[list[Action]] = [[] for _ in sequence]
    leave: list[list[Action]] = [[] for _ in sequence]
    trips = _checked(trips)
    for trip in trips:
        if trip.copy:
            out[trip.out].append(Offload(trip.value))
        leave[trip.leave].append(Free(trip.value))
    for trip in sorted(trips, key=back):
        before[trip.fetch].append(Fetch(trip.value))
    actions: list[Action] = []
    position = -1
    for action in plan_from_sequence(problem, sequence):
        if isinstance(action, Compute):
            if position >= 0:
                actions += leave[position]
            position += 1
            actions += before[position]
            actions.append(action)
            actions += out[position]
        else:
            actions.append(action)
    if position >= 0:
        actions += leave[position]
    return Plan([*actions, *before[len(sequence)]])


def _checked(trips: Iterable[Trip]) -> list[Trip]:
    trips = list(trips)
    by_value: dict[int, list[Trip]] = {}
    for trip in trips:
        by_value.setdefault(trip.value, []).append(trip)
    for value, own in by_value.items():
        own.sort(key=lambda t: t.leave)
        if any(t.out > t.leave or t.leave >= t.fetch for t in own) or any(a.fetch > b.out for a, b in pairwise(own)):
            raise PlanError(None, f"the trips of value {value} overlap")
    return trips


class Clock:
    """When each occurrence of a sequence runs if compute never waits, in ns."""

    def __init__(self, problem: Problem, sequence: Sequence[int]) -> None:
        self.ends = list(accumulate(problem.ops[op].time_ns for op in sequence))
        self.starts = [0, *self.ends]  # one more: the end of the step

    def first_ending_at(self, moment: int) -> int:
        """The first occurrence that ends at `moment` or later; the sequence's length where none does."""
        return bisect_left(self.ends, moment)

    def last_starting_at(self, moment: int) -> int:
        """The last occurrence that starts at `moment` or earlier; -1 where none does."""
        return bisect_right(self.starts, moment) - 1


def absences(problem: Problem, sequence: Sequence[int]) -> list[Absence]:
    """Every stretch in which a value could be away, results of the forward left out: they belong to the caller.

    In the order in which they begin. `sequence` has the tangents where `tangents_first` puts them.
    """
    forward = {v for v in problem.results if problem.producer[v] >= 0 and _is_forward(problem, v)}
    results = set(problem.results)
    last: dict[int, int] = {}
    found: list[Absence] = []
    for position, op in enumerate(sequence):
        for value in dict.fromkeys(problem.ops[op].inputs):
            if value in last and value not in forward:
                found.append(Absence(value, last[value], position))
                last[value] = position
        for value in problem.ops[op].outputs:
            last[value] = position
    found += [Absence(v, at, len(sequence)) for v, at in last.items() if v in results and v not in forward]
    return sorted((a for a in found if a.back - a.last > 1), key=lambda a: (a.last, a.back, a.value))


def _is_forward(problem: Problem, value: int) -> bool:
    return problem.ops[problem.producer[value]].phase == "forward"


def leave_when_copied(problem: Problem, clock: Clock, outs: Sequence[tuple[int, int]]) -> list[int]:
    """Per (value, out), in the order of the queue: the first place at which its copy has ended, so that no Free waits.

    The sequence's length where the copy outlasts the step.
    """
    assert problem.link is not None
    free = 0
    leaves: list[int] = []
    for value, out in outs:
        rate, latency = problem.link.to_host_bytes_per_s, problem.link.latency_ns
        free = max(free, clock.ends[out]) + copy_ns(problem.values[value].bytes, rate, latency)
        leaves.append(max(out, clock.first_ending_at(free)))
    return leaves


def latest_fetches(problem: Problem, clock: Clock, backs: Sequence[tuple[int, int]]) -> list[int]:
    """Per (value, back), in any order: the latest place from which its copy arrives before `back` starts.

    The queue serves the values in the order of `back`; a copy that has to be over earlier, for the next one's sake,
    starts earlier. -1 where even the start of the step would be too late.
    """
    assert problem.link is not None
    rate, latency = problem.link.to_device_bytes_per_s, problem.link.latency_ns
    busy_from = clock.starts[-1] if clock.starts else 0
    places = [-1] * len(backs)
    for index in sorted(range(len(backs)), key=lambda i: (backs[i][1], i), reverse=True):
        value, back = backs[index]
        busy_from = min(busy_from, clock.starts[back]) - copy_ns(problem.values[value].bytes, rate, latency)
        places[index] = min(back, clock.last_starting_at(busy_from))
    return places
