"""Tests of Meng et al.: triggers by time and the kept values, against their definitions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, random_chain, training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload
from remat_solvers.problem import Link, Problem
from remat_solvers.registry import create
from remat_solvers.result import Status
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.meng import edges_to_cut
from remat_solvers.swap.modnn import lower_bound_bytes
from remat_solvers.toolkit.transfers.graph_rewriting import CutEdge, GraphRewriting
from remat_solvers.toolkit.transfers.layers import feature_maps
from tests.solvers.makers import with_link

SIZES, SEEDS = st.integers(1, 16), st.integers(0, 10**6)
INFINITE = 2**63 - 1


def rewritten(problem: Problem, swaps: list[CutEdge]) -> nx.DiGraph:
    """The data-flow graph after the rewriting, with ops as numbers."""
    graph = nx.DiGraph()
    swap_of = {s.interval.value: s for s in swaps}
    for reader, op in enumerate(problem.ops):
        for value in op.inputs:
            if problem.producer[value] < 0:
                continue
            swap = swap_of.get(value)
            source = problem.producer[value] if swap is None or reader < swap.interval.back else ("in", value)
            graph.add_edge(source, reader)
    for value, swap in swap_of.items():
        graph.add_edge(problem.producer[value], ("out", value))
        graph.add_edge(("out", value), ("in", value))
        graph.add_edge(swap.fetch - 1, ("in", value))
    return graph


@given(n=SIZES, seed=SEEDS, rate=st.integers(1, 10**11))
@settings(max_examples=300)
def test_triggers_come_before_the_reader_and_close_no_cycle(n: int, seed: int, rate: int) -> None:
    problem = with_link(training_graph(n, seed), rate)
    swaps = edges_to_cut(problem, 0)
    assert all(s.interval.last <= s.fetch - 1 < s.interval.back for s in swaps)
    assert nx.is_directed_acyclic_graph(rewritten(problem, swaps))


@given(n=SIZES, seed=SEEDS, rate=st.integers(1, 10**11))
@settings(max_examples=300)
def test_a_trigger_is_the_latest_op_from_which_the_copy_is_hidden(n: int, seed: int, rate: int) -> None:
    problem = with_link(training_graph(n, seed), rate)
    finish = [sum(op.time_ns for op in problem.ops[: t + 1]) for t in range(len(problem.ops))]
    for swap in edges_to_cut(problem, 0):
        interval = swap.interval
        moment = finish[interval.back - 1] - int(Fraction(problem.values[interval.value].bytes * 10**9, rate))
        hidden = [t for t in range(interval.last, interval.back) if finish[t] <= moment]
        assert swap.fetch - 1 == max(hidden, default=interval.last)


@given(n=SIZES, seed=SEEDS)
@settings(max_examples=200)
def test_on_an_infinite_link_the_trigger_is_the_op_before(n: int, seed: int) -> None:
    for swap in edges_to_cut(with_link(training_graph(n, seed), INFINITE), 0):
        assert swap.fetch - 1 == swap.interval.back - 1


@given(n=SIZES, seed=SEEDS, rate=st.integers(2, 10**11))
@settings(max_examples=200)
def test_half_the_bandwidth_moves_no_trigger_later(n: int, seed: int, rate: int) -> None:
    problem = training_graph(n, seed)
    fast, slow = edges_to_cut(with_link(problem, rate), 0), edges_to_cut(with_link(problem, rate // 2), 0)
    assert [s.interval for s in fast] == [s.interval for s in slow]
    assert all(b.fetch <= a.fetch for a, b in zip(fast, slow, strict=True))


@given(n=SIZES, seed=SEEDS)
@settings(max_examples=200)
def test_a_threshold_of_the_unmodified_peak_swaps_nothing(n: int, seed: int) -> None:
    problem = with_link(training_graph(n, seed), 10**9)
    assert edges_to_cut(problem, baseline(problem).peak_bytes) == []


@pytest.mark.parametrize("threshold_bytes", range(0, 100, 7))
def test_on_a_uniform_chain_the_last_values_are_kept(threshold_bytes: int) -> None:
    problem = with_link(chain(10, size_bytes=10), 10**9)
    maps = [a.value for a in feature_maps(problem)]
    assert maps == list(range(8))  # v8 and v9 are read at once
    kept = threshold_bytes // 10
    assert [s.interval.value for s in edges_to_cut(problem, threshold_bytes)] == maps[: max(0, 8 - kept)]


def test_the_first_value_that_is_too_large_ends_the_kept_ones() -> None:
    """Earlier values live longer, and are swapped even where they would fit."""
    problem = with_link(chain(6, size_bytes=10), 10**9)
    values = list(problem.values)
    values[2] = replace(values[2], bytes=50)
    problem = replace(problem, values=tuple(values))
    assert [s.interval.value for s in edges_to_cut(problem, 39)] == [0, 1, 2]


def events(problem: Problem, budget_bytes: int) -> tuple[str, int]:
    """The ops with the actions on swapped values, and the time that ops wait."""
    swaps = edges_to_cut(problem, 0)
    plan = GraphRewriting(problem).plan(swaps, budget_bytes)
    assert plan is not None
    words = {Offload: "out", Free: "free", Fetch: "in"}
    names = []
    for action in plan:
        if isinstance(action, Compute):
            names.append(problem.ops[action.op].target)
        elif action.value in {s.interval.value for s in swaps}:
            names.append(f"{words[type(action)]}{action.value}")
    return " ".join(names), simulate(problem, plan).wait_ns


def test_executions_by_hand() -> None:
    """Ops and copies take 10 ns and values have 10 bytes. v0 and v1 are copied when computed, and fetched just in time.

    B4 reads v2, v3 and its gradient: in 30 bytes the fetch of v1 starts after it, and B3 waits; then B2 for v0."""
    problem = with_link(chain(4, size_bytes=10, forward_ns=10, backward_ns=10), 10**9)
    assert [(s.interval.value, s.fetch - 1) for s in edges_to_cut(problem, 0)] == [(0, 4), (1, 3)]
    forward = "F1 out0 F2 out1 free0 F3 free1 F4 "
    assert events(problem, 40) == (forward + "in1 B4 in0 B3 free1 B2 free0 B1", 0)
    assert events(problem, 30) == (forward + "B4 in1 B3 free1 in0 B2 free0 B1", 20)
    assert GraphRewriting(problem).plan(edges_to_cut(problem, 0), 29) is None


@pytest.mark.parametrize("n", [6, 12, 25])
def test_a_fast_link_costs_almost_nothing(n: int) -> None:
    """Copies take 1 ns and ops 1000: three values at a time are enough at any depth."""
    problem = with_link(chain(n, size_bytes=10, forward_ns=1000, backward_ns=1000), INFINITE)
    result = solve(problem, 50, solver="meng")
    assert result.time_ns is not None
    assert result.time_ns <= result.store_all_time_ns + 2 * n


@pytest.mark.parametrize("method", ["meng", "tflms"])
def test_infinite_bandwidth_costs_nothing_on_a_chain_wherever_every_op_fits(method: str) -> None:
    """Only 1 ns per copy is added, while ops take a ms or more."""
    solved = 0
    for seed in range(25):
        problem = random_chain(2 + seed % 7, seed)
        slow = tuple(replace(op, time_ns=op.time_ns * 10**6) for op in problem.ops)
        problem = with_link(replace(problem, ops=slow), INFINITE)
        unmodified = baseline(problem)
        for budget_bytes in range(lower_bound_bytes(problem), unmodified.peak_bytes):
            result = solve(problem, budget_bytes, solver=method)
            assert result.time_ns is not None
            assert result.time_ns - unmodified.time_ns < 1000
            solved += 1
    assert solved > 50


def test_a_given_threshold_is_not_searched() -> None:
    problem = with_link(chain(10, size_bytes=10), 10**9)
    given_threshold = solve(problem, 60, solver=create("meng", threshold_bytes=20))
    assert given_threshold.plan is not None
    assert {a.value for a in given_threshold.plan if isinstance(a, Offload)} == set(range(6))
    assert solve(problem, 60, solver=create("meng", threshold_bytes=80)).status is Status.NOT_FOUND


def test_without_a_plan_the_smallest_peak_is_reported() -> None:
    """v1 is kept, so v1, v2, v3 and its gradient are resident at B4."""
    problem = with_link(chain(4, size_bytes=10), 10**9)
    result = solve(problem, 30, solver=create("meng", threshold_bytes=10))
    assert result.status is Status.NOT_FOUND
    assert result.smallest_peak_bytes == 40
    assert solve(problem, 40, solver=create("meng", threshold_bytes=10)).plan is not None


@pytest.mark.parametrize("method", ["meng", "tflms"])
def test_a_host_without_room_leaves_the_unmodified_peak(method: str) -> None:
    problem = replace(chain(6), link=Link(10**9, 10**9, 0, host_bytes=0))
    result = solve(problem, 4, solver=method)
    assert result.status is Status.NOT_FOUND
    assert result.reason == f"smallest peak found: {baseline(problem).peak_bytes} B"


def test_meng_refuses_unsupported_problems() -> None:
    assert solve(chain(6), 4, solver="meng").status is Status.NOT_APPLICABLE
    with pytest.raises(InputError, match="threshold_bytes"):
        create("meng", threshold_bytes=-1)
