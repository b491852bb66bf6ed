"""Capuchin's guided execution: what was chosen, as an op sequence with recomputation and as swaps with in-triggers.

The rules are in `capuchin`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.simulate import copy_ns
from remat_solvers.swap.capuchin.policy import Candidate, peak_ops
from remat_solvers.toolkit.transfers.intervals import Absence, absences
from remat_solvers.toolkit.transfers.scheduler import Overflow, Traffic

__all__ = ["Guided", "Swaps", "late_fetches"]

FEEDBACK = 20  # a late swap-in starts a 20th of SwapTime earlier


class Guided:
    """One guided execution: the problem's order, with the taken ones recomputed at their back-access."""

    def __init__(
        self, problem: Problem, taken: dict[int, Candidate], collective: bool, most_ns: int, watch: Stopwatch
    ) -> None:
        self.problem = problem
        self.taken = taken
        self.collective = collective
        self.most_ns = most_ns  # of recomputation
        self.watch = watch
        self.here: set[int] = set()
        self.sequence: list[int] = []
        self.spent_ns = 0

    def run(self) -> list[int] | None:
        """The ops in execution order; None: it takes too long."""
        problem, here = self.problem, self.here
        leaves: list[list[int]] = [[] for _ in problem.ops]
        results = set(problem.results)
        for value, readers in enumerate(problem.consumers):
            producer = problem.producer[value]
            if value not in results and producer >= 0 and problem.ops[producer].recomputable:
                leaves[max((producer, *readers))].append(value)
            if value in self.taken:
                leaves[self.taken[value].evicted_access].append(value)
        for index, op in enumerate(problem.ops):
            self._restore([v for v in op.inputs if v not in here and problem.producer[v] >= 0])
            if self.spent_ns > self.most_ns or self.watch.expired:
                return None
            self.sequence.append(index)
            here.update(op.outputs)
            here.difference_update(leaves[index])
        return self.sequence

    def _restore(self, missing: list[int]) -> None:
        problem, here = self.problem, self.here
        stack, needed = list(missing), set[int]()
        while stack:
            op = problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in problem.ops[op].inputs if v not in here and problem.producer[v] >= 0)
        self.sequence += sorted(needed)
        self.spent_ns += sum(problem.ops[op].time_ns for op in needed)
        here.update(missing)
        if self.collective:
            here.update(v for op in needed for v in problem.ops[op].outputs if v in self.taken)


class Swaps:
    """The swaps of one op sequence, and the iterations in which feedback moves their in-triggers."""

    def __init__(
        self, problem: Problem, sequence: list[int], swapped: Mapping[int, Candidate], budget_bytes: int
    ) -> None:
        assert problem.link is not None
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.traffic = Traffic(problem, sequence)
        rate = problem.link.to_device_bytes_per_s
        self.swap_in_ns = {v: copy_ns(c.size_bytes, rate, 0) for v, c in swapped.items()}
        self.absences = self._absences(swapped)
        self.in_peak = self._in_peak()
        self.lead_ns = dict.fromkeys(self.absences, 0)  # by feedback, and whether it was ever late

    def _absences(self, swapped: Mapping[int, Candidate]) -> list[Absence]:
        """Where the swapped ones are away: from evicted-access to back-access, recomputations that read them between.

        Of the parts between those, the longest, and those that are long enough for a swap."""
        first: dict[int, int] = {}
        for position, op in enumerate(self.traffic.sequence):
            first.setdefault(op, position)
        parts: dict[int, list[Absence]] = {}
        for absence in absences(self.problem, self.traffic.sequence):
            candidate = swapped.get(absence.value)
            if candidate is None or absence.back == len(self.traffic.sequence):
                continue
            if first[candidate.evicted_access] <= absence.last and absence.back <= first[candidate.back_access]:
                parts.setdefault(absence.value, []).append(absence)
        found = []
        for value, of_value in parts.items():
            transfers = self.traffic.out_ns[value] + self.traffic.back_ns[value]
            longest = max(of_value, key=self._gap_ns)
            found += [a for a in of_value if a is longest or self._gap_ns(a) >= transfers]
        return sorted(found, key=lambda a: (a.back, a.last, a.value))

    def _gap_ns(self, absence: Absence) -> int:
        return self.traffic.clock.starts[absence.back] - self.traffic.clock.ends[absence.last]

    def _in_peak(self) -> list[bool]:
        """Per position whether it is in the peak period; a recomputation is where the access it is for is."""
        above = peak_ops(self.problem, self.budget_bytes)
        sequence = self.traffic.sequence
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
        """How much is too many even if everything is away when it should be."""
        held = self.traffic.profile.copy()
        for absence in self.absences:
            held[absence.last + 1 : absence.back] -= self.traffic.size[absence.value]
        return int(held.max()) - self.budget_bytes

    def triggers(self) -> dict[Absence, int]:
        """In-triggers: the positions from which the swapped ones come in."""
        clock = self.traffic.clock
        found: dict[Absence, int] = {}
        lane_ns = clock.starts[-1]
        for absence in reversed(self.absences):
            lane_ns = min(lane_ns, clock.starts[absence.back]) - self.swap_in_ns[absence.value] - self.lead_ns[absence]
            at = min(absence.back, clock.last_starting_at(lane_ns))
            if not self.in_peak[absence.back] and not self.lead_ns[absence]:
                while at >= 0 and self.in_peak[at]:
                    at += 1
            found[absence] = at
        return found

    def iterations(self) -> Iterator[Plan | Overflow]:
        """Guided executions, until none is late or one does not fit. Feedback comes between two."""
        while True:
            plan = self.traffic.plan(self.absences, self.budget_bytes, self.triggers())
            yield plan
            late = set() if isinstance(plan, Overflow) else late_fetches(self.problem, plan)
            to_move = [a for a in self.absences if (a.value, a.back) in late]
            if not to_move:
                return
            for absence in to_move:
                self.lead_ns[absence] += max(1, self.swap_in_ns[absence.value] // FEEDBACK)


def late_fetches(problem: Problem, plan: Plan) -> set[tuple[int, int]]:
    """(value, position of the op that reads it) of what is still swapping in when its op is otherwise ready."""
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
