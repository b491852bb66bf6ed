"""Tests of Checkmate with a link: POET's optima, the exact optimum of tiny problems, and plans of real graphs."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import time_bound_ns
from remat_solvers.errors import InputError
from remat_solvers.generate import chain, training_graph
from remat_solvers.plan import Fetch, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.brute_force.solver import best_moving_plan
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.recompute.checkmate.offload_program import choose_moments, solve_offload_program
from remat_solvers.recompute.checkmate.offload_search import OffloadLocalSearch, search_offload_plans
from remat_solvers.result import Limits, Status
from remat_solvers.schedule import baseline
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.solving import solve
from remat_solvers.swap.modnn import lower_bound_bytes
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.validate import validate
from tests.solvers.makers import constrained_linked_steps, corpus_problem, linked_step, poet_chain


@pytest.mark.parametrize("backend", ["highs", "cbc"])
@pytest.mark.parametrize(("layers", "joint", "alone"), [(3, 76, 80), (6, 154, 180)])
def test_optima_of_poet_with_additive_times(layers: int, joint: int, alone: int, backend: str) -> None:
    """T = 7: 7.6 against 8.0 without paging; T = 13: 15.4 against 18.0; 4 values fit. The plan is at least as fast."""
    problem = poet_chain(layers)
    at = range(len(problem.ops))
    choice = solve_offload_program(problem, 12, at, backend, swap_time="additive", seconds=None)  # type: ignore[arg-type]
    assert choice is not None
    assert choice.time_ns == pytest.approx(joint, rel=2e-3)  # a small price makes the earlier of equal copies better
    additive = solve(problem, 12, solver=Checkmate(swap_time="additive", backend=backend))  # type: ignore[arg-type]
    assert additive.time_ns is not None
    assert time_bound_ns(problem) <= additive.time_ns <= joint
    assert solve(problem, 12, solver=Checkmate(swap=False)).time_ns == alone


def test_exact_on_small_problems() -> None:
    """The result is always the optimum of exhaustive search, with the bound that proves it."""
    moved = 0
    for problem, budget_bytes in constrained_linked_steps(100):
        best = best_moving_plan(problem, budget_bytes)
        result = solve(problem, budget_bytes, solver=Checkmate(swap_tries=100))
        if best is None:
            assert result.plan is None
            assert result.status is Status.NOT_FOUND
            continue
        assert result.plan is not None
        moved += any(isinstance(action, Fetch) for action in result.plan)
        assert result.time_ns == simulate(problem, best).time_ns
        assert (result.status, result.bound_ns) == (Status.OPTIMAL, result.time_ns)
    assert moved > 30


def test_no_sequence_of_actions_is_faster() -> None:
    """The reference assumes nothing about good plans: it searches over single actions, on the clock of the replay."""
    chains = [(poet_chain(layers), 3 * free_bytes) for layers in (1, 2) for free_bytes in (2, 3, 4)]
    for problem, budget_bytes in (*constrained_linked_steps(30, 4, 4), *chains):
        result = solve(problem, budget_bytes, solver=Checkmate(swap_tries=50))
        assert result.time_ns == smallest_time(
            problem, budget_bytes, 2**63 if result.time_ns is None else result.time_ns
        )


def smallest_time(problem: Problem, budget_bytes: int, limit_ns: int) -> int | None:
    """Dijkstra's search over all states: ops computed, values on the device and on the host, and the remaining time of
    copies in progress. None if no sequence takes `limit_ns` or less."""
    ops, size, link = problem.ops, [v.bytes for v in problem.values], problem.link
    assert link is not None
    computed = frozenset(v for op in ops for v in op.outputs)
    free_bytes = budget_bytes - problem.constant_bytes - problem.reserve_bytes
    out_ns = [copy_ns(s, link.to_host_bytes_per_s, link.latency_ns) for s in size]
    back_ns = [copy_ns(s, link.to_device_bytes_per_s, link.latency_ns) for s in size]
    forward_results = computed.intersection(problem.results).intersection(
        v for op in problem.forward_ops for v in ops[op].outputs
    )
    boundary = len(problem.forward_ops)
    start = (0, frozenset[int](), frozenset[int](), frozenset[tuple[str, int, int]]())
    best_ns, heap, number = {start: 0}, [(0, 0, start)], 0
    while heap:
        now, _, state = heapq.heappop(heap)
        if now > best_ns[state]:
            continue
        first, resident, host, copies = state
        arriving = {v for kind, v, _ in copies if kind == "back"}
        if first == len(ops) and computed.intersection(problem.results) <= resident - arriving:
            return now
        resident_bytes = sum(size[v] for v in resident)
        pinned = forward_results if first >= boundary and boundary else frozenset[int]()
        remaining_ns = {(kind, v): ns for kind, v, ns in copies}
        steps = []
        for op in range(min(first + 1, len(ops))):
            inputs, outputs = computed.intersection(ops[op].inputs), frozenset(ops[op].outputs)
            new_bytes = sum(size[v] for v in outputs) + ops[op].workspace_bytes
            recomputation = op < first
            if (
                (recomputation and not ops[op].recomputable)
                or not inputs <= resident
                or resident_bytes + new_bytes > free_bytes
            ):
                continue
            next_resident = resident | outputs
            if not recomputation and first + 1 == boundary and not forward_results <= next_resident:
                continue
            inputs_ns = max((remaining_ns.get(("back", v), 0) for v in inputs), default=0)
            steps.append((inputs_ns + ops[op].time_ns, first + (not recomputation), next_resident, host, copies))
        for v in resident - pinned:
            wait_ns = max(remaining_ns.get(("out", v), 0), remaining_ns.get(("back", v), 0))
            steps.append((wait_ns, first, resident - {v}, host, copies))
        for v in resident - host:
            if link.host_bytes is None or sum(size[u] for u in host) + size[v] <= link.host_bytes:
                queue = max([ns for (kind, _), ns in remaining_ns.items() if kind == "out"], default=0)
                begin = max(queue, remaining_ns.get(("back", v), 0))
                steps.append((0, first, resident, host | {v}, copies | {("out", v, begin + out_ns[v])}))
        for v in host - resident:
            if resident_bytes + size[v] <= free_bytes:
                queue = max([ns for (kind, _), ns in remaining_ns.items() if kind == "back"], default=0)
                steps.append((0, first, resident | {v}, host, copies | {("back", v, queue + back_ns[v])}))
        if copies:  # the end of the step waits for results that are being fetched
            steps.append((min(ns for _, _, ns in copies), first, resident, host, copies))
        for elapsed, next_first, next_on_device, next_host, next_copies in steps:
            unfinished = frozenset((kind, v, ns - elapsed) for kind, v, ns in next_copies if ns > elapsed)
            next_state = (next_first, next_on_device, next_host, unfinished)
            if now + elapsed < best_ns.get(next_state, limit_ns + 1):
                best_ns[next_state] = now + elapsed
                number += 1
                heapq.heappush(heap, (now + elapsed, number, next_state))
    return None


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_moving_never_loses_to_recomputing_alone(seed: int) -> None:
    problem, budget_bytes, _ = linked_step(seed, 12)
    alone = solve(problem, budget_bytes, solver=Checkmate(swap=False))
    joint = solve(problem, budget_bytes, solver=Checkmate(swap_tries=50))
    if alone.time_ns is not None:
        assert joint.time_ns is not None
        assert joint.time_ns <= alone.time_ns


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_overlap_is_never_slower_than_additive_copies(seed: int) -> None:
    """The program with overlap is never slower than the one that adds up copy times, up to the gap and the price."""
    problem, budget_bytes, _ = linked_step(seed, 6)
    free_bytes = budget_bytes - problem.constant_bytes - problem.reserve_bytes
    at = range(len(problem.ops))
    overlapped, additive = (
        solve_offload_program(problem, free_bytes, at, "highs", swap_time=kind, seconds=None)
        for kind in ("overlapped", "additive")
    )
    assert (overlapped is None) is (additive is None)
    if overlapped is not None and additive is not None:
        assert overlapped.time_ns <= additive.time_ns * 1.01 + 1


@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_moments_include_the_op_of_most_memory_and_the_last(seed: int, count: int) -> None:
    problem = training_graph(12, seed, link=True)
    used_bytes = StepProfile.of(problem, range(len(problem.ops))).used_bytes.tolist()
    at = choose_moments(problem, used_bytes, count)
    assert at == sorted(set(at))
    assert at[-1] == len(problem.ops) - 1
    assert len(at) <= count + 3
    assert max(used_bytes) in [used_bytes[op] for op in at]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_steps_of_the_search_never_lose(seed: int) -> None:
    """A start without offloading is repaired or dropped; later plans are never slower and always valid."""
    problem, budget_bytes, _ = linked_step(seed, 10)
    search = OffloadLocalSearch(problem, budget_bytes, Stopwatch(Limits(None)), seed)
    plan = search.start(range(len(problem.ops)), ())
    if plan is None:
        return
    times = [simulate(problem, plan).time_ns]
    for _ in range(8):
        search.improve(20)
        assert search.best is not None
        assert validate(problem, search.best.plan, budget_bytes) == []
        times.append(simulate(problem, search.best.plan).time_ns)
    assert times == sorted(times, reverse=True)


def test_a_gpt_at_40_percent() -> None:
    """Recomputing alone takes 15.7 % (proven optimal elsewhere), offloading alone 166 %, and both together at most 12
    %."""
    problem = replace(corpus_problem("gpt"), link=Link(25 * 10**9, 25 * 10**9))
    unmodified = baseline(problem)
    result = solve(problem, int(0.4 * unmodified.peak_bytes), solver=Checkmate(), limits=Limits(20))
    assert result.plan is not None
    assert any(isinstance(action, Fetch) for action in result.plan)
    assert result.time_ns is not None
    assert 100 * (result.time_ns / unmodified.time_ns - 1) <= 12


def test_local_search_finds_a_plan_where_no_program_finds_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem is large and the time short: local search continues from plans that need no program."""
    problem = replace(corpus_problem("gpt"), link=Link(25 * 10**9, 25 * 10**9))
    budget_bytes = int(0.4 * baseline(problem).peak_bytes)
    monkeypatch.setattr("remat_solvers.recompute.checkmate.offload_search.solve_offload_program", lambda *_, **__: None)
    times = []
    for tries in (0, 1, 60):
        plans: list[Plan] = []
        search_offload_plans(
            problem,
            budget_bytes,
            backend="highs",
            swap_time="overlapped",
            tries=tries,
            watch=Stopwatch(Limits(None)),
            seed=0,
            offer=lambda plan, _, plans=plans: plans.append(plan),
        )
        times.append([simulate(problem, plan).time_ns for plan in plans])
    assert times[0] == []  # as for `additive`, whose plan is that of the program
    assert times[1][0] == times[2][0] > times[2][-1]


@pytest.mark.parametrize("seed", [*range(12), 16, 40, 128])
def test_a_plan_exists_wherever_every_op_fits(seed: int) -> None:
    """The host has room for all values. In the last three problems, forward results have to be offloaded."""
    problem = replace(training_graph(1 + seed % 12, seed), link=Link(10**9, 10**9))
    assert solve(problem, lower_bound_bytes(problem), solver=Checkmate(swap_tries=20)).plan is not None


def test_outcomes_without_a_link_and_bad_options() -> None:
    result = solve(chain(9), 8, solver=Checkmate(swap=True))
    assert (result.status, "link" in result.reason) == (Status.NOT_APPLICABLE, True)
    with pytest.raises(InputError, match="swap_time"):
        Checkmate(swap_time="exact")  # type: ignore[arg-type]
