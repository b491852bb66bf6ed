"""Tests of Chen et al. (2016): the closed forms of the paper, the authors' search, and graphs that are no chains."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, training_graph
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.chen import (
    Chen,
    candidate_cuts,
    memory_plan,
    search_thresholds,
    sqrt_cuts,
)
from remat_solvers.result import Limits
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.graphs.articulation import articulation_positions
from remat_solvers.toolkit.sequences.segments import Segment, flat, recompute_sequence, recursive

LIMITS = Limits()


def only_sequence(method: Chen, problem: Problem) -> list[int]:
    (form,) = method.forms(problem)
    return form.sequence(problem)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 10, 20])
def test_a_unit_chain_of_k_squared_layers_peaks_at_2k_with_one_extra_forward(k: int) -> None:
    """The paper counts k kept values and k of the open segment, 2 sqrt(n), and one extra forward pass.

    The replay also counts 2k: when the first segment is opened, k values are kept, k - 1 are recomputed (the k-th is
    kept), and the gradient is being computed. Algorithm 1 of the paper recomputes all n layers, although the last value
    of each segment is kept. Here these k are not recomputed: n - k recomputations, and n with the k."""
    n = k * k
    problem = chain(n)
    method = Chen(strategy="sqrt", candidates="linearised", keep_last=False, on_demand=False)
    sequence = only_sequence(method, problem)
    assert simulate(problem, plan_from_sequence(problem, sequence)).peak_bytes == 2 * k
    assert len(sequence) - 2 * n + k == n
    assert max(Counter(sequence).values()) == 2


@pytest.mark.parametrize("segments", [2, 5, 8, 16, 32])
def test_k_segments_of_a_unit_chain_hold_n_over_k_plus_k(segments: int) -> None:
    n = 64
    problem = chain(n)
    method = Chen(strategy="sqrt", candidates="linearised", segments=segments, keep_last=False, on_demand=False)
    plan = plan_from_sequence(problem, only_sequence(method, problem))
    longest = -(-n // segments)
    assert simulate(problem, plan).peak_bytes == segments + longest


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 8])
def test_the_recursion_on_two_to_the_p_layers(p: int) -> None:
    """With k = 1, every level recomputes half of its segment. R(2) = 1 and R(m) = m/2 + 2 R(m/2), so R(m) = m/2 log2 m.
    The first forward keeps the middle of the whole, so 2 R(n/2) = n/2 (p - 1) extra forward ops remain. At the last
    layer, the first value, one value per level and the new gradient are resident: p + 2."""
    n = 2**p
    problem = chain(n)
    method = Chen(strategy="recursive", candidates="linearised", k=1, keep_last=False, on_demand=False)
    sequence = only_sequence(method, problem)
    assert len(sequence) - 2 * n == n // 2 * (p - 1)
    assert simulate(problem, plan_from_sequence(problem, sequence)).peak_bytes == max(p + 2, 3)


def depth(segment: Segment) -> int:
    return 1 + max(map(depth, segment.parts)) if segment.parts else 0


@pytest.mark.parametrize(("n", "k", "levels"), [(64, 1, 6), (81, 2, 4), (64, 3, 3), (125, 4, 3), (1, 1, 0)])
def test_the_recursion_is_log_k_plus_1_of_n_deep(n: int, k: int, levels: int) -> None:
    root = recursive(n, range(n), k)
    assert depth(root) == levels


def residual(blocks: int, *, statistics: bool = False) -> Problem:
    """A stem, then blocks of conv, relu, conv and add (with a skip from the block's start); with a backward op each."""
    ops: list[Op] = [Op("stem", "forward", (), (0,), 1)]
    count = 1

    def add_op(name: str, *reads: int) -> int:
        nonlocal count
        ops.append(Op(name, "forward", reads, (count,), 1))
        count += 1
        return count - 1

    start = 0
    for _ in range(blocks):
        inner = add_op("conv", start)
        if statistics:
            mean = add_op("mean", inner)
            ops.append(Op("running_mean", "forward", (mean,), (), 1, recomputable=False, effects=("buffer",)))
        start = add_op("add", start, add_op("conv", add_op("relu", inner)))
    gradient = start
    for op in [op for op in ops if op.outputs][::-1]:
        ops.append(Op(f"{op.name}_backward", "backward", (*dict.fromkeys([*op.inputs, gradient]),), (count,), 1))
        gradient = count
        count += 1
    forward = sum(len(op.outputs) for op in ops if op.phase == "forward")
    values = tuple(Value(f"v{i}", 1, "activation" if i < forward else "gradient") for i in range(count))
    return Problem("residual", tuple(ops), values, (gradient,))


@pytest.mark.parametrize("statistics", [False, True])
def test_articulation_points_of_a_residual_net_are_its_block_boundaries(statistics: bool) -> None:
    """These are the inner boundaries: the stem and the last add are ends of the graph, which separate nothing."""
    problem = residual(5, statistics=statistics)
    points = [problem.forward_ops[k] for k in articulation_positions(problem)]
    adds = [i for i, op in enumerate(problem.ops) if op.name == "add"]
    assert points == adds[:-1]


@given(n=st.integers(1, 20), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_without_an_articulation_point_its_neighbours_are_disconnected(n: int, seed: int) -> None:
    """Among the ops that lead to the forward op with the most ancestors, each is removed and the rest is traversed."""
    problem = training_graph(n, seed)
    forward = problem.forward_ops
    ancestors: dict[int, set[int]] = {}
    for op in forward:
        parents = {problem.producer[v] for v in problem.ops[op].inputs} - {-1}
        ancestors[op] = parents.union(*(ancestors[p] for p in parents))
    ends = [op for op in forward if not any(op in ancestors[other] for other in forward)]
    trunk = max(({op} | ancestors[op] for op in ends), key=len)
    neighbours: dict[int, set[int]] = {op: set() for op in trunk}
    for op in trunk:
        for parent in {problem.producer[v] for v in problem.ops[op].inputs} - {-1}:
            neighbours[op].add(parent)
            neighbours[parent].add(op)
    points = []
    for removed in sorted(trunk):
        remaining = trunk - {removed}
        seen, stack = set[int](), sorted(neighbours[removed])[:1]
        while stack:
            op = stack.pop()
            if op not in seen:
                seen.add(op)
                stack.extend(neighbours[op] & remaining)
        if neighbours[removed] - seen:
            points.append(removed)
    assert [forward[k] for k in articulation_positions(problem)] == points


def cost_of_algorithm_1(problem: Problem, kept: set[int]) -> tuple[int, int]:
    """Peak and number of recomputed forward ops for segments of a chain that keep the outputs `kept`, counted by hand.

    In the forward, the values kept so far, the value being read and the value being computed are resident. In the
    backward of each segment from the last on, these are the earlier kept values, the segment up to the value that is
    read first, and the gradient; then the value that was read is freed."""
    n = len(problem.forward_ops)
    size = [v.bytes for v in problem.values]
    peak = recomputed = 0
    for i in range(n):
        peak = max(peak, sum(size[j] for j in {*(k for k in kept if k < i), *range(max(0, i - 1), i)}) + size[i])
    resident = set(kept)
    for layer in range(n, 0, -1):  # its backward reads value layer - 2, and the last one's value layer - 1
        gradient = [2 * n - layer - 1] if layer < n else []
        missing = {layer - 2, layer - 1 if layer == n else layer - 2} - resident - {-1}
        if missing:
            end = max(missing)
            for i in range(max((k for k in kept if k < end), default=-1) + 1, end + 1):
                resident.add(i)
                recomputed += 1
                peak = max(peak, sum(size[v] for v in (*resident, *gradient)))
        peak = max(peak, sum(size[v] for v in (*resident, *gradient, 2 * n - layer)))
        resident -= {layer - 1, layer - 2}
    return peak, recomputed


@pytest.mark.parametrize("seed", range(4))
def test_every_segmentation_of_a_chain_costs_as_much_as_in_algorithm_1(seed: int) -> None:
    """All 128 sets of cuts of 7 layers of unequal sizes have the peak and the recomputations counted by hand."""
    rng = random.Random(seed)
    plain = chain(7)
    problem = replace(plain, values=tuple(replace(v, bytes=rng.randint(1, 9)) for v in plain.values))
    cuts_everywhere = candidate_cuts(problem, "linearised")
    for mask in range(2**7):
        kept = {k for k in range(7) if mask >> k & 1}
        sequence = recompute_sequence(problem, flat(7, kept), cuts_everywhere, keep_last=False, on_demand=False)
        line = simulate(problem, plan_from_sequence(problem, sequence))
        assert (line.peak_bytes, len(sequence) - 14) == cost_of_algorithm_1(problem, kept)


def test_every_sqrt_th_candidate_is_a_cut() -> None:
    assert sqrt_cuts(range(16), None) == (3, 7, 11, 15)
    assert sqrt_cuts(range(17), None) == (3, 7, 11, 15)
    assert sqrt_cuts((5, 9, 11), None) == (5, 9, 11)
    assert sqrt_cuts((), None) == ()
    assert sqrt_cuts(range(9), 2) == (3, 8)


def test_algorithm_3_by_hand() -> None:
    """Sizes 4 1 3 2 5, b = 4: temp 4, 5 > 4 keep 1 (x 1, y 5); 3, 5 > 4 keep 2 (x 3, y 5); 5 > 4 keep 5 (x 8, y 5)."""
    sizes = (4, 1, 3, 2, 5)
    problem = chain(5)
    values = tuple(Value(v.name, sizes[i] if i < 5 else 1, v.kind) for i, v in enumerate(problem.values))
    problem = Problem("sized", problem.ops, values, problem.results)
    cuts_everywhere = candidate_cuts(problem, "linearised")
    assert memory_plan(problem, cuts_everywhere, 4) == ((1, 3, 4), 8, 5)
    # Without a candidate at the second op, 4, 5, 8 > 4 keep 3 (x 3, y 8); 2, 7 > 4 keep 5 (x 8, y 8).
    assert memory_plan(problem, {k: cuts_everywhere[k] for k in (0, 2, 4)}, 4) == ((2, 4), 8, 8)
    assert memory_plan(problem, cuts_everywhere, 100) == ((), 0, 0)


def test_the_search_of_memonger_by_hand() -> None:
    """The chain has 16 layers of 100 bytes. b = 0 keeps all: x = 1600, y = 100, guess isqrt(80000) = 282. b = 282 keeps
    every third: x = 500, y = 300, guess isqrt(75000) = 273, which keeps the same. The grid starts at the smallest y =
    100 and ends near 273 sqrt(2) = 386 in 6 steps of (386 - 100) // 6 = 47."""
    problem = chain(16, size_bytes=100)
    cuts_everywhere = candidate_cuts(problem, "linearised")
    assert search_thresholds(problem, cuts_everywhere) == (0, 282, 273, 147, 194, 241, 288, 335, 382)


def test_crossing_candidates_keep_the_values_that_cross_the_cut() -> None:
    problem = residual(2)
    names = [problem.ops[op].name for op in problem.forward_ops]
    assert names == ["stem", "conv", "relu", "conv", "add", "conv", "relu", "conv", "add"]
    crossing = candidate_cuts(problem, "crossing")
    assert [sorted(crossing[k]) for k in range(5)] == [[0], [0, 1], [0, 2], [0, 3], [4]]


@given(n=st.integers(1, 25), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_flat_forms_recompute_only_recomputable_forward_ops_and_only_once(n: int, seed: int) -> None:
    problem = training_graph(n, seed)
    for form in Chen(strategy="sqrt").forms(problem):
        computations = Counter(form.sequence(problem))
        assert max(computations.values()) <= 2
        recomputed = {op for op, count in computations.items() if count > 1}
        assert all(problem.ops[op].recomputable and problem.ops[op].phase == "forward" for op in recomputed)


def test_an_op_that_is_not_recomputable_is_computed_once_and_its_output_kept() -> None:
    problem = chain(9)
    ops = tuple(replace(op, recomputable=i != 4) for i, op in enumerate(problem.ops))
    fixed = Problem("fixed", ops, problem.values, problem.results)
    method = Chen(strategy="sqrt", candidates="linearised", keep_last=False, on_demand=False)
    assert len(only_sequence(method, problem)) - len(only_sequence(method, fixed)) == 1
    assert Counter(only_sequence(method, fixed))[4] == 1


def test_the_fastest_form_within_the_budget_is_chosen() -> None:
    """With 100 unit layers, 2 sqrt(n) = 20 slots are enough for the flat form, and 8 only for the recursion."""
    problem = chain(100)
    peaks = {b: Chen().solve(problem, b, limits=LIMITS, on_progress=None, seed=0) for b in (100, 20, 8, 3)}
    times = {
        b: simulate(problem, outcome.plan).time_ns - 300 for b, outcome in peaks.items() if outcome.plan is not None
    }
    assert set(times) == {100, 20, 8}
    assert times[100] <= times[20] <= 100 - isqrt(100) < times[8]


@pytest.mark.parametrize(
    "options",
    [{"strategy": "other"}, {"candidates": "all"}, {"segments": 0}, {"k": 0}, {"threshold_bytes": -1}, {"k": True}],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Chen(**options)  # type: ignore[arg-type]
