"""Tests of POFO: its program against the recurrence and against rotor, its time against the replay."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, random_chain, training_graph
from remat_solvers.plan import Offload, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.registry import create
from remat_solvers.result import Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.solving import solve
from remat_solvers.swap.pofo.program import ChainProgram, solve_chain
from remat_solvers.swap.pofo.solver import moved_values, steps_of
from remat_solvers.toolkit.chains.chain import Chain, chain_view
from remat_solvers.toolkit.chains.schedule import sequence_of
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import schedule_copies
from tests.solvers.makers import corpus_problem

SEEDS = st.integers(0, 10**6)
SECOND = 10**9
NO_LINK, ANY_LINK = Link(1, 1), Link(2**62, 2**62)


def program_of(problem: Problem, max_bytes: int) -> ChainProgram:
    """The program with slots of one byte each."""
    return ChainProgram.of(chain_view(problem, cuts="every"), max_bytes, max_bytes)


def time_of(program: ChainProgram, link: Link, memory_bytes: int) -> float:
    """The time of the solution with cells of one byte each; inf without one."""
    found = solve_chain(program, link, memory_bytes, memory_bytes)
    return inf if found is None else found.time_ns


def reference(program: ChainProgram, link: Link, memory_bytes: int) -> float:
    """The recurrence, evaluated by enumeration of all choices."""
    costs, sizes, count = program.costs, program.sizes, len(program.chain.stages)
    out_rate, back_rate = link.to_host_bytes_per_s / 1e9, link.to_device_bytes_per_s / 1e9
    forward = [sum(program.chain.problem.ops[op].time_ns for op in stage.ops) for stage in program.chain.stages]

    def rotor(i: int, j: int, memory: float) -> float:
        return float(program.table[i, j, int(memory // program.unit)]) if memory >= 0 else inf

    def suffix_time(i: int, kept: float, leaving: float, back: float, bar: int) -> float:
        if max(kept + leaving, kept + back) > memory_bytes:
            return inf
        free_bytes = memory_bytes - kept - int(sizes.into[bar, i])
        exposed = leaving / out_rate + back / back_rate
        times = [rotor(i, count - 1, free_bytes) + exposed]
        if max(leaving, back) > 0:
            times.append(max(rotor(i, count - 1, free_bytes - max(leaving, back)), exposed))

        def onward(n: int, out: float, pre: float, time_ns: float, next_bar: int) -> None:
            group = int(sizes.group[i, n]) + bar * int(sizes.saved[i])
            moved = suffix_time(n, kept, max(0, leaving + group - out), max(0, back - pre) + group, next_bar)
            stays = suffix_time(n, kept + group, max(0, leaving - out), max(0, back - pre), next_bar)
            times.append(time_ns + min(moved, stays))

        peak_f, peak_b = int(costs.save_peak[0, i] + costs.first_background[i]), int(costs.back_peak[0, i])
        if max(peak_f, peak_b) <= free_bytes:
            idle_f, idle_b = max(0, peak_f - free_bytes + leaving), max(0, peak_b - free_bytes + back)
            out, pre = out_rate * forward[i] + idle_f, back_rate * int(costs.backward_ns[0, i]) + idle_b
            time_ns = int(costs.backward_ns[0, i]) + idle_f / out_rate + idle_b / back_rate
            if i == count - 1:
                times.append(time_ns + max(0, leaving - out) / out_rate + max(0, back - pre) / back_rate)
            else:
                onward(i + 1, out, pre, time_ns, 1)
        for n in range(i + 1, count):
            if costs.first_sweep[i, n] > free_bytes:
                break
            beside = [int(costs.first_sweep[i, k]) - out_rate * sum(forward[i : k - 1]) for k in range(i + 1, n + 1)]
            idle_f = max(0, max(beside) - free_bytes + leaving)
            out = out_rate * sum(forward[i:n]) + idle_f
            if (cost := rotor(i, n - 1, free_bytes)) < inf:
                onward(n, out, back, idle_f / out_rate + cost + back / back_rate, 0)
            if (cost := rotor(i, n - 1, free_bytes - back)) < inf:
                onward(n, out, back_rate * cost, idle_f / out_rate + cost, 0)
        return min(times)

    return suffix_time(0, 0, 0, 0, 0)


@given(
    n=st.integers(1, 5), seed=SEEDS, share=st.floats(0.2, 1.1), rate=st.sampled_from((10**8, 5 * 10**8, 10**9, 10**10))
)
@settings(max_examples=150)
def test_the_program_is_its_recurrence(n: int, seed: int, share: float, rate: int) -> None:
    problem = random_chain(n, seed)
    memory_bytes = max(1, int(share * baseline(problem).peak_bytes))
    program, link = program_of(problem, memory_bytes), Link(rate, 2 * rate)
    assert time_of(program, link, memory_bytes) == pytest.approx(reference(program, link, memory_bytes))


def timed_chain(n: int, seed: int) -> Problem:
    """A chain in rotor's own terms: states of one size, backward reads the state before its layer."""
    rng = random.Random(seed)
    problem = chain(n, size_bytes=rng.choice((1, 2, 5)))
    ops = [replace(op, time_ns=rng.randint(1, 9), workspace_bytes=rng.choice((0, 0, 1, 4))) for op in problem.ops]
    return replace(problem, ops=tuple(ops))


@given(n=st.integers(1, 9), seed=SEEDS, share=st.floats(0.2, 1.1))
@settings(max_examples=200)
def test_without_a_usable_link_it_is_rotor(n: int, seed: int, share: float) -> None:
    """A byte takes a second."""
    problem = timed_chain(n, seed)
    memory_bytes = max(1, int(share * baseline(problem).peak_bytes))
    program = program_of(problem, memory_bytes)
    by_rotor, found = program.table[0, -1, memory_bytes], time_of(program, NO_LINK, memory_bytes)
    assert found == by_rotor or (by_rotor == inf and found >= SECOND)


@given(n=st.integers(1, 9), seed=SEEDS, share=st.floats(0.2, 1.1))
@settings(max_examples=200)
def test_schedules_without_moves_replay_as_the_program_computes(n: int, seed: int, share: float) -> None:
    problem = random_chain(n, seed)
    memory_bytes = max(1, int(share * baseline(problem).peak_bytes))
    program = program_of(problem, memory_bytes)
    found = solve_chain(program, NO_LINK, memory_bytes, memory_bytes)
    if found is None or found.time_ns >= SECOND:
        return
    assert found.time_ns <= program.table[0, -1, memory_bytes]  # rotor needs slightly more for F_all, see rotor.py
    line = simulate(problem, plan_from_sequence(problem, sequence_of(program.chain, steps_of(program, found.choices))))
    assert line.peak_bytes <= memory_bytes
    assert line.time_ns == found.time_ns + sum(problem.ops[op].time_ns for op in problem.forward_ops)


@given(n=st.integers(1, 8), seed=SEEDS)
@settings(max_examples=150)
def test_on_an_infinite_link_nothing_is_recomputed_where_every_stage_fits(n: int, seed: int) -> None:
    problem = random_chain(n, seed)
    program = program_of(problem, 2 * baseline(problem).peak_bytes)
    costs, sizes = program.costs, program.sizes
    alone = costs.save_peak[0] + costs.first_background, costs.back_peak[0]
    needs = max(int((peak + sizes.into[1]).max()) for peak in alone)
    backward = sum(problem.ops[op].time_ns for op in problem.backward_ops)
    assert time_of(program, ANY_LINK, needs) == pytest.approx(backward, abs=1e-3)


@given(n=st.integers(1, 7), seed=SEEDS, share=st.floats(0.2, 1), rate=st.integers(10**7, 10**10))
@settings(max_examples=150)
def test_more_memory_and_a_faster_link_are_never_slower(n: int, seed: int, share: float, rate: int) -> None:
    problem = random_chain(n, seed)
    unmodified = baseline(problem).peak_bytes
    memory_bytes = max(1, int(share * unmodified))
    program = program_of(problem, unmodified)
    memories = [m for m in (memory_bytes, memory_bytes + 1, memory_bytes + 4) if m <= unmodified]
    times = [time_of(program, Link(rate, rate), m) for m in memories]
    assert all(b <= a + 1e-6 for a, b in pairwise(times))
    by_rate = [time_of(program, Link(rate * k, rate * k), memory_bytes) for k in (1, 2, 5)]
    assert all(b <= a + 1e-6 for a, b in pairwise(by_rate))
    assert by_rate[0] <= program.table[0, -1, memory_bytes]


@given(n=st.integers(1, 14), seed=SEEDS)
@settings(max_examples=100)
def test_sizes_by_their_sets(n: int, seed: int) -> None:
    view: Chain = chain_view(training_graph(n, seed), cuts="every")
    sizes = ChainProgram.of(view, 100, 10).sizes
    for i in range(len(view.stages)):
        before = view.stages[i - 1] if i else view.stages[0]
        own = [
            set(view.state(i)),
            set(view.state(i)) | set(before.saved) - set(before.state) if i else set(view.state(i)),
        ]
        for bar in (0, 1):
            assert sizes.into[bar, i] == view.bytes(own[bar])
            for end in range(i + 1, len(view.stages) + 1):
                assert sizes.group[i, end] + bar * sizes.saved[i] == view.bytes(own[bar] - set(view.state(end)))


def uniform(n: int, rate: int = 10**9) -> Problem:
    """Values have 100 bytes, forward ops take 100 ns, backward ops 200: at 1 GB/s a copy takes a forward op's time."""
    return replace(chain(n, size_bytes=100, forward_ns=100, backward_ns=200), link=Link(rate, rate))


@pytest.mark.parametrize("memory_bytes", [600, 900, 1400])
@pytest.mark.parametrize("rate", [10**8, 3 * 10**8, 10**9])
def test_the_program_agrees_with_the_replay(rate: int, memory_bytes: int) -> None:
    """The replay copies whole values instead of fractions, so the two differ by at most a copy in either direction."""
    problem = uniform(24, rate)
    view = chain_view(problem, cuts="every")
    program = ChainProgram.of(view, memory_bytes, memory_bytes // 100)
    found = solve_chain(program, Link(rate, rate), memory_bytes, memory_bytes // 10)
    assert found is not None
    profile = StepProfile.of(problem, sequence_of(view, steps_of(program, found.choices)))
    plan = schedule_copies(profile, moved_values(view, profile.sequence, found.choices), memory_bytes)
    assert isinstance(plan, Plan)
    assert any(isinstance(action, Offload) for action in plan)
    forward_ns = 24 * 100
    assert abs(simulate(problem, plan).time_ns - forward_ns - found.time_ns) <= 2 * copy_ns(100, rate, 0)


def test_where_copies_are_hidden_nothing_is_recomputed() -> None:
    """At 1 GB/s a copy takes as long as a forward op, so 24 stages fit in the memory of a few, without a wait."""
    problem = uniform(24)
    result = solve(problem, 500, solver="pofo")
    assert result.time_ns == result.store_all_time_ns == 24 * 300


def test_moving_and_recomputing_beats_either_alone() -> None:
    """At a third of that rate, rotor recomputes and swap-only waits."""
    problem = uniform(24, rate=3 * 10**8)
    times = {name: solve(problem, 900, solver=name).time_ns for name in ("pofo", "rotor", "swap-only")}
    assert None not in times.values()
    assert times["pofo"] < min(times["rotor"], times["swap-only"])  # type: ignore[type-var]


def test_a_state_shared_by_stages_moves_with_the_last_of_them() -> None:
    """A measured model has a skip connection over stages: plans are valid, and faster than without the link."""
    problem = replace(corpus_problem("unet"), link=Link(25 * 10**9, 25 * 10**9))
    budget_bytes = baseline(problem).peak_bytes // 2
    moved = solve(problem, budget_bytes, solver=create("pofo", stages=20, cells=20, cuts="minima"))
    alone = solve(problem, budget_bytes, solver=create("rotor", stages=20, cuts="minima"))
    assert moved.time_ns is not None
    assert alone.time_ns is not None
    assert moved.time_ns < alone.time_ns


def test_pofo_refuses_invalid_options() -> None:
    assert solve(chain(6), 4, solver="pofo").status is Status.NOT_APPLICABLE
    for options in ({"slots": 0}, {"cells": -1}, {"stages": True}, {"cuts": "all"}):
        with pytest.raises(InputError, match="pofo"):
            create("pofo", **options)
