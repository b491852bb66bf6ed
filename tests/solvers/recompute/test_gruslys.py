"""Tests of Gruslys et al. (2016): the dynamic programs' values, their laws, and plans of an unrolled LSTM."""

from __future__ import annotations

import heapq
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain
from remat_solvers.recompute.gruslys import (
    Gruslys,
    Strategy,
    cheapest_schedule,
    forward_steps,
    reference_steps,
    slots_within,
    steps_table,
)
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.chains.binomial import repetitions
from remat_solvers.toolkit.chains.chain import chain_view
from remat_solvers.toolkit.chains.schedule import forward_steps_of
from tests.solvers.makers import corpus_problem

STRATEGIES = st.sampled_from(["hidden", "internal", "mixed"])

# The values come from exhaustive search over machine states for small t, and from the recurrence beyond.
GOLDENS: tuple[tuple[Strategy, int, dict[tuple[int, int], int]], ...] = (
    ("hidden", 1, {(10, 1): 55, (10, 2): 30, (10, 3): 25, (10, 5): 23, (10, 10): 19, (20, 4): 59, (100, 10): 322}),
    ("hidden", 1, {(1000, 50): 2948, (1000, 100): 2898}),
    ("internal", 1, {(10, 1): 55, (10, 2): 24, (10, 3): 18, (10, 5): 15, (10, 10): 10, (20, 4): 42, (100, 10): 225}),
    ("internal", 1, {(1000, 50): 1950}),
    ("mixed", 2, {(10, 3): 24, (20, 6): 45}),
    ("mixed", 5, {(50, 10): 133}),
)


@pytest.mark.parametrize(
    ("strategy", "size", "length", "slots", "steps"),
    [(s, a, t, m, c) for s, a, values in GOLDENS for (t, m), c in values.items()],
)
def test_known_values_and_their_schedules(strategy: Strategy, size: int, length: int, slots: int, steps: int) -> None:
    assert forward_steps(length, slots, strategy, size) == steps
    table = steps_table(length, slots, strategy, size)
    assert forward_steps_of(cheapest_schedule(table, slots, strategy, size)) == steps


@pytest.mark.parametrize("strategy", ["hidden", "internal", "mixed"])
@pytest.mark.parametrize("length", range(1, 7))
def test_tables_without_irrelevant_sizes_have_the_same_values(strategy: Strategy, length: int) -> None:
    """The values equal those of the whole table, for every size near those beyond which sizes do not matter."""
    for size in range(1, 2 * length + 3):
        table = reference_steps(length, 2 * length * size + 2, strategy, size)
        for slots in range(1, table.shape[1]):
            assert forward_steps(length, slots, strategy, size) == table[length, slots]


def test_sizes_beyond_all_memory() -> None:
    assert forward_steps(5, 10**9, "mixed", 10**9) == forward_steps(5, 7, "mixed", 7)
    assert forward_steps(5, 10**30, "mixed", 10**12) == forward_steps(5, 10**30, "internal") == 5
    assert forward_steps(5, 10**30, "hidden", 10**30) == 9


def test_hidden_states_cost_as_in_the_binomial_closed_form() -> None:
    table = steps_table(200, 20, "hidden")
    for t in range(1, 201):
        for m in range(1, 21):
            r = repetitions(t, m)
            assert table[t, m] == t + r * t - comb(m + r, m + 1)


Machine = tuple[frozenset[tuple[str, int]], int | None, int]  # stored states, the running one, steps left to reverse


def smallest_steps(length: int, slots: int, strategy: Strategy, internal_size: int, *, persistent: bool) -> int:
    """The smallest number of forward steps, by a shortest path over all states of a machine with `slots` of memory.

    The machine holds stored states, ("hidden", i) before step i or ("internal", i) of step i with the hidden one after
    it, and perhaps a running state, in a slot of its own. A step that is computed for its backward has its internal
    state in the running slot. Stored states may be dropped at any time; if `persistent`, only once their step is
    reversed. The search uses only the definition of the machine."""
    size = {"hidden": 1, "internal": internal_size if strategy == "mixed" else 1}
    start: Machine = (frozenset(), None, length)
    cost = {start: 0}
    queue: list[tuple[int, int, Machine]] = [(0, 0, start)]
    while True:
        steps, _, (stored, position, remaining) = heapq.heappop(queue)
        if remaining == 0:
            return steps
        if steps > cost[stored, position, remaining]:
            continue
        used = sum(size[kind] for kind, _ in stored)
        dropped = [item for item in stored if item[1] >= remaining or not persistent]
        moves: list[tuple[int, Machine]] = [(0, (stored - {item}, position, remaining)) for item in dropped]
        if position is None:
            available = {0, *(i + (kind == "internal") for kind, i in stored)}
            moves += [(0, (stored, i, remaining)) for i in available if i < remaining and used + 1 <= slots]
            if ("internal", remaining - 1) in stored:
                moves.append((0, (stored - {("internal", remaining - 1)}, None, remaining - 1)))
        else:
            moves.append((0, (stored, None, remaining)))
            moves.append(
                (1, (stored, position + 1, remaining) if position + 1 < remaining else (stored, None, remaining - 1))
            )
            if strategy != "internal" and position and used + 2 <= slots:
                moves.append((0, (stored | {("hidden", position)}, position, remaining)))
            if strategy != "hidden" and used + size["internal"] <= slots:
                moves.append((1, (stored | {("internal", position)}, None, remaining)))
        for price, next_state in moves:
            if steps + price < cost.get(next_state, steps + price + 1):
                cost[next_state] = steps + price
                heapq.heappush(queue, (steps + price, len(cost), next_state))


@pytest.mark.parametrize(
    ("strategy", "size", "persistent"),
    [
        ("hidden", 1, False),
        ("internal", 1, False),
        ("mixed", 1, False),
        ("mixed", 2, False),
        ("mixed", 3, True),
        ("mixed", 4, True),
    ],
)
def test_no_schedule_of_the_machine_takes_fewer_steps(strategy: Strategy, size: int, persistent: bool) -> None:
    table = steps_table(7, 5, strategy, size)
    searched = [[smallest_steps(t, m, strategy, size, persistent=persistent) for m in range(1, 6)] for t in range(1, 8)]
    assert table[1:, 1:].tolist() == searched


def test_where_internal_states_are_large_dropping_a_hidden_one_early_saves_a_step() -> None:
    """Here the recurrence is the minimum over persistent schedules only. There are 7 steps, 4 slots, and 3 slots per
    internal state: h2, h4 and h5 are stored during the forward, which reverses the last three steps in 7 + 1 + 1. Then
    h2 gives its slot to the internal state of the third step, from which the fourth starts: 1 + 1, and 2 for the first
    two. The sum is 13."""
    assert forward_steps(7, 4, "mixed", 3) == smallest_steps(7, 4, "mixed", 3, persistent=True) == 14
    assert smallest_steps(7, 4, "mixed", 3, persistent=False) == 13


def test_the_bound_and_the_claim_of_the_paper() -> None:
    """C(t, m) <= m t^(1 + 1/m). For 1000 steps with 50 slots, the paper claims 95 % less memory and at most a third
    more time: with a step of one forward and two backward units, that is 950 forward units of 3000. Storing hidden
    states takes 65 %."""
    for strategy in ("hidden", "internal"):
        table = steps_table(120, 12, strategy)
        for t in range(1, 121):
            assert all(table[t, m] <= m * t ** (1 + 1 / m) + 1e-6 for m in range(2, 13))
    assert (forward_steps(1000, 50, "internal") - 1000) / 3000 == pytest.approx(0.317, abs=1e-3)
    assert (forward_steps(1000, 50, "hidden") - 1000) / 3000 == pytest.approx(0.649, abs=1e-3)


@given(strategy=STRATEGIES, length=st.integers(0, 18), slots=st.integers(1, 9), size=st.integers(1, 11))
@settings(max_examples=60, deadline=None)
def test_the_array_program_agrees_with_the_recurrence(strategy: Strategy, length: int, slots: int, size: int) -> None:
    assert np.array_equal(steps_table(length, slots, strategy, size), reference_steps(length, slots, strategy, size))


@given(strategy=STRATEGIES, length=st.integers(1, 40), slots=st.integers(1, 12), size=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_a_schedule_takes_the_steps_of_its_table(strategy: Strategy, length: int, slots: int, size: int) -> None:
    table = steps_table(length, slots, strategy, size)
    assert forward_steps_of(cheapest_schedule(table, slots, strategy, size)) == table[length, slots]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_mixed_lies_between_internal_and_hidden(size: int) -> None:
    hidden, internal = steps_table(40, 12, "hidden"), steps_table(40, 12, "internal")
    mixed = steps_table(40, 12, "mixed", size)
    mixed_steps = mixed[:, 1:]
    assert np.all(internal[:, 1:] <= mixed_steps)
    assert np.all(mixed_steps <= hidden[:, 1:])
    assert size != 1 or np.array_equal(mixed_steps, internal[:, 1:])
    assert size != 100 or np.array_equal(mixed_steps, hidden[:, 1:])


@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_with_a_slot_per_step(length: int) -> None:
    for slots in (length, length + 1, 10 * length):
        assert forward_steps(length, slots, "internal") == length
        assert forward_steps(length, slots, "hidden") == 2 * length - 1
    assert forward_steps(length, 1) == length * (length + 1) // 2
    assert forward_steps(0, 1) == 0


@pytest.mark.parametrize("arguments", [(-1, 3), (5, 0), (5, True), (5, 3, "other"), (5, 3, "mixed", 0), (2**14 + 1, 3)])
def test_arguments_are_checked(arguments: tuple[object, ...]) -> None:
    with pytest.raises(InputError):
        forward_steps(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"strategy": "other"}, {"slots": 0}, {"steps": True}, {"steps": 2**15}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Gruslys(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [3, 5, 8, 20])
@pytest.mark.parametrize("strategy", ["hidden", "internal"])
def test_on_an_lstm_the_extra_forward_work_is_that_of_the_program(strategy: Strategy, slots: int) -> None:
    """The program counts whole steps. A step that is computed only for its internal state may omit its last ops, and
    the steps of zeros, head and loss are cheaper than the others."""
    problem = corpus_problem("lstm")
    length = len(chain_view(problem, cuts="renewed", max_stages=1024).stages)
    outcome = Gruslys(strategy, slots).solve(problem, 2**40, limits=Limits(None), on_progress=None, seed=0)
    assert outcome.plan is not None
    forward_ns = sum(problem.ops[op].time_ns for op in problem.forward_ops)
    extra_ns = simulate(problem, outcome.plan).time_ns - baseline(problem).time_ns
    program = forward_steps(length, slots, strategy) / length - 1
    assert 0.85 * program <= extra_ns / forward_ns <= 1.02 * program


def test_slots_beyond_the_budget_are_useless() -> None:
    """Every state of a unit chain adds 1 byte: 11 bytes above the constants are at most 11 slots; 12 need more."""
    problem = chain(40)
    view = chain_view(problem, cuts="renewed", max_stages=1024)
    assert slots_within(view, problem.constant_bytes + 11) == 11
    outcome = Gruslys("hidden", 12).solve(problem, 100, limits=Limits(None), on_progress=None, seed=0)
    assert outcome.plan is not None
    assert simulate(problem, outcome.plan).peak_bytes > 11


@pytest.mark.parametrize("slots", [1, 2, 4, 9])
def test_on_a_unit_chain_the_peak_is_the_number_of_slots_and_a_gradient(slots: int) -> None:
    """The gradient is resident beside the slots. The running state is one slot; the last saved set is the same."""
    problem = chain(40)
    outcome = Gruslys("hidden", slots).solve(problem, 100, limits=Limits(None), on_progress=None, seed=0)
    assert outcome.plan is not None
    assert simulate(problem, outcome.plan).peak_bytes <= slots + 2
