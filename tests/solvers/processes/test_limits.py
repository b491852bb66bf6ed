"""Tests of shares of a limit: `stopped` is `time` only for the caller's limit, the reason names an expired share."""

from __future__ import annotations

import pytest

from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.checkmate import solver as checkmate
from remat_solvers.recompute.rockmate import solver as rockmate
from remat_solvers.result import Limits, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from tests.solvers.makers import corpus_problem


@pytest.mark.parametrize(
    ("solver", "reason"),
    [("rockmate", "blocks cut short by a share of the time limit"), ("checkmate", checkmate.PROGRAM_CUT_SHORT)],
)
def test_an_expired_share_is_reported_and_not_taken_for_the_limit(
    solver: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rockmate, "BLOCK_SHARE", 0.002)
    monkeypatch.setattr(checkmate, "EXACT_SHARE", 0.002)
    monkeypatch.setattr(checkmate, "ROUND_SHARE", 0.002)
    problem = corpus_problem("unet")
    budget_bytes = baseline(problem).peak_bytes * 4 // 10
    result = solve(problem, budget_bytes, solver=solver, limits=Limits(100))
    assert reason in result.reason
    assert result.seconds < 100
    assert result.stopped is Stopped.COMPLETE


def test_a_share_of_limits_scales_the_seconds() -> None:
    assert Limits(seconds=60.0).share(0.25) == Limits(seconds=15.0)
    assert Limits(seconds=None, work=7).share(0.25) == Limits(seconds=None, work=7)


def test_a_share_of_a_stopwatch_scales_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 106.0, 111.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch(Limits(seconds=10.0))
    assert watch.share(0.5) == Limits(seconds=2.0)
    assert watch.share(0.5) == Limits(seconds=0.0)
    monkeypatch.undo()
    assert Stopwatch(Limits(seconds=None)).share(0.5) == Limits(seconds=None)
