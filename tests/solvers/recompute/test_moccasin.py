"""Moccasin against the optima of unit chains, Checkmate on the same schedules, and exhaustive search."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import adversarial, chain, training_graph
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.brute_force import BruteForce
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.recompute.moccasin import Moccasin
from remat_solvers.result import Limits, Progress, Status, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from tests.solvers.makers import corpus_problem


def unit_chain(layers: int) -> Problem:
    """f_1..f_L, b_L..b_1; b_i reads b_{i+1}, f_i and f_{i-1}; unit sizes and times."""
    ops = [Op(f"f{i}", "forward", (i - 1,) if i else (), (i,), 1) for i in range(layers)]
    for i in range(layers - 1, -1, -1):
        reads = [*([2 * layers - i - 2] if i < layers - 1 else []), i, *([i - 1] if i else [])]
        ops.append(Op(f"b{i}", "backward", tuple(reads), (2 * layers - i - 1,), 1))
    values = tuple(Value(f"v{i}", 1, "activation" if i < layers else "gradient") for i in range(2 * layers))
    return Problem(f"unit{layers}", tuple(ops), values, (2 * layers - 1,))


@pytest.mark.parametrize(
    ("layers", "budget", "runs", "optimum"),
    [(4, 4, 2, 9), (5, 5, 2, 11), (6, 5, 2, 14), (6, 6, 2, 13), (6, 4, 2, None), (6, 4, 3, None), (6, 4, 5, 18)],
)
def test_known_optima_of_unit_chains(layers: int, budget: int, runs: int, optimum: int | None) -> None:
    """6 layers in 4 slots need the first layers more often than C = 3 allows."""
    result = solve(unit_chain(layers), budget, solver=Moccasin(runs))
    assert result.time_ns == optimum
    assert result.bound_ns is None
    assert f"with at most {runs} runs per op" in result.reason


def test_enough_runs_give_the_optimum_and_fewer_are_never_faster() -> None:
    """The same schedules as Checkmate's where C covers them; no plan is faster than the exhaustive optimum."""
    compared = 0
    for seed in range(120):
        rng = random.Random(seed)
        problem = training_graph(rng.randint(2, 6), seed) if seed % 4 else adversarial(seed)
        floor, unmodified = peak_bound_bytes(problem), baseline(problem).peak_bytes
        budget_bytes = floor + int(rng.random() * (unmodified - floor))
        if len(problem.ops) > 13 or not 0 < budget_bytes < unmodified:
            continue
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


def test_it_is_anytime_and_keeps_its_limit() -> None:
    problem = corpus_problem("unet")
    unmodified = baseline(problem)
    seen: list[Progress] = []
    budget_bytes = int(0.9 * unmodified.peak_bytes)
    result = solve(problem, budget_bytes, solver=Moccasin(), limits=Limits(6), on_progress=seen.append)
    assert result.seconds < 10
    assert result.status in (Status.FEASIBLE, Status.NOT_FOUND)
    assert result.stopped is Stopped.TIME
    times = [p.time_ns for p in seen if p.time_ns is not None]
    assert times == sorted(times, reverse=True)
    assert (times[-1] if times else None) == result.time_ns


def test_the_same_seed_gives_the_same_plan() -> None:
    first, second = (solve(chain(8), 6, solver=Moccasin(), seed=5).plan for _ in range(2))
    assert first is not None
    assert first == second


def test_an_endless_program_is_given_up_at_the_limit() -> None:
    result = solve(unit_chain(40), 40, solver=Moccasin(runs=10**30), limits=Limits(1))
    assert result.stopped is Stopped.TIME
    assert result.seconds < 5


def test_what_fails_inside_the_backend_comes_out() -> None:
    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve(chain(8), 6, solver=Moccasin(), on_progress=fail)
