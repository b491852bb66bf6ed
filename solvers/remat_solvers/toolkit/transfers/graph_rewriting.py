"""A data-flow graph with swap_out and swap_in nodes, executed within a budget: what Meng et al. and TFLMS share.

Both rewrite the graph before it runs. For a value b of the forward that a backward op e reads, the edge b -> e is cut
and goes through the host: swap_out right after b, swap_in before e, and a control edge from a trigger to swap_in, lest
the value come back at once. Nothing else changes. The runtime then does what its edges and its allocator allow:

    swap_out   starts when b is there, is not delayed, and copies stand in one queue
    b          leaves when its swap_out is over and its last forward reader is through
    swap_in    starts when its trigger is through, b has left and there is memory for it
    ops        run in the problem's order; one that finds no memory waits for copies to the host that are under way

An allocator that is out of memory makes its op wait while others free some, as TensorFlow's does. A runtime that looked
no further could let values come back so early that ops before their readers starve: swap_in waits here until the value
fits beside all that is planned up to its reader, at the latest until its reader is next. A value whose swap_out is not
over when its reader comes stays. Where an op finds no memory although nothing is on its way out, the execution ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.toolkit.transfers.device import Device
from remat_solvers.toolkit.transfers.intervals import Absence
from remat_solvers.toolkit.transfers.scheduler import Traffic
from remat_solvers.toolkit.trials import Trials

__all__ = ["Rewriting", "Swap", "fastest_choice", "smallest_peak"]

SPREAD = 24  # choices that are tried beside those of the bisection
HALVINGS = 12  # of the range of budgets in which the smallest peak is looked for


@dataclass(frozen=True, slots=True)
class Swap:
    """A cut edge: the value is away during `absence`; swap_in may start before the op at `fetch`."""

    absence: Absence
    fetch: int


class Rewriting:
    """Executions of one problem, for any choice of cut edges."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.traffic = Traffic(problem, range(len(problem.ops)))

    def plan(self, swaps: Sequence[Swap], budget_bytes: int) -> Plan | None:
        """The plan of the execution; None where an op finds no memory."""
        return _Execution(self.traffic, swaps, budget_bytes).run()


class _Execution(Device):
    def __init__(self, traffic: Traffic, swaps: Sequence[Swap], budget_bytes: int) -> None:
        super().__init__(traffic, budget_bytes)
        self.due = sorted(swaps, key=lambda s: (s.fetch, s.absence.back, s.absence.value), reverse=True)
        self.waiting: list[Swap] = []  # swap_in whose trigger is through
        self.outs: dict[int, list[int]] = {}  # position -> values whose swap_out starts after it
        self.lasts: dict[int, list[Absence]] = {}  # position -> absences that begin with it
        self.planned = traffic.profile.copy()  # per position: bytes if all goes as it should
        for absence in sorted((s.absence for s in swaps), key=lambda a: (a.last, a.back)):
            self.lasts.setdefault(absence.last, []).append(absence)
            self.planned[absence.last + 1 : absence.back] -= self.size[absence.value]
        for value in dict.fromkeys(a.value for own in self.lasts.values() for a in own):
            self.outs.setdefault(self.problem.producer[value], []).append(value)
        self.leaving: dict[int, int] = {}  # values that only wait for their swap_out -> its end
        self.gone: set[int] = set()

    def run(self) -> Plan | None:
        traffic = self.traffic
        for position, op in enumerate(traffic.sequence):
            for value in [v for v, end in self.leaving.items() if end <= self.now]:
                self._leave(value)
            self._swap_in(position)
            self._make_room(traffic.fresh[position])
            if self.held + traffic.fresh[position] > self.budget_bytes:
                return None
            self.compute(position, self.problem.ops[op].time_ns)
            for value in traffic.frees[position]:
                self.free(value)
            for value in self.outs.get(position, ()):
                if self.host_has_room(value):
                    self.offload(value)
            for absence in self.lasts.get(position, ()):
                if absence.value in self.copied:
                    self.leaving[absence.value] = self.copied[absence.value]
                else:  # the host had no room
                    self.planned[absence.last + 1 : absence.back] += self.size[absence.value]
        return Plan(self.actions)

    def _swap_in(self, position: int) -> None:
        """Start what may and must start before the op at `position`."""
        while self.due and self.due[-1].fetch <= position:
            self.waiting.append(self.due.pop())
        self.waiting.sort(key=lambda s: s.absence.back)
        need_bytes = self.traffic.fresh[position]
        still: list[Swap] = []
        for swap in self.waiting:
            value, back = swap.absence.value, swap.absence.back
            size = self.size[value]
            if value in self.leaving:
                if back > position:
                    still.append(swap)
                else:
                    del self.leaving[value]
            elif value in self.gone:
                later = int(self.planned[position:back].max(initial=0))
                if back > position and max(self.held + need_bytes, later) + size > self.budget_bytes:
                    still.append(swap)
                    continue
                self.planned[position:back] += size
                self._make_room(need_bytes + size)
                self.gone.discard(value)
                self.fetch(value)
        self.waiting = still

    def _make_room(self, need_bytes: int) -> None:
        while self.leaving and self.held + need_bytes > self.budget_bytes:
            value = min(self.leaving, key=self.leaving.__getitem__)
            self.now = max(self.now, self.leaving[value])
            self._leave(value)

    def _leave(self, value: int) -> None:
        del self.leaving[value]
        self.gone.add(value)
        self.free(value)


def fastest_choice(
    rewriting: Rewriting, trials: Trials, choice: Callable[[int], Sequence[Swap]], count: int, form: str
) -> None:
    """Of `choice(1)`, `choice(2)`, .. `choice(count)`, ever more swaps, try the first that fits and some beyond.

    Fewer swaps are faster and need more memory, as a rule: by bisection, and evenly spread ones beyond.
    """

    def fits(number: int) -> bool:
        plan = rewriting.plan(choice(number), trials.budget_bytes)
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


def smallest_peak(rewriting: Rewriting, trials: Trials, swaps: Sequence[Swap]) -> None:
    """Where nothing fits: the least budget within which all the `swaps` do, by bisection from that of no swap."""
    low, high = trials.budget_bytes, int(rewriting.traffic.profile.max(initial=trials.budget_bytes))
    middle = high
    for _ in range(1 + HALVINGS):
        plan = rewriting.plan(swaps, middle)
        if plan is None:
            low = middle
        else:
            high = trials.replay(plan, "").peak_bytes
        if high - low <= 1 or trials.out_of_time():
            return
        middle = (low + high) // 2
