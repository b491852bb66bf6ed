"""Tests of lower bounds: they never exceed the exact smallest peak, and equal the known floors of the corpus."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound, peak_bound_bytes, time_bound_ns
from remat_solvers.generate import adversarial, chain, random_plan, training_graph
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.result import Status
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from tests.solvers.makers import corpus_problem


def smallest_peak(problem: Problem) -> int | None:
    """The smallest peak of any plan without copies, by search over all states; None if there are too many states.

    A state is (ops computed, values on the device). An edge is one Compute or one Free; the cost of a path is the
    largest number of bytes at any moment of it. The search uses only the rules of the memory model."""
    ops = problem.ops
    sizes = [v.bytes for v in problem.values]
    base = problem.reserve_bytes + sum(v.bytes for v in problem.values if v.kind == "constant")
    freeable = [v for v, value in enumerate(problem.values) if value.kind != "constant"]
    constants = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
    forward = {i for i, op in enumerate(ops) if op.phase == "forward"}
    pinned = {v for v in problem.results if any(v in ops[i].outputs for i in forward)}
    with_effect = [i for i, op in enumerate(ops) if op.effects]
    goal = frozenset(range(len(ops)))
    start = (frozenset[int](), frozenset[int]())
    best = {start: base}
    heap = [(base, 0, start)]
    pushed = 0
    while heap:
        peak, _, (done, resident) = heapq.heappop(heap)
        if peak > best[done, resident]:
            continue
        if done == goal and set(problem.results) <= resident | constants:
            return peak
        resident_bytes = base + sum(sizes[v] for v in resident)
        steps: list[tuple[int, frozenset[int], frozenset[int]]] = []
        for i, op in enumerate(ops):
            first = i not in done
            if not set(op.inputs) <= resident | constants or (not first and not op.recomputable):
                continue
            if first and op.effects and any(j not in done for j in with_effect if j < i):
                continue
            if op.phase == "backward" and not forward <= done:
                continue
            after = resident | set(op.outputs)
            steps.append((resident_bytes + sum(sizes[v] for v in op.outputs) + op.workspace_bytes, done | {i}, after))
        for v in freeable:
            if v in resident and not (forward and forward <= done and v in pinned):
                steps.append((resident_bytes, done, resident - {v}))
        for step_bytes, next_done, next_resident in steps:
            if forward and forward <= next_done and not pinned <= next_resident:
                continue  # every forward result is resident at the boundary
            reached, state = max(peak, step_bytes), (next_done, next_resident)
            if reached < best.get(state, reached + 1):
                best[state] = reached
                pushed += 1
                if pushed > 40_000:
                    return None
                heapq.heappush(heap, (reached, pushed, state))
    return None


def test_the_search_agrees_with_the_chain() -> None:
    # F1 F2 F3 B3 B2 B1 with unit sizes need two values and the gradient that is being computed, and no more.
    assert smallest_peak(chain(3)) == 3


@given(n=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_no_plan_is_below_the_bound_and_infeasibility_is_true(n: int, seed: int) -> None:
    problem = training_graph(n, seed)
    assume(len(problem.ops) <= 9)
    exact = smallest_peak(problem)
    assume(exact is not None)
    assert exact is not None
    assert peak_bound_bytes(problem) <= exact
    if exact > 1:
        below = solve(problem, exact - 1)
        assert below.plan is None
        assert below.status in (Status.INFEASIBLE, Status.NOT_FOUND)
    at_exact = solve(problem, max(1, exact))
    assert at_exact.status is not Status.INFEASIBLE


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), link=st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_plans_stay_above_the_bounds(n: int, seed: int, link: bool) -> None:
    for problem in (training_graph(n, seed, link=link), adversarial(seed)):
        line = simulate(problem, random_plan(problem, seed))
        assert peak_bound_bytes(problem) <= line.peak_bytes
        assert time_bound_ns(problem) <= line.time_ns


@pytest.mark.parametrize(
    ("name", "fraction", "op"),
    [("gpt", 0.248, 129), ("unet", 0.223, None), ("r50", 0.112, None), ("lstm", 0.199, None), ("rl250", 0.449, None)],
)
def test_the_floors_of_the_corpus(name: str, fraction: float, op: int | None) -> None:
    """The corpus records the largest working set over the store-all peak; in gpt it is the log-softmax backward."""
    problem = corpus_problem(name)
    floor = peak_bound(problem)
    assert floor.bytes / baseline(problem).peak_bytes == pytest.approx(fraction, abs=0.0006)
    if op is not None:
        assert floor.op == op
        assert "_log_softmax_backward_data" in problem.ops[op].target


def test_a_value_that_cannot_be_recomputed_counts_until_its_last_reader() -> None:
    ops = (
        Op("gather", "forward", (), (0,), 1, recomputable=False),
        Op("big", "forward", (0,), (1,), 1),
        Op("loss", "forward", (1,), (2,), 1),
        Op("gradient", "backward", (0, 2), (3,), 1),
    )
    sizes = (100, 1000, 1, 10)
    values = tuple(Value(f"v{i}", size, "activation") for i, size in enumerate(sizes))
    problem = Problem("problem", ops, values, (3,))
    assert peak_bound_bytes(problem) == 1101  # at loss: 1000 + 1, plus gather's 100, which backward reads
    assert smallest_peak(problem) == 1101


def test_a_forward_result_counts_at_every_backward_op_and_at_the_boundary() -> None:
    ops = (
        Op("seed", "forward", (), (0,), 1, recomputable=False),
        Op("logits", "forward", (), (1,), 1),
        Op("backward", "backward", (), (2,), 1, workspace_bytes=5),
        Op("last", "backward", (0, 2), (3,), 1),
    )

    def problem(*sizes: int) -> Problem:
        return Problem("pinned", ops, tuple(Value(f"v{i}", size, "activation") for i, size in enumerate(sizes)), (1, 3))

    peak_at_last = problem(1, 100, 40, 10)  # at last: 1 + 40 + 10, plus the logits
    assert peak_bound_bytes(peak_at_last) == smallest_peak(peak_at_last) == 151
    peak_at_backward = problem(1, 100, 60, 0)  # at backward: 60 + 5, plus the logits and the seed
    assert peak_bound_bytes(peak_at_backward) == smallest_peak(peak_at_backward) == 166


def test_values_that_cross_the_boundary_count_at_it() -> None:
    """Each of two seeds is read by one backward op with a small output: no op needs both, but the boundary does."""
    ops = (
        Op("seed1", "forward", (), (0,), 1, recomputable=False),
        Op("seed2", "forward", (), (1,), 1, recomputable=False),
        Op("use", "backward", (0,), (2,), 1),
        Op("use2", "backward", (1,), (3,), 1),
    )
    values = tuple(Value(f"v{i}", size, "activation") for i, size in enumerate((50, 60, 0, 0)))
    problem = Problem("crossing", ops, values, ())
    floor = peak_bound(problem)
    assert floor.bytes == smallest_peak(problem) == 110
    assert floor.op is None
    assert "between forward and backward" in floor.moment
