"""Turns the choice of Capuchin's policy into an op sequence with recomputation, and into swaps with in-triggers.

The rules are in solver.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.simulate import copy_ns
from remat_solvers.swap.capuchin.policy import Candidate, peak_ops
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import schedule_copies

FEEDBACK = 20  # a late swap-in starts a 20th of SwapTime earlier


class GuidedSequence:
    """One guided execution: the problem's order, with the taken tensors recomputed at their back-access."""

    def __init__(
        self, problem: Problem, taken: dict[int, Candidate], collective: bool, most_ns: int, watch: Stopwatch
    ) -> None:
        self.problem = problem
        self.taken = taken
        self.collective = collective
        self.most_ns = most_ns  # of recomputation
        self.watch = watch
        self.resident: set[int] = set()
        self.sequence: list[int] = []
        self.spent_ns = 0

    def run(self) -> list[int] | None:
        """The ops in execution order; None: it takes too long."""
        problem, resident = self.problem, self.resident
        frees: list[list[int]] = [[] for _ in problem.ops]
        results = set(problem.results)
        for value, readers in enumerate(problem.consumers):
            producer = problem.producer[value]
            if value not in results and producer >= 0 and problem.ops[producer].recomputable:
                frees[max((producer, *readers))].append(value)
            if value in self.taken:
                frees[self.taken[value].evicted_access].append(value)
        for index, op in enumerate(problem.ops):
            self._restore([v for v in op.inputs if v not in resident and problem.producer[v] >= 0])
            if self.spent_ns > self.most_ns or self.watch.expired:
                return None
            self.sequence.append(index)
            resident.update(op.outputs)
            resident.difference_update(frees[index])
        return self.sequence

    def _restore(self, missing: list[int]) -> None:
        problem, resident = self.problem, self.resident
        stack, needed = list(missing), set[int]()
        while stack:
            op = problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in problem.ops[op].inputs if v not in resident and problem.producer[v] >= 0)
        self.sequence += sorted(needed)
        self.spent_ns += sum(problem.ops[op].time_ns for op in needed)
        resident.update(missing)
        if self.collective:
            resident.update(v for op in needed for v in problem.ops[op].outputs if v in self.taken)


class GuidedSwaps:
    """The swaps of one op sequence, and the iterations in which feedback moves their in-triggers."""

    def __init__(
        self, problem: Problem, sequence: list[int], swapped: Mapping[int, Candidate], budget_bytes: int
    ) -> None:
        assert problem.link is not None
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.profile = StepProfile.of(problem, sequence)
        rate = problem.link.to_device_bytes_per_s
        self.swap_in_ns = {v: copy_ns(c.size_bytes, rate, 0) for v, c in swapped.items()}
        self.intervals = self._intervals(swapped)
        self.in_peak = self._in_peak()
        self.lead_ns = dict.fromkeys(self.intervals, 0)  # by feedback, and whether it was ever late

    def _intervals(self, swapped: Mapping[int, Candidate]) -> list[IdleInterval]:
        """The idle intervals in which the swapped tensors are off the device.

        Recomputations may read a tensor between its evicted-access and its back-access. Of the parts between these
        readers, the longest is taken, and those that are long enough for a swap.
        """
        first: dict[int, int] = {}
        for position, op in enumerate(self.profile.sequence):
            first.setdefault(op, position)
        parts: dict[int, list[IdleInterval]] = {}
        for interval in idle_intervals(self.problem, self.profile.sequence):
            candidate = swapped.get(interval.value)
            if candidate is None or interval.back == len(self.profile.sequence):
                continue
            if first[candidate.evicted_access] <= interval.last and interval.back <= first[candidate.back_access]:
                parts.setdefault(interval.value, []).append(interval)
        found = []
        for value, of_value in parts.items():
            transfers = self.profile.offload_ns[value] + self.profile.fetch_ns[value]
            longest = max(of_value, key=self.profile.idle_ns)
            found += [i for i in of_value if i is longest or self.profile.idle_ns(i) >= transfers]
        return sorted(found, key=lambda i: (i.back, i.last, i.value))

    def _in_peak(self) -> list[bool]:
        """Per position whether it is in the peak period; a recomputation belongs to the access that it is for."""
        above = peak_ops(self.problem, self.budget_bytes)
        sequence = self.profile.sequence
        first = {op: position for position, op in reversed(list(enumerate(sequence)))}
        inside = False
        found = [False] * (len(sequence) + 1)
        for position in range(len(sequence) - 1, -1, -1):
            op = sequence[position]
            if first[op] == position:
                inside = op in above
            found[position] = inside
        return found

    @property
    def excess_bytes(self) -> int:
        """The bytes above the budget even if no copy were late."""
        return int(self.profile.used_bytes_without(self.intervals).max()) - self.budget_bytes

    def triggers(self) -> dict[IdleInterval, int]:
        """In-triggers: the positions from which the swapped tensors may be fetched."""
        clock = self.profile.clock
        found: dict[IdleInterval, int] = {}
        lane_ns = clock.starts[-1]
        for interval in reversed(self.intervals):
            lane_ns = (
                min(lane_ns, clock.starts[interval.back]) - self.swap_in_ns[interval.value] - self.lead_ns[interval]
            )
            at = min(interval.back, clock.last_starting_at(lane_ns))
            if not self.in_peak[interval.back] and not self.lead_ns[interval]:
                while at >= 0 and self.in_peak[at]:
                    at += 1
            found[interval] = at
        return found

    def iterations(self) -> Iterator[Plan | Overflow]:
        """Guided executions with feedback between them, until no tensor is late or one execution does not fit."""
        while True:
            plan = schedule_copies(self.profile, self.intervals, self.budget_bytes, self.triggers())
            yield plan
            late = set() if isinstance(plan, Overflow) else late_fetches(self.problem, plan)
            to_move = [i for i in self.intervals if (i.value, i.back) in late]
            if not to_move:
                return
            for interval in to_move:
                self.lead_ns[interval] += max(1, self.swap_in_ns[interval.value] // FEEDBACK)


def late_fetches(problem: Problem, plan: Plan) -> set[tuple[int, int]]:
    """(value, position of the op that reads it) of the values still swapping in when their op is otherwise ready."""
    assert problem.link is not None
    link = problem.link
    size = [v.bytes for v in problem.values]
    arrival = [0] * len(size)
    copied = [0] * len(size)
    now = to_host_free = to_device_free = position = 0
    late: set[tuple[int, int]] = set()
    for action in plan:
        if isinstance(action, Compute):
            inputs = problem.ops[action.op].inputs
            late.update((v, position) for v in inputs if arrival[v] > now)
            now = max([now, *(arrival[v] for v in inputs)]) + problem.ops[action.op].time_ns
            position += 1
        elif isinstance(action, Free):
            now = max(now, arrival[action.value], copied[action.value])
        elif isinstance(action, Offload):
            start = max(now, to_host_free, arrival[action.value])
            to_host_free = start + copy_ns(size[action.value], link.to_host_bytes_per_s, link.latency_ns)
            copied[action.value] = to_host_free
        elif isinstance(action, Fetch):
            start = max(now, to_device_free)
            to_device_free = start + copy_ns(size[action.value], link.to_device_bytes_per_s, link.latency_ns)
            arrival[action.value] = to_device_free
    return late
