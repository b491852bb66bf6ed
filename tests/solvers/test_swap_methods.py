"""What holds between methods that swap."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import chain, training_graph
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.rotor import Rotor
from remat_solvers.registry import create
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.pofo import POFO


def over_a_link(n: int, seed: int) -> tuple[Problem, int]:
    """A training graph with a link of any rate and latency, and a budget between floor and store-all."""
    random = Random(seed)
    link = Link(10 ** random.randint(0, 12), 10 ** random.randint(0, 12), random.choice((0, 1, 1000)))
    problem = replace(training_graph(n, seed), link=link)
    floor, unmodified = peak_bound_bytes(problem), simulate(problem, store_all(problem)).peak_bytes
    return problem, max(1, floor + int(random.random() * (unmodified - floor)))


@pytest.mark.parametrize("name", ["meng", "tflms", "modnn"])
@given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_nothing_that_recomputes_nothing_beats_swap_only(name: str, n: int, seed: int) -> None:
    problem, budget_bytes = over_a_link(n, seed)
    other = solve(problem, budget_bytes, solver=name)
    if other.time_ns is not None:
        found = solve(problem, budget_bytes, solver=create("swap-only", tries=50))
        assert found.time_ns is not None
        assert found.time_ns <= other.time_ns


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_pofo_is_never_slower_than_rotor(n: int, seed: int) -> None:
    problem, budget_bytes = over_a_link(n, seed)
    rotor = solve(problem, budget_bytes, solver=Rotor(stages=40))
    if rotor.time_ns is not None:
        found = solve(problem, budget_bytes, solver=POFO(cells=10))
        assert found.time_ns is not None
        assert found.time_ns <= rotor.time_ns


def test_latency_that_the_program_does_not_know_does_no_harm() -> None:
    problem = replace(chain(24, size_bytes=100, forward_ns=100, backward_ns=200), link=Link(10**9, 10**9, 1000))
    times = [solve(problem, 900, solver=solver).time_ns for solver in (POFO(), Rotor(stages=40))]
    assert times[0] is not None
    assert times[1] is not None
    assert times[0] <= times[1]
