"""Laws between the methods that swap."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import chain, random_chain, random_layered, training_graph
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.rotor import Rotor
from remat_solvers.registry import create
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from remat_solvers.swap.pofo import POFO
from tests.solvers.makers import budget_above_floor


def over_a_link(n: int, seed: int) -> tuple[Problem, int]:
    """A training graph with a link of any rate and latency, and a budget between floor and store-all."""
    random = Random(seed)
    link = Link(10 ** random.randint(0, 12), 10 ** random.randint(0, 12), random.choice((0, 1, 1000)))
    problem = replace(training_graph(n, seed), link=link)
    return problem, budget_above_floor(problem, random.random())


@pytest.mark.parametrize("name", ["meng", "tflms", "modnn"])
@given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_method_that_only_swaps_beats_swap_only(name: str, n: int, seed: int) -> None:
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


def steps(count: int) -> list[Problem]:
    """Training steps, chains and layered forward graphs in turn."""
    makers = (training_graph, random_chain, random_layered)
    return [makers[seed % 3](2 + seed % 9, seed) for seed in range(count)]


@pytest.mark.parametrize("name", ["auto", "capuchin", "checkmate", "modnn", "swap-only"])
def test_a_fast_link_costs_nothing_where_every_op_fits_beside_constants_and_results(name: str) -> None:
    """Only 1 ns per copy is added, while ops take a ms or more."""
    compared = 0
    for known in steps(45):
        slow = tuple(replace(op, time_ns=(1 + op.time_ns) * 10**6) for op in known.ops)
        problem = replace(known, ops=slow, link=Link(10**18, 10**18))
        size = [v.bytes if v.kind != "constant" else 0 for v in problem.values]
        largest = max(sum(size[v] for v in {*op.inputs, *op.outputs}) + op.workspace_bytes for op in slow)
        fixed = problem.static_bytes + sum(size[v] for v in problem.results)
        unmodified = baseline(problem)
        if fixed + largest < unmodified.peak_bytes:
            compared += 1
            result = solve(problem, fixed + largest, solver=name)
            assert result.time_ns is not None
            assert result.time_ns < unmodified.time_ns + 10**4
    assert compared > 15


@pytest.mark.parametrize("name", ["capuchin", "checkmate", "superneurons"])
def test_at_a_byte_per_second_the_plan_is_as_fast_as_by_recomputing_alone(name: str) -> None:
    compared = 0
    for problem in steps(30):
        floor, unmodified = peak_bound_bytes(problem), baseline(problem).peak_bytes
        budget_bytes = max(1, (floor + unmodified) // 2)
        alone = solve(problem, budget_bytes, solver=name)
        if budget_bytes < unmodified and alone.time_ns is not None:
            compared += 1
            assert solve(replace(problem, link=Link(1, 1)), budget_bytes, solver=name).time_ns == alone.time_ns
    assert compared > 7


def test_pofo_is_no_slower_than_rotor_at_a_latency_that_its_program_ignores() -> None:
    problem = replace(chain(24, size_bytes=100, forward_ns=100, backward_ns=200), link=Link(10**9, 10**9, 1000))
    times = [solve(problem, 900, solver=solver).time_ns for solver in (POFO(), Rotor(stages=40))]
    assert times[0] is not None
    assert times[1] is not None
    assert times[0] <= times[1]
