"""swap-only: the fastest plan found that moves values to the host and recomputes nothing.

It shows how far swapping alone gets, for comparison with the methods that recompute and with those that do both. The
order of the ops is the problem's. It remains to choose which values are off the device between which of their uses;
the times of the copies follow from that (`schedule_copies`). Whole-tensor transfers with fixed order are strongly
NP-hard already for chains (Beaumont, Eyraud-Dubois, Shilova: hal-02316266), so this is a search without a bound:

- greedy: around each position at which the plan exceeds the budget, the idle intervals of most slack are chosen, until
  the bytes suffice. Slack is the time between the end of the copy out and the start of the copy back on an idle link;
  Capuchin calls it FT. It may be negative.
- then descent: an interval leaves the choice, enters it, or takes another's place, at random; a faster plan is kept,
  and of equally fast ones the one that moves fewer bytes.

The published methods that recompute nothing either, and are quick, are run too, since `schedule_copies` cannot express
all of their triggers. So none of them finds a faster plan, provided the time limit leaves room to run them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import create
from remat_solvers.result import Limits, OnProgress, Outcome, Status, Stopped
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import relieving_intervals, schedule_copies
from remat_solvers.toolkit.trials import LeastTraffic

PUBLISHED_METHODS = ("tflms", "meng", "modnn")  # that recompute nothing
PUBLISHED_SHARE = 0.1  # of the time, for each of them


@dataclass(frozen=True)
class SwapOnly:
    """Offload values, and never recompute."""

    tries: int = 2000  # changes that are tried after the greedy choice, at most

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
        search = _Search(problem, budget_bytes, limits, on_progress, seed)
        published: list[tuple[int, Plan]] = []
        with search:
            for name in PUBLISHED_METHODS:
                share = limits.share(PUBLISHED_SHARE)
                outcome = create(name).solve(problem, budget_bytes, limits=share, on_progress=None, seed=seed)
                if outcome.plan is not None:
                    published.append((simulate(problem, outcome.plan).time_ns, outcome.plan))
                if outcome.stopped is Stopped.INTERRUPT:
                    raise KeyboardInterrupt
            if search.greedy():
                search.descend(self.tries)
        fastest = min(published, key=lambda found: found[0], default=None)
        if fastest is not None and (search.best is None or fastest[0] < search.best.time_ns):
            return Outcome(status=Status.FEASIBLE, plan=fastest[1], stopped=search.stopped)
        return search.outcome(search.reason)


class _Search(LeastTraffic):
    def __init__(
        self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> None:
        super().__init__(problem, budget_bytes, Stopwatch(limits), on_progress)
        self.random = random.Random(seed)
        self.profile = StepProfile.of(problem, range(len(problem.ops)))
        self.intervals = [i for i in idle_intervals(problem, self.profile.sequence) if problem.values[i.value].bytes]
        self.chosen: dict[IdleInterval, None] = {}  # a set that keeps its order
        self.reason = ""  # why no plan was found

    def greedy(self) -> bool:
        """Choose intervals until the plan fits. Return whether it does."""
        while not self.out_of_time():
            answer = schedule_copies(self.profile, self.chosen, self.budget_bytes)
            if not isinstance(answer, Overflow):
                self.replay(answer, "greedy")
                return True
            relief = relieving_intervals(self.profile, self.intervals, self.chosen, answer)
            if not relief:
                excess = f"{answer.excess_bytes} bytes too many beside {answer.place(self.profile)}"
                self.reason = f"{excess}, and no further value can be off the device there"
                return False
            self.chosen.update(dict.fromkeys(relief))
        return False

    def descend(self, tries: int) -> None:
        """Change the choice at random, and keep each change that does not make the plan worse."""
        for _ in range(tries):
            if self.out_of_time() or self.best is None or self.best.time_ns <= self.profile.clock.starts[-1]:
                return
            chosen, best = dict(self.chosen), self.best
            draw = self.random.random()
            if self.chosen and draw < 0.7:
                del self.chosen[self.random.choice(list(self.chosen))]
            if draw > 0.3:
                self.chosen[self.random.choice(self.intervals)] = None
            answer = schedule_copies(self.profile, self.chosen, self.budget_bytes)
            if not isinstance(answer, Overflow):
                self.replay(answer, "descent")
            if self.best is best:
                self.chosen = chosen
