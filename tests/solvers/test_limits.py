"""What a method says that was cut short: `time` is the caller's limit, and not a share of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from remat_solvers.codec import load_problem
from remat_solvers.result import Limits, Stopped
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve

UNET = Path(__file__).parents[1] / "corpus/unet.json"


@pytest.mark.parametrize(
    ("solver", "told"),
    [("rockmate", "blocks cut short by a share of the time limit"), ("checkmate", "ended at its share")],
)
def test_a_share_that_struck_is_told_and_not_taken_for_the_limit(solver: str, told: str) -> None:
    problem = load_problem(UNET)
    budget_bytes = simulate(problem, store_all(problem)).peak_bytes * 4 // 10
    result = solve(problem, budget_bytes, solver=solver, limits=Limits(4))
    assert told in result.reason or result.stopped is Stopped.TIME
    assert result.seconds >= 4 or result.stopped is Stopped.COMPLETE
