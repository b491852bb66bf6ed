"""Lower bounds: below the exact smallest peak of tiny problems, and equal to what is known of the corpus."""

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
    """The smallest peak of any plan without copies, by search over all states; None: too many states.

    A state is (ops computed, values on the device). An edge is one Compute, or one Free; the cost of a path is the
    most bytes at any moment of it. Written from the rules of the model alone.
    """
    ops = problem.ops
    sizes = [v.bytes for v in problem.values]
    base = problem.reserve_bytes + sum(v.bytes for v in problem.values if v.kind == "constant")
    free_to_go = [v for v, value in enumerate(problem.values) if value.kind != "constant"]
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
        peak, _, (done, there) = heapq.heappop(heap)
        if peak > best[done, there]:
            continue
        if done == goal and set(problem.results) <= there | constants:
            return peak
        held = base + sum(sizes[v] for v in there)
        steps: list[tuple[int, frozenset[int], frozenset[int]]] = []
        for i, op in enumerate(ops):
            first = i not in done
            if not set(op.inputs) <= there | constants or (not first and not op.recomputable):
                continue
            if first and op.effects and any(j not in done for j in with_effect if j < i):
                continue
            if op.phase == "backward" and not forward <= done:
                continue
            now = there | set(op.outputs)
            steps.append((held + sum(sizes[v] for v in op.outputs) + op.workspace_bytes, done | {i}, now))
        for v in free_to_go:
            if v in there and not (forward and forward <= done and v in pinned):
                steps.append((held, done, there - {v}))
        for during, done_then, there_then in steps:
            if forward and forward <= done_then and not pinned <= there_then:
                continue  # the boundary cannot come with a forward result missing
            reached, state = max(peak, during), (done_then, there_then)
            if reached < best.get(state, reached + 1):
                best[state] = reached
                pushed += 1
                if pushed > 40_000:
                    return None
                heapq.heappush(heap, (reached, pushed, state))
    return None


def test_the_search_agrees_with_the_chain() -> None:
    # F1 F2 F3 B3 B2 B1 of units: two values and a gradient being made are needed, and enough.
    assert smallest_peak(chain(3)) == 3


@given(n=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_no_plan_goes_below_the_bound_and_infeasible_is_true(n: int, seed: int) -> None:
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
    at = solve(problem, max(1, exact))
    assert at.status is not Status.INFEASIBLE


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
    """Largest working set over store-all peak as recorded with the corpus; in gpt it is the log-softmax backward."""
    problem = corpus_problem(name)
    floor = peak_bound(problem)
    assert floor.bytes / baseline(problem).peak_bytes == pytest.approx(fraction, abs=0.0006)
    if op is not None:
        assert floor.op == op
        assert "_log_softmax_backward_data" in problem.ops[op].target


def test_what_cannot_be_computed_again_counts_while_it_is_still_needed() -> None:
    ops = (
        Op("gather", "forward", (), (0,), 1, recomputable=False),
        Op("big", "forward", (0,), (1,), 1),
        Op("loss", "forward", (1,), (2,), 1),
        Op("gradient", "backward", (0, 2), (3,), 1),
    )
    sizes = (100, 1000, 1, 10)
    values = tuple(Value(f"v{i}", size, "activation") for i, size in enumerate(sizes))
    kept = Problem("kept", ops, values, (3,))
    assert peak_bound_bytes(kept) == 1101  # loss: 1000 + 1, and gather's 100 that backward reads
    assert smallest_peak(kept) == 1101


def test_a_forward_result_counts_beside_every_backward_op_and_at_the_boundary() -> None:
    ops = (
        Op("seed", "forward", (), (0,), 1, recomputable=False),
        Op("logits", "forward", (), (1,), 1),
        Op("backward", "backward", (), (2,), 1, workspace_bytes=5),
        Op("last", "backward", (0, 2), (3,), 1),
    )

    def problem(*sizes: int) -> Problem:
        return Problem("pinned", ops, tuple(Value(f"v{i}", size, "activation") for i, size in enumerate(sizes)), (1, 3))

    beside = problem(1, 100, 40, 10)  # last: 1 + 40 + 10, and the logits
    assert peak_bound_bytes(beside) == smallest_peak(beside) == 151
    during = problem(1, 100, 60, 0)  # backward: 60 + 5, the logits, and the seed that `last` still reads
    assert peak_bound_bytes(during) == smallest_peak(during) == 166


def test_what_crosses_the_boundary_counts_there() -> None:
    """Two seeds, each read by a backward op of its own that makes little: no op needs both, the boundary does."""
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
