"""swap-only: the fastest plan found that moves values to the host and recomputes nothing.

What swapping alone can do, as a yardstick for the methods that recompute and for those that do both. The order of the
ops is the problem's. What remains to choose is which values are away between which of their uses; when they move
follows from that (`traffic`). Whole-tensor transfers with fixed order are strongly NP-hard already for chains
(Beaumont, Eyraud-Dubois, Shilova: hal-02316266), so this is a search without a bound:

- greedy: where the plan overflows, the absences around that position leave that have the most free time there, until
  the bytes suffice. Free time is the time between the end of the copy out and the start of the copy back, were the link
  idle; it is what Capuchin calls FT, and may be negative.
- then descent: an absence leaves the choice, enters it, or takes another's place, at random; what is faster stays, of
  what is as fast the smaller traffic.

The published methods that recompute nothing either, and are quick, are asked too: their triggers can be what `traffic`
does not say. So nothing that they find is faster than the answer, as far as the time goes round.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Outcome, Progress, Status, Stopped
from remat_solvers.simulate import simulate
from remat_solvers.swap.meng import Meng
from remat_solvers.swap.modnn import ModNN
from remat_solvers.swap.tflms import TFLMS
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.transfers.intervals import Absence, absences
from remat_solvers.toolkit.transfers.scheduler import Overflow, Traffic

__all__ = ["SwapOnly"]

OTHERS_SHARE = 0.1  # of the time, for each of the methods asked beside the search


@dataclass(frozen=True)
class SwapOnly:
    """Move, never recompute."""

    tries: int = 2000  # most changes that are tried after the greedy choice

    name: ClassVar[str] = "swap-only"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self, tries=(0, inf))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of the search. See `registry.Solver`."""
        if missing := missing_requirement(problem, self.name, "link to the host"):
            return missing
        search = _Search(problem, budget_bytes, Stopwatch(limits), on_progress, random.Random(seed))
        others: list[tuple[int, Plan]] = []
        try:
            for method in (TFLMS(), Meng(), ModNN()):
                share = limits.share(OTHERS_SHARE)
                outcome = method.solve(problem, budget_bytes, limits=share, on_progress=None, seed=seed)
                if outcome.plan is not None:
                    others.append((simulate(problem, outcome.plan).time_ns, outcome.plan))
                if outcome.stopped is Stopped.INTERRUPT:
                    raise KeyboardInterrupt
            if search.greedy():
                search.descend(self.tries)
        except KeyboardInterrupt:
            search.stopped = Stopped.INTERRUPT
        answer = search.outcome()
        fastest = min(others, key=lambda other: other[0], default=None)
        if fastest is not None and (search.best is None or fastest[0] < search.best[0][0]):
            return Outcome(status=Status.FEASIBLE, plan=fastest[1], stopped=search.stopped)
        return answer


class _Search:
    def __init__(
        self, problem: Problem, budget_bytes: int, watch: Stopwatch, on_progress: OnProgress | None, rng: random.Random
    ) -> None:
        self.problem, self.budget_bytes, self.watch, self.on_progress = problem, budget_bytes, watch, on_progress
        self.rng = rng
        self.traffic = Traffic(problem, range(len(problem.ops)))
        self.all = [a for a in absences(problem, self.traffic.sequence) if problem.values[a.value].bytes]
        self.chosen: dict[Absence, None] = {}
        self.best: tuple[tuple[int, int], Plan] | None = None
        self.reason = ""
        self.stopped = Stopped.COMPLETE

    def greedy(self) -> bool:
        """Choose until it fits; whether it does."""
        while True:
            if self._keeps_time():
                return False
            answer = self.traffic.plan(self.chosen, self.budget_bytes)
            if not isinstance(answer, Overflow):
                self._take(answer, "greedy")
                return True
            if not self._relieve(answer):
                op = self.problem.ops[self.traffic.sequence[answer.position]]
                excess = f"{answer.excess_bytes} bytes too many beside {op.name}"
                self.reason = f"{excess}, and nothing more can be away there"
                return False

    def _relieve(self, overflow: Overflow) -> bool:
        at = overflow.position
        around = [a for a in self.all if a.last < at < a.back and a not in self.chosen]
        around.sort(key=lambda a: (-self._free_ns(a), a.last, a.value))
        missing = overflow.excess_bytes
        for absence in around:
            if missing <= 0:
                break
            self.chosen[absence] = None
            missing -= self.problem.values[absence.value].bytes
        return bool(around)

    def _free_ns(self, absence: Absence) -> int:
        traffic, clock = self.traffic, self.traffic.clock
        gap = clock.starts[absence.back] - clock.ends[absence.last]
        return gap - traffic.out_ns[absence.value] - traffic.back_ns[absence.value]

    def descend(self, tries: int) -> None:
        """Change the choice at random, as long as it gets better."""
        for _ in range(tries):
            if self._keeps_time() or self.best is None or self.best[0][0] <= self.traffic.clock.starts[-1]:
                return
            before = dict(self.chosen)
            kind = self.rng.random()
            if self.chosen and kind < 0.7:
                del self.chosen[self.rng.choice(list(self.chosen))]
            if kind > 0.3:
                self.chosen[self.rng.choice(self.all)] = None
            answer = self.traffic.plan(self.chosen, self.budget_bytes)
            if isinstance(answer, Overflow) or not self._take(answer, "descent"):
                self.chosen = before

    def _take(self, plan: Plan, what: str) -> bool:
        timeline = simulate(self.problem, plan)
        key = (timeline.time_ns, timeline.host_bytes)
        if self.best is not None and key > self.best[0]:
            return False
        faster = self.best is None or key[0] < self.best[0][0]
        self.best = key, plan
        if faster and self.on_progress is not None:
            self.on_progress(Progress(self.watch.seconds, key[0], timeline.peak_bytes, None, what))
        return True

    def _keeps_time(self) -> bool:
        if self.watch.expired:
            self.stopped = Stopped.TIME
        return self.watch.expired

    def outcome(self) -> Outcome:
        """What was found."""
        if self.best is None:
            return Outcome(status=Status.NOT_FOUND, reason=self.reason, stopped=self.stopped)
        return Outcome(status=Status.FEASIBLE, plan=self.best[1], stopped=self.stopped)
