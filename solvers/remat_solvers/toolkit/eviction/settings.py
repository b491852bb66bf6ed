"""Tries several settings of the evicting replay, and returns the fastest plan that any of them finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.schedule import baseline
from remat_solvers.toolkit.eviction.memory import Deallocate, Evictor, Memory
from remat_solvers.toolkit.eviction.replay import Replay
from remat_solvers.toolkit.trials import Trials

DEALLOCATIONS: tuple[Deallocate, ...] = ("eager", "ignore")  # tried where a method leaves it open
THRASHING = 2  # times the store-all plan's time: DTR's paper (figure 2) calls that much or more thrashing
PATIENCE = 6  # the same, where thrashing is better than no plan
PATIENT_OPS = 50_000  # computed in all replays: beyond that there is no such patience
SEARCH_STEPS = 4  # larger budgets tried where the given one is too small
GIVEN_UP = 2**62  # in place of a peak


@dataclass(frozen=True, slots=True)
class EvictionSetting:
    """The rules of one replay."""

    name: str  # for people
    evictor: Callable[[Memory], Evictor]
    deallocate: Deallocate


def try_settings(
    problem: Problem,
    budget_bytes: int,
    settings: Sequence[EvictionSetting],
    limits: Limits,
    on_progress: OnProgress | None,
) -> Outcome:
    """The fastest plan that any of `settings` finds.

    A replay is given up when it is slower than the best before it, or takes THRASHING times the store-all plan. If all
    are given up and have not computed more than PATIENT_OPS ops together, each is tried again up to PATIENCE times. If
    none fits, larger budgets are tried for a small peak that can be reached, first with the setting that came closest.
    """
    with _Search(problem, budget_bytes, limits, on_progress) as search:
        search.run(settings)
    return search.outcome()


class _Search(Trials):
    def __init__(self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None) -> None:
        super().__init__(problem, budget_bytes, limits, on_progress)
        self.every_op_ns = sum(op.time_ns for op in problem.ops)
        self.patience = THRASHING
        self.computed_ops = 0

    def run(self, settings: Sequence[EvictionSetting]) -> None:
        closest = settings[0]  # the setting of the smallest peak, or else the one whose replay got farthest
        reached = (GIVEN_UP, len(self.problem.ops))
        while self.best is None:
            given_up = []
            for setting in settings:
                if self.out_of_time():
                    return
                peak_bytes, ops_left = self._replay(setting, self.budget_bytes)
                if ops_left:
                    given_up.append(setting)
                if (peak_bytes, ops_left) < reached:
                    closest, reached = setting, (peak_bytes, ops_left)
            if self.patience == PATIENCE or not given_up or self.computed_ops > PATIENT_OPS:
                break
            self.patience, settings = PATIENCE, given_up
        if self.best is None:
            self._search_budget((closest, *(setting for setting in settings if setting is not closest)))

    def _search_budget(self, settings: Sequence[EvictionSetting]) -> None:
        """Find the smallest budget that one of `settings` replays within, by bisection as if success were monotone."""
        low, high = self.budget_bytes, baseline(self.problem).peak_bytes
        for _ in range(SEARCH_STEPS):
            smallest = self.smallest_peak_bytes
            high = high if smallest is None else min(high, smallest)
            middle = (low + high) // 2
            if middle <= low or self.out_of_time():
                return
            for setting in settings:
                _, ops_left = self._replay(setting, middle)
                if not ops_left or self.computed_ops > PATIENT_OPS or self.out_of_time():
                    break
            if self.smallest_peak_bytes is None or self.smallest_peak_bytes > middle:
                low = middle

    def _replay(self, setting: EvictionSetting, budget_bytes: int) -> tuple[int, int]:
        """The peak, or GIVEN_UP, and the number of ops of the problem's order that were left then."""
        replay = Replay(
            self.problem,
            budget_bytes,
            setting.evictor,
            deallocate=setting.deallocate,
            limit_ns=self.patience * self.every_op_ns if self.best is None else self.best.time_ns,
            expired=lambda: self.watch.expired,
        )
        finished = replay.run()
        self.computed_ops += len(replay.sequence)
        if not finished:
            self.out_of_time()  # the replay may have ended because of it
            return GIVEN_UP, len(self.problem.ops) - replay.memory.position
        return self.replay_sequence(replay.sequence, setting.name).peak_bytes, 0
