"""Tests of the best plan of a search: which plan is kept, what is reported, and the end by interrupt or time limit."""

from __future__ import annotations

import pytest

from remat_solvers.generate import chain
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, Progress, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.trials import BestPlan, Incumbent, LeastTraffic, Trials

PROBLEM = chain(6)
FORWARD = list(PROBLEM.forward_ops)
BACKWARD = list(PROBLEM.backward_ops)
PEAK = baseline(PROBLEM).peak_bytes


def dropping(count: int) -> list[int]:
    """The sequence that recomputes the first `count` forward ops directly after the boundary."""
    return [*FORWARD, *FORWARD[:count], *BACKWARD]


def best_plan(budget_bytes: int, reports: list[Progress]) -> BestPlan:
    return BestPlan(PROBLEM, budget_bytes, Stopwatch(Limits(None)), reports.append)


def test_the_fastest_plan_within_the_budget_is_kept_and_every_improvement_reported() -> None:
    reports: list[Progress] = []
    best = best_plan(2 * PEAK, reports)
    once_ns = baseline(PROBLEM).time_ns
    for count in (3, 5, 1, 1, 2):
        assert best.replay_sequence(dropping(count), f"{count} recomputed").time_ns == once_ns + count
    assert best.best is not None
    assert best.best.plan == plan_from_sequence(PROBLEM, dropping(1))
    assert [(report.time_ns, report.message) for report in reports] == [
        (once_ns + 3, "3 recomputed"),
        (once_ns + 1, "1 recomputed"),
    ]
    assert best.outcome("because").reason == "because"
    assert (best.outcome().status, best.outcome().plan) == (Status.FEASIBLE, best.best.plan)


def test_of_equally_fast_plans_the_smaller_peak_is_kept() -> None:
    best = best_plan(100, [])
    for peak_bytes, kept in ((9, 9), (8, 8), (8, 8), (10, 8)):
        best.consider(Incumbent(Plan([]), 5, peak_bytes, 0), "")
        assert best.best is not None
        assert best.best.peak_bytes == kept
    assert not best.consider(Incumbent(Plan([]), 6, 1, 0), "")


def test_only_the_peaks_of_plans_above_the_budget_are_kept() -> None:
    reports: list[Progress] = []
    best = best_plan(1, reports)
    assert best.outcome().smallest_peak_bytes is None
    best.replay(store_all(PROBLEM), "store-all")
    best.observe_peak(PEAK + 1)
    assert (best.best, reports) == (None, [])
    assert best.outcome().status is Status.NOT_FOUND
    assert best.outcome().smallest_peak_bytes == PEAK


def test_least_traffic_accepts_equal_plans_and_reports_faster_ones() -> None:
    reports: list[Progress] = []
    search = LeastTraffic(PROBLEM, 100, Stopwatch(Limits(None)), reports.append)
    plans = [Incumbent(Plan([]), time_ns, 9, host_bytes) for time_ns, host_bytes in ((5, 4), (5, 4), (5, 3), (4, 9))]
    for plan in plans:
        assert search.consider(plan, "")
        assert search.best is plan
    for worse in (Incumbent(Plan([]), 4, 1, 10), Incumbent(Plan([]), 5, 1, 0)):
        assert not search.consider(worse, "")
    assert [report.time_ns for report in reports] == [5, 4]


def test_an_interrupt_ends_the_block_and_keeps_the_plan() -> None:
    best = best_plan(PEAK, [])
    with best:
        best.replay(store_all(PROBLEM), "")
        raise KeyboardInterrupt
    assert best.outcome().plan is not None
    assert best.outcome().stopped is Stopped.INTERRUPT
    with pytest.raises(ZeroDivisionError), best:
        raise ZeroDivisionError


def test_trials_expire_once_a_plan_was_replayed() -> None:
    trials = Trials(PROBLEM, 1, Limits(0.0), None)
    assert not trials.expired
    assert trials.stopped is Stopped.COMPLETE
    trials.fits(dropping(0), "")
    assert trials.expired
    assert trials.outcome().stopped is Stopped.TIME


@pytest.mark.parametrize("budget_bytes", range(1, PEAK + 1))
def test_the_search_finds_the_largest_parameter_that_fits(budget_bytes: int) -> None:
    """The parameter is the number of kept values; with more of them, sequences are faster and need more memory."""
    tried: list[int] = []

    def sequence_of(kept: int) -> list[int]:
        tried.append(kept)
        sequence = list(FORWARD)
        for op in BACKWARD:
            needed = [v for v in PROBLEM.ops[op].inputs if v in FORWARD]
            sequence += [f for f in FORWARD if f >= kept and any(f <= v for v in needed)]
            sequence.append(op)
        return sequence

    kept_numbers = list(range(len(FORWARD) + 1))
    timelines = [simulate(PROBLEM, plan_from_sequence(PROBLEM, sequence_of(kept))) for kept in kept_numbers]
    fitting = [timeline.time_ns for timeline in timelines if timeline.peak_bytes <= budget_bytes]
    tried.clear()
    trials = Trials(PROBLEM, budget_bytes, Limits(None), None)
    trials.search(kept_numbers, sequence_of, "kept:")
    assert (None if trials.best is None else trials.best.time_ns) == min(fitting, default=None)
    assert len(tried) <= len(kept_numbers)
    if not fitting:
        assert trials.smallest_peak_bytes == timelines[0].peak_bytes


def test_a_sequence_as_slow_as_the_best_plan_cannot_improve() -> None:
    trials = Trials(PROBLEM, 2 * PEAK, Limits(None), None)
    assert not trials.cannot_improve(dropping(2))
    trials.fits(dropping(2), "")
    assert [trials.cannot_improve(dropping(count)) for count in (1, 2, 3)] == [False, True, True]


def test_a_missing_requirement_is_named() -> None:
    without_link = missing_requirement(PROBLEM, "method", "backward pass", "link to the host")
    assert without_link is not None
    assert without_link.status is Status.NOT_APPLICABLE
    assert without_link.reason == "method needs a link to the host; there is none"
    assert missing_requirement(PROBLEM, "method", "backward pass") is None
    forward_only = Problem("forward", PROBLEM.ops[:1], PROBLEM.values[:1], (0,))
    assert missing_requirement(forward_only, "method", "backward pass") is not None
