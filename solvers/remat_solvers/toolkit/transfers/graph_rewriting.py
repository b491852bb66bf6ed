"""Executes a data-flow graph with swap_out and swap_in nodes within a budget, as Meng et al. and TFLMS rewrite it.

Both rewrite the graph before it runs. For a value b of the forward that a backward op e reads, the edge b -> e is cut
and goes through the host: swap_out right after b, swap_in before e, and a control edge from a trigger to swap_in, lest
the value come back at once. Nothing else changes. The runtime then does what its edges and its allocator allow:

    swap_out   starts when b is computed, is not delayed, and copies stand in one queue
    b          is freed when its swap_out is over and its last forward reader has run
    swap_in    starts when its trigger has run, b is freed and there is memory for it
    ops        run in the problem's order; one that finds no memory waits for copies to the host that are under way

An allocator that is out of memory makes its op wait while others free some, as TensorFlow's does. A runtime that looked
no further could let values come back so early that ops before their readers starve: swap_in waits here until the value
fits beside all that is planned up to its reader, at the latest until its reader is next. A value whose swap_out is not
over when its reader comes stays. Where an op finds no memory although no copy to the host is under way, the execution
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.toolkit.transfers.device import SwappingDevice
from remat_solvers.toolkit.transfers.intervals import IdleInterval
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.trials import Trials

SPREAD = 24  # choices that are tried beside those of the bisection
HALVINGS = 12  # of the range of budgets in which the smallest peak is searched


@dataclass(frozen=True, slots=True)
class CutEdge:
    """An edge through the host: the value is off the device in `interval`; swap_in may start before op `fetch`."""

    interval: IdleInterval
    fetch: int


class GraphRewriting:
    """Executions of one problem, for any choice of cut edges."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.profile = StepProfile.of(problem, range(len(problem.ops)))

    def plan(self, edges: Sequence[CutEdge], budget_bytes: int) -> Plan | None:
        """The plan of the execution; None: an op finds no memory."""
        return _Execution(self.profile, edges, budget_bytes).run()


class _Execution(SwappingDevice):
    def __init__(self, profile: StepProfile, edges: Sequence[CutEdge], budget_bytes: int) -> None:
        intervals = sorted((e.interval for e in edges), key=lambda i: (i.last, i.back))
        super().__init__(profile, intervals, budget_bytes)
        self.untriggered = sorted(
            edges, key=lambda e: (e.fetch, e.interval.back, e.interval.value), reverse=True
        )  # the next one last
        self.triggered: list[CutEdge] = []  # swap_in that waits for memory, or for its swap_out
        self.swap_outs: dict[int, list[int]] = {}  # position -> values whose swap_out starts after it
        self.begins: dict[int, list[IdleInterval]] = {}  # position -> intervals that begin with it
        for interval in intervals:
            self.begins.setdefault(interval.last, []).append(interval)
        for value in dict.fromkeys(i.value for own in self.begins.values() for i in own):
            self.swap_outs.setdefault(self.problem.producer[value], []).append(value)

    def run(self) -> Plan | None:
        profile = self.profile
        for position, op in enumerate(profile.sequence):
            self.free_copied()
            self._swap_in(position)
            self.make_room(profile.op_bytes[position])
            if self.held_bytes + profile.op_bytes[position] > self.budget_bytes:
                return None
            self.compute(position, self.problem.ops[op].time_ns)
            for value in profile.frees[position]:
                self.free(value)
            for value in self.swap_outs.get(position, ()):
                if self.host_has_room(value):
                    self.offload(value)
            for interval in self.begins.get(position, ()):
                if interval.value in self.offload_end_ns:
                    self.copying[interval.value] = self.offload_end_ns[interval.value]
                else:  # the host had no room
                    self.planned_bytes[interval.last + 1 : interval.back] += self.size_bytes[interval.value]
        return Plan(self.actions)

    def _swap_in(self, position: int) -> None:
        """Start the swaps that may and must start before the op at `position`."""
        while self.untriggered and self.untriggered[-1].fetch <= position:
            self.triggered.append(self.untriggered.pop())
        self.triggered.sort(key=lambda e: e.interval.back)
        op_bytes = self.profile.op_bytes[position]
        later: list[CutEdge] = []
        for edge in self.triggered:
            value, back = edge.interval.value, edge.interval.back
            if value in self.copying:
                if back > position:
                    later.append(edge)
                else:
                    del self.copying[value]
            elif value in self.absent and not self.fetch_if_it_fits(value, position, back, op_bytes):
                later.append(edge)
        self.triggered = later


def try_edge_counts(
    rewriting: GraphRewriting, trials: Trials, edges_of: Callable[[int], Sequence[CutEdge]], count: int, form: str
) -> None:
    """Try the first of `edges_of(1)` .. `edges_of(count)`, ever more swaps, that fits, and a few beyond it.

    Fewer swaps are faster and need more memory, as a rule: so the search is by bisection, and the tries beyond are
    evenly spread.
    """

    def fits(number: int) -> bool:
        plan = rewriting.plan(edges_of(number), trials.budget_bytes)
        if plan is not None:
            trials.replay(plan, f"{form}, {number} swapped")
        return plan is not None

    low, high = 0, count + 1
    while high - low > 1 and not trials.out_of_time():
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    for number in sorted({high + (count - high) * step // SPREAD for step in range(1, SPREAD + 1)} - {high}):
        if not trials.out_of_time():
            fits(number)


def search_smallest_peak(rewriting: GraphRewriting, trials: Trials, edges: Sequence[CutEdge]) -> None:
    """If nothing fits, replay plans with all `edges` in ever smaller budgets, by bisection from that of no swap."""
    low, high = trials.budget_bytes, int(rewriting.profile.used_bytes.max(initial=trials.budget_bytes))
    middle = high
    for _ in range(1 + HALVINGS):
        plan = rewriting.plan(edges, middle)
        if plan is None:
            low = middle
        else:
            high = trials.replay(plan, "").peak_bytes
        if high - low <= 1 or trials.out_of_time():
            return
        middle = (low + high) // 2
