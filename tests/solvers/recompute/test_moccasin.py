"""Tests of Moccasin against the optima of unit chains, Checkmate on the same schedules, and exhaustive search."""

from __future__ import annotations

from itertools import pairwise

import pytest

from remat_solvers.generate import chain
from remat_solvers.recompute.brute_force import BruteForce
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.recompute.moccasin import Moccasin
from remat_solvers.result import Limits, Progress, Status, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from tests.solvers.makers import constrained_steps, corpus_problem, unit_chain


@pytest.mark.parametrize(
    ("layers", "budget", "runs", "optimum"),
    [(4, 4, 2, 9), (5, 5, 2, 11), (6, 5, 2, 14), (6, 6, 2, 13), (6, 4, 2, None), (6, 4, 3, None), (6, 4, 5, 18)],
)
def test_known_optima_of_unit_chains(layers: int, budget: int, runs: int, optimum: int | None) -> None:
    """6 layers in 4 slots need more computations of the first layers than C = 3 allows."""
    result = solve(unit_chain(layers), budget, solver=Moccasin(runs))
    assert result.time_ns == optimum
    assert result.bound_ns is None
    assert f"with at most {runs} computations per op" in result.reason


def test_a_large_c_gives_the_optimum_and_a_smaller_one_is_never_faster() -> None:
    """The schedules are Checkmate's where C covers them; no plan is faster than the exhaustive optimum."""
    compared = 0
    for problem, budget_bytes in constrained_steps(range(120)):
        times = [solve(problem, budget_bytes, solver=Moccasin(runs)).time_ns for runs in (1, 2, 4)]
        if times[2] is None:
            assert times == [None, None, None]
            continue
        exact = solve(problem, budget_bytes, solver=BruteForce()).time_ns
        assert exact is not None
        assert times[2] == solve(problem, budget_bytes, solver=Checkmate()).time_ns
        assert all(fewer is None or fewer >= more for fewer, more in pairwise(times) if more)
        assert times[2] >= exact
        compared += 1
    assert compared > 15


def test_plans_improve_until_the_limit() -> None:
    problem = corpus_problem("unet")
    unmodified = baseline(problem)
    reports: list[Progress] = []
    budget_bytes = int(0.9 * unmodified.peak_bytes)
    result = solve(problem, budget_bytes, solver=Moccasin(), limits=Limits(6), on_progress=reports.append)
    assert result.seconds < 10
    assert result.status in (Status.FEASIBLE, Status.NOT_FOUND)
    assert result.stopped is Stopped.TIME
    times = [p.time_ns for p in reports if p.time_ns is not None]
    assert times == sorted(times, reverse=True)
    assert (times[-1] if times else None) == result.time_ns


def test_the_same_seed_gives_the_same_plan() -> None:
    first, second = (solve(chain(8), 6, solver=Moccasin(), seed=5).plan for _ in range(2))
    assert first is not None
    assert first == second


def test_an_endless_program_ends_at_the_limit() -> None:
    result = solve(unit_chain(40), 40, solver=Moccasin(runs=10**30), limits=Limits(1))
    assert result.stopped is Stopped.TIME
    assert result.seconds < 5


def test_an_error_in_a_callback_of_the_backend_is_raised() -> None:
    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve(chain(8), 6, solver=Moccasin(), on_progress=fail)
