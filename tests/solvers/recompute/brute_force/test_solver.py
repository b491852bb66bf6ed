"""Tests of exhaustive search against published optima, and as the optimum that no plan beats."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.errors import InputError
from remat_solvers.generate import adversarial, chain, random_plan, training_graph
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.brute_force.solver import BruteForce, OrderOption, best_sequence, smallest_peak_bytes
from remat_solvers.registry import ENTRIES
from remat_solvers.result import Limits, Order, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.validate import validate
from tests.solvers.makers import unit_chain

ORDERS: tuple[OrderOption, ...] = ("given", "free")


# The number of ops of an optimal schedule by budget, from Checkmate's MILP solved to optimality; None: infeasible.
CHECKMATE: dict[int, dict[int, int | None]] = {
    3: {3: None, 4: 6},
    4: {3: None, 4: 9, 5: 8},
    5: {4: 13, 5: 11, 6: 10},
    6: {4: 18, 5: 14, 6: 13, 7: 12},
}


@pytest.mark.parametrize("layers", CHECKMATE)
def test_optima_of_the_checkmate_milp(layers: int) -> None:
    problem = unit_chain(layers)
    found = {budget: best_sequence(problem, budget) for budget in CHECKMATE[layers]}
    assert {b: s if s is None else len(s) for b, s in found.items()} == CHECKMATE[layers]
    assert smallest_peak_bytes(problem) == 4


@pytest.mark.parametrize("n", [2, 3, 6, 8, 10])
def test_three_values_are_enough_for_a_chain_at_n_choose_2_forward_steps(n: int) -> None:
    """With one slot beside an op's two values, every backward starts from the input: n - 2, ..., 1, 0 extra steps."""
    problem = chain(n)
    assert smallest_peak_bytes(problem) == min(n + 1, 3)
    sequence = best_sequence(problem, 3)
    assert sequence is not None
    assert len(sequence) - 2 * n == (n - 1) * (n - 2) // 2


@given(n=st.integers(1, 4), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_no_random_plan_beats_it(n: int, seed: int, share: float) -> None:
    for problem in (training_graph(n, seed), adversarial(seed)):
        if len(problem.ops) > 9:
            continue
        floor, unmodified = peak_bound_bytes(problem), baseline(problem)
        smallest = smallest_peak_bytes(problem)
        assert floor <= smallest <= unmodified.peak_bytes
        assert best_sequence(problem, smallest - 1) is None
        budget_bytes = smallest + int(share * (unmodified.peak_bytes - smallest))
        sequence = best_sequence(problem, budget_bytes)
        assert sequence is not None
        best = simulate(problem, plan_from_sequence(problem, sequence))
        assert unmodified.time_ns <= best.time_ns
        assert best.peak_bytes <= budget_bytes
        free = best_sequence(problem, budget_bytes, order="free")
        assert free is not None
        assert simulate(problem, plan_from_sequence(problem, free)).time_ns <= best.time_ns
        for k in range(20):
            line = simulate(problem, random_plan(problem, seed + k))
            assert line.peak_bytes >= smallest
            assert line.peak_bytes > budget_bytes or line.time_ns >= best.time_ns


METHODS = [e.name for e in ENTRIES if e.name not in ("auto", "brute-force", "store-all")]


@pytest.mark.parametrize("name", METHODS)
@given(n=st.integers(1, 4), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_no_method_beats_it(name: str, n: int, seed: int, share: float) -> None:
    """No bound of a method is above the optimum, and no smallest peak that it reports is below the possible one."""
    problem = training_graph(n, seed)
    if len(problem.ops) > 9:
        return
    unmodified = baseline(problem).peak_bytes
    smallest = smallest_peak_bytes(problem, order="free")
    budget_bytes = max(1, smallest - 1 + int(share * (unmodified - smallest)))
    result = solve(problem, budget_bytes, solver=name)
    assert result.smallest_peak_bytes is not None
    assert result.smallest_peak_bytes >= smallest
    optimum = {order: best_sequence(problem, budget_bytes, order=order) for order in ORDERS}
    if result.plan is not None:
        assert result.time_ns is not None
        assert optimum["free"] is not None
        assert result.time_ns >= sum(problem.ops[op].time_ns for op in optimum["free"])
    bounded = optimum["given" if result.order is Order.GIVEN else "free"]
    if result.bound_ns is not None and bounded is not None:
        assert result.bound_ns <= sum(problem.ops[op].time_ns for op in bounded)


def test_statuses_and_bounds() -> None:
    problem = unit_chain(4)
    result = solve(problem, 4, solver="brute-force")
    assert (result.status, result.time_ns, result.order) == (Status.OPTIMAL, 9, Order.GIVEN)
    given = solve(problem, 3, solver=BruteForce())
    free = solve(problem, 3, solver=BruteForce(order="free"))
    assert (given.status, given.smallest_peak_bytes) == (Status.INFEASIBLE, 5)  # the working set of b3 is the floor
    assert free.status is Status.INFEASIBLE
    result = solve(chain(30), 4, solver="brute-force")
    assert result.status is Status.NOT_APPLICABLE
    assert "60" in result.reason
    with pytest.raises(InputError):
        BruteForce(order="other")  # type: ignore[arg-type]


def test_the_time_limit_is_kept() -> None:
    result = solve(chain(12), 9, solver="brute-force", limits=Limits(seconds=0.05))
    assert (result.status, result.stopped) == (Status.NOT_FOUND, Stopped.TIME)
    assert result.seconds < 2


def test_infeasible_is_proven_beyond_the_general_floor() -> None:
    """Some problems need more than the floor of bounds.py; then exhaustive search proves infeasibility."""
    proven = 0
    for seed in range(400):
        problem = training_graph(3, seed)
        if len(problem.ops) > 8:
            continue
        smallest = smallest_peak_bytes(problem, order="free")
        if smallest - 1 >= max(1, peak_bound_bytes(problem)):
            result = solve(problem, smallest - 1, solver=BruteForce(order="free"))
            assert result.status is Status.INFEASIBLE
            assert result.peak_bound_bytes == smallest
            proven += 1
            given_order = solve(problem, smallest - 1, solver="brute-force")
            assert given_order.status is Status.NOT_FOUND
    assert proven > 3


@pytest.mark.parametrize("order", ["given", "free"])
def test_a_plan_with_computations_before_the_tangents_is_not_excluded(order: OrderOption) -> None:
    """A valid plan recomputes op 0 between the forward and the tangents, where the search has no computations."""
    values = [Value(f"v{i}", size, "gradient" if i > 2 else "activation") for i, size in enumerate((1, 1, 11, 5, 1))]
    ops = (
        Op("r", "forward", (), (0,), 1, workspace_bytes=10, effects=("random",)),
        Op("e", "forward", (), (1,), 100, effects=("random",)),
        Op("c", "forward", (), (2,), 1, effects=("random",)),
        Op("tangents", "backward", (), (3,), 0, recomputable=False),
        Op("b", "backward", (0, 1, 3), (4,), 1),
    )
    problem = Problem("before-the-tangents", ops, tuple(values), (4,))
    by_hand = Plan(
        [Compute(0), Free(0), Compute(1), Compute(2), Free(2), Compute(0), Compute(3), Compute(4), Free(0), Free(1)]
    )
    assert validate(problem, by_hand, 12) == []
    result = solve(problem, 12, solver=BruteForce(order=order))
    assert result.status is Status.FEASIBLE
    assert result.bound_ns is not None
    assert result.bound_ns <= simulate(problem, by_hand).time_ns < (result.time_ns or 0)
    assert solve(problem, 17, solver=BruteForce(order=order)).status is Status.OPTIMAL


def test_infeasibility_covers_computations_before_the_tangents() -> None:
    values = [Value(f"v{i}", size, "gradient" if i > 1 else "activation") for i, size in enumerate((1, 6, 5, 1))]
    ops = (
        Op("r", "forward", (), (0,), 1, effects=("random",), workspace_bytes=10),
        Op("c", "forward", (), (1,), 1, effects=("random",), workspace_bytes=5),
        Op("tangents", "backward", (), (2,), 0, recomputable=False),
        Op("b", "backward", (0, 2), (3,), 1),
    )
    problem = Problem("before-the-tangents", ops, tuple(values), (3,))
    by_hand = Plan([Compute(0), Free(0), Compute(1), Free(1), Compute(0), Compute(2), Compute(3)])
    budget_bytes = simulate(problem, by_hand).peak_bytes
    assert validate(problem, by_hand, budget_bytes) == []
    assert smallest_peak_bytes(problem, order="free") > budget_bytes  # with the tangents first
    searched = BruteForce(order="free").solve(problem, budget_bytes, limits=Limits(), on_progress=None, seed=0)
    assert searched.status is not Status.INFEASIBLE
