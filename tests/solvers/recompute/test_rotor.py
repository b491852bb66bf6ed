"""Tests of rotor: its dynamic program against known values, a search over states, Gruslys, and the replay."""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.errors import InputError
from remat_solvers.generate import chain, training_graph
from remat_solvers.generate import random_chain as uneven_chain
from remat_solvers.recompute.gruslys import steps_table
from remat_solvers.recompute.rotor import Rotor
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.chain import chain_view
from remat_solvers.toolkit.chains.costs import chain_costs
from remat_solvers.toolkit.chains.persistent import (
    DiscretisedChain,
    cost_table,
    discretised,
    disjoint_states,
    persistent_schedule,
    reference_cost_table,
)
from remat_solvers.toolkit.chains.schedule import keep_nothing_steps, sequence_of
from tests.solvers.makers import corpus_problem

NEVER = 10**6


def paper_chain(
    states: list[int],
    saved: list[int],
    forward: list[int],
    backward: list[int],
    slots: int,
    *,
    leaves_only: bool = False,
) -> DiscretisedChain:
    """A chain as in the paper, without peaks. states: x_0..x_L; saved: x̄_1..x̄_L; a gradient is as large as x."""
    count = len(saved)
    x, bar = np.array(states), np.array(saved)
    running = np.concatenate([[0], np.cumsum(forward)]).astype(float)
    advance = running[None, :] - running[:-1, None]
    both = np.array(forward, dtype=float) + np.array(backward)
    need = np.zeros((count, count, count + 1), dtype=int)
    for j in range(count):
        for i in range(j):
            for k in range(i + 1, j + 1):
                middle = max((x[q] + x[q + 1] for q in range(i + 1, k)), default=0)
                need[j, i, k] = x[j + 1] + max(x[i + 1], middle)
    save = np.broadcast_to(x[1:][None, :] + bar[:, None], (count, count))
    return DiscretisedChain(
        slots=slots,
        advance=advance,
        last_advance=advance,
        leaf_time=np.broadcast_to(both[:, None], (1, count, count)),
        save_time=np.broadcast_to(both[:, None], (1, count, count)),
        state=np.broadcast_to(x[None, :], (count, count + 1)),
        saved=bar[None],
        leaf_need=(x[1:] + bar)[None],
        save_need=np.full((1, count, count), NEVER) if leaves_only else save[None],
        sweep_need=need,
        entry=np.tile(np.arange(count), (count, 1)),
    )


# The costs of 10 stages with f = b = x = 1, by memory including x_0.
ONE = {3: None, 4: 64, 5: 36, 6: 29, 7: 27, 8: 25, 9: 24, 10: 23, 11: 22, 12: 20}
TWO = {5: 65, 6: 40, 7: 34, 8: 30, 9: 28, 10: 27, 11: 27, 12: 26, 13: 25, 14: 25, 15: 24, 16: 24, 17: 23, 18: 23}
TWO |= {19: 22, 20: 22, 21: 21, 22: 20}


@pytest.mark.parametrize(("bar", "known"), [(1, ONE), (2, TWO)])
def test_known_values(bar: int, known: dict[int, int | None]) -> None:
    whole = cost_table(paper_chain([1] * 11, [bar] * 10, [1] * 10, [1] * 10, 25))[0, -1]
    assert {memory: None if np.isinf(whole[memory - 1]) else whole[memory - 1] for memory in known} == known


def test_saving_at_leaves_only_is_storing_hidden_states() -> None:
    for length in (1, 2, 5, 12, 30):
        uniform = paper_chain([1] * (length + 1), [1] * length, [1] * length, [1] * length, 14, leaves_only=True)
        whole = cost_table(uniform)[0, -1]
        hidden = steps_table(length, 12, "hidden")[length]
        assert [whole[m] for m in range(3, 15)] == [hidden[m - 2] + length for m in range(3, 15)]


def random_chain(length: int, seed: int) -> tuple[list[int], list[int], list[int], list[int]]:
    rng = random.Random(seed)
    states = [rng.randint(1, 3) for _ in range(length + 1)]
    saved = [states[k + 1] + rng.randint(0, 3) for k in range(length)]
    return states, saved, [rng.randint(0, 4) for _ in saved], [rng.randint(0, 4) for _ in saved]


@given(length=st.integers(1, 9), seed=st.integers(0, 10**6), slots=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_array_program_agrees_with_the_recurrence(length: int, seed: int, slots: int) -> None:
    for sizes in (paper_chain(*random_chain(length, seed), slots), chain_of_a_graph(length, seed, slots)):
        costs = cost_table(sizes)
        assert np.array_equal(costs, reference_cost_table(sizes))
        assert np.all(np.diff(np.nan_to_num(costs, posinf=1e9), axis=2) <= 0)


def chain_of_a_graph(n: int, seed: int, slots: int) -> DiscretisedChain:
    return discretised(chain_costs(chain_view(training_graph(n, seed))), 300, slots)


def smallest_cost(states: list[int], saved: list[int], forward: list[int], backward: list[int], memory: int) -> float:
    """The cost of a shortest path over machine states: stored items, the running state, and the backward steps done.

    An item stays stored until its backward. `("x", i)` is the state before stage i; `("bar", i)` is what the backward
    of stage i needs, with the state after it. A stage saves its internals only where the state before it is stored."""
    count = len(saved)
    start = (frozenset([("x", 0)]), 0, count)
    queue: list[tuple[int, int, tuple[frozenset[tuple[str, int]], int, int]]] = [(0, 0, start)]
    seen = set()
    tie = 0

    def stored_bytes(stored: frozenset[tuple[str, int]]) -> int:
        return sum(saved[i] if kind == "bar" else states[i] if i else 0 for kind, i in stored)

    while queue:
        cost, _, node = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        stored, position, remaining = node
        if remaining == 0:
            return cost
        moves: list[tuple[int, tuple[frozenset[tuple[str, int]], int, int]]] = []
        stored_states = {i for kind, i in stored if kind == "x"} | {i + 1 for kind, i in stored if kind == "bar"}
        gradient = states[remaining]
        moves += [(0, (stored, i, remaining)) for i in stored_states if i < remaining]
        if position < remaining:
            running = 0 if position in stored_states else states[position]
            if position not in stored_states and stored_bytes(stored) + states[position] <= memory:
                moves.append((0, (stored | {("x", position)}, position, remaining)))
            if position + 1 < remaining and stored_bytes(stored) + running + states[position + 1] + gradient <= memory:
                moves.append((forward[position], (stored, position + 1, remaining)))
            if (
                position in stored_states
                and stored_bytes(stored) + saved[position] + gradient <= memory
                and ("bar", position) not in stored
            ):
                moves.append((forward[position], (stored | {("bar", position)}, position + 1, remaining)))
        last = remaining - 1
        if ("bar", last) in stored and last in stored_states and stored_bytes(stored) + gradient <= memory:
            moves.append((backward[last], (stored - {("bar", last), ("x", last)} | {("x", 0)}, 0, last)))
        for price, after in moves:
            tie += 1
            heapq.heappush(queue, (cost + price, tie, after))
    return np.inf


@given(length=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_memory_persistent_schedule_is_cheaper(length: int, seed: int) -> None:
    sizes = random_chain(length, seed)
    whole = cost_table(paper_chain(*sizes, 24))[0, -1]
    for memory in range(1, 25, 2):
        assert whole[memory] == smallest_cost(*sizes, memory)


def test_with_enough_memory_every_stage_is_computed_once() -> None:
    states, saved, forward, backward = random_chain(8, 1)
    assert cost_table(paper_chain(states, saved, forward, backward, 100))[0, -1, 100] == sum(forward) + sum(backward)


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_replay_needs_at_most_the_time_and_memory_of_the_table(n: int, seed: int) -> None:
    """At full resolution a slot is a byte. Sweeps over several stages may need less time than each stage alone."""
    problem = training_graph(n, seed)
    view = chain_view(problem)
    base = problem.static_bytes
    memory_bytes = 1200
    slots = discretised(chain_costs(view), memory_bytes, memory_bytes, disjoint_states(view))
    costs = cost_table(slots)
    whole = costs[0, -1]
    forward_ns = sum(problem.ops[op].time_ns for op in problem.forward_ops)
    for memory in [m for m in range(memory_bytes + 1) if np.isfinite(whole[m]) and (not m or whole[m] < whole[m - 1])]:
        line = simulate(
            problem, plan_from_sequence(problem, sequence_of(view, persistent_schedule(slots, costs, memory)))
        )
        assert line.time_ns <= whole[memory] + forward_ns
        assert line.peak_bytes - base <= memory


def test_on_a_chain_the_replay_has_the_time_of_the_table() -> None:
    problem = chain(12, size_bytes=3, forward_ns=5, backward_ns=7)
    view = chain_view(problem)
    slots = discretised(chain_costs(view), 60, 60)
    costs = cost_table(slots)
    memories = [m for m in range(61) if np.isfinite(costs[0, -1, m])]
    assert memories
    for memory in memories:
        line = simulate(
            problem, plan_from_sequence(problem, sequence_of(view, persistent_schedule(slots, costs, memory)))
        )
        assert line.time_ns == costs[0, -1, memory] + 12 * 5
        assert line.peak_bytes <= memory


def test_never_slower_than_chen_on_unit_chains_and_faster_with_more_memory() -> None:
    for length in (16, 50):
        problem = chain(length)
        times = []
        for budget_bytes in range(4, length, 5):
            best, flat = (solve(problem, budget_bytes, solver=name) for name in ("rotor", "chen"))
            assert best.time_ns is not None
            assert flat.time_ns is None or best.time_ns <= flat.time_ns
            times.append(best.time_ns)
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", ["unet", "r50", "gpt"])
def test_the_memory_of_the_table_is_near_that_of_the_replay(name: str) -> None:
    """The replay uses at least nine tenths of the memory that the table assigns to 40 stages in 500 slots."""
    problem = corpus_problem(name)
    view = chain_view(problem, cuts="renewed", max_stages=40)
    store_all_bytes = baseline(problem).peak_bytes
    slots = discretised(chain_costs(view), store_all_bytes, 500, disjoint_states(view))
    costs = cost_table(slots)
    whole = costs[0, -1]
    memories = [m for m in range(501) if np.isfinite(whole[m]) and whole[m] < whole[m - 1]]
    assert len(memories) > 100
    for memory in memories:
        line = simulate(
            problem, plan_from_sequence(problem, sequence_of(view, persistent_schedule(slots, costs, memory)))
        )
        share = (line.peak_bytes - problem.constant_bytes - problem.reserve_bytes) / (
            memory * -(-store_all_bytes // 500)
        )
        assert 0.9 <= share <= 1


def test_on_uneven_chains_a_plan_is_found_where_simpler_schedules_fit() -> None:
    """The plan is as fast as the schedule that keeps nothing, but sometimes slower than those for equal steps."""
    found = 0
    for seed in range(40):
        problem = uneven_chain(2 + seed % 14, seed)
        bound, store_all_bytes = peak_bound_bytes(problem), baseline(problem).peak_bytes
        for budget_bytes in {bound, bound + (store_all_bytes - bound) // 8, bound + (store_all_bytes - bound) // 3}:
            view = chain_view(problem)
            steps = sequence_of(view, keep_nothing_steps(0, len(view.stages)))
            frugal = simulate(problem, plan_from_sequence(problem, steps))
            others = [solve(problem, budget_bytes, solver=name).time_ns for name in ("gruslys", "revolve")]
            limits = [frugal.time_ns] if frugal.peak_bytes <= budget_bytes else []
            best = solve(problem, budget_bytes, solver="rotor")
            if limits or any(others):
                found += 1
                assert best.time_ns is not None
                assert best.time_ns <= min(limits, default=best.time_ns)
    assert found > 60


def test_the_reason_says_that_nothing_is_kept() -> None:
    """The budget is exactly the peak of the plan that keeps nothing."""
    problem = training_graph(6, 236)
    view = chain_view(problem, cuts="every")
    steps = keep_nothing_steps(0, len(view.stages))
    frugal = simulate(problem, plan_from_sequence(problem, sequence_of(view, steps)))
    result = solve(problem, frugal.peak_bytes, solver="rotor")
    assert (result.time_ns, result.peak_bytes) == (frugal.time_ns, frugal.peak_bytes)
    assert "nothing is kept" in result.reason
    assert "nothing is kept" not in solve(problem, 2 * frugal.peak_bytes, solver="rotor").reason


@pytest.mark.parametrize("options", [{"slots": 0}, {"stages": True}, {"cuts": "all"}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Rotor(**options)  # type: ignore[arg-type]
