"""Tests of SuperNeurons' checkpoints, the segments between them, and its three strategies of recomputation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, training_graph
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.swap.superneurons.solver import SuperNeurons, checkpoint_ops, memory_centric, segments_between
from remat_solvers.toolkit.graphs.dropped_values import droppable
from remat_solvers.toolkit.sequences.recompute_dropped import recompute_dropped
from remat_solvers.validate import validate
from tests.solvers.makers import layers


def extra(problem: Problem, sequence: list[int]) -> int:
    assert validate(problem, plan_from_sequence(problem, sequence)) == []
    return len(sequence) - len(problem.ops)


@pytest.mark.parametrize("s", [1, 2, 5, 9])
def test_superneurons_costs_of_a_segment_of_s_layers(s: int) -> None:
    """The layers are CONV, s cheap layers, CONV; backward reads a layer's input and output.

    Speed-centric recomputes s forward ops once. Memory-centric recomputes all s for the backward of the convolution,
    and then again for each layer. A layer's backward reads its own output, so that is s, s - 1, ..., 1: s (s + 1) / 2
    after the s of the convolution. Where a backward reads only the input, it is s (s - 1) / 2."""
    problem = layers("convolution", *["relu"] * s, "convolution")
    segment_of = segments_between(problem, checkpoint_ops(problem))
    assert segment_of == dict.fromkeys(range(1, s + 1), 1)
    assert extra(problem, SuperNeurons().sequence(problem, "speed-centric")) == s
    assert extra(problem, SuperNeurons().sequence(problem, "memory-centric")) == s + s * (s + 1) // 2
    by_input = chain(s + 1)
    dropped = [may_drop and 0 < v < s for v, may_drop in enumerate(droppable(by_input))]
    groups = dict.fromkeys(range(1, s), 1)
    assert extra(by_input, recompute_dropped(by_input, dropped, groups, {1})) == s * (s - 1) // 2


def test_cost_aware_is_speed_centric_where_a_segment_fits_the_largest_layer() -> None:
    """l_peak is 4: a backward op has an input, an output and two gradients. With the 2 bytes of the convolution's
    backward beside a segment, short segments fit, and one of 6 values does not."""
    problem = layers("convolution", "relu", "convolution", *["relu"] * 6, "convolution")
    segment_of = segments_between(problem, checkpoint_ops(problem))
    assert set(segment_of.values()) == {1, 3}
    assert memory_centric(problem, segment_of, "paper") == {3}
    sequences = {s: SuperNeurons().sequence(problem, s) for s in ("speed-centric", "cost-aware", "memory-centric")}  # type: ignore[arg-type]
    times = {s: len(q) for s, q in sequences.items()}
    peaks = {s: simulate(problem, plan_from_sequence(problem, q)).peak_bytes for s, q in sequences.items()}
    assert times["speed-centric"] < times["cost-aware"] < times["memory-centric"]
    assert peaks["memory-centric"] == peaks["cost-aware"] < peaks["speed-centric"]


def sized(problem: Problem, sizes: list[int]) -> Problem:
    """The network of `layers` with these bytes per output; a gradient has the size of its value."""
    n = len(sizes)
    by_value = [*sizes, *(sizes[i - 1] if i else 0 for i in range(n - 1, -1, -1))]
    return replace(problem, values=tuple(replace(v, bytes=b) for v, b in zip(problem.values, by_value, strict=True)))


def footprints(problem: Problem) -> list[int]:
    """l_i of every op of either phase: the bytes of its inputs and outputs."""
    return [sum(problem.values[v].bytes for v in (*op.inputs, *op.outputs)) for op in problem.ops]


def peak_beside_checkpoints(problem: Problem, sequence: list[int]) -> int:
    """The peak as the paper counts it: a value is freed after its last reader, and a checkpoint is on the device only
    while an op reads or computes it."""
    offloaded = {v for op in checkpoint_ops(problem) for v in problem.ops[op].outputs}
    later: list[set[int]] = [set()]  # values that are read before they are recomputed, from each position on
    for index in reversed(sequence):
        op = problem.ops[index]
        later.append(later[-1] - set(op.outputs) | set(op.inputs))
    resident: set[int] = set()
    peak = 0
    for place, index in enumerate(sequence):
        op = problem.ops[index]
        uses = {*op.inputs, *op.outputs}
        peak = max(peak, sum(problem.values[v].bytes for v in (resident - offloaded) | uses))
        resident = (resident | uses) & later[len(sequence) - 1 - place]
    return peak


Net = tuple[list[str], list[int]]
NETS = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda cheap: (
        ["convolution", *("relu" if c else "mm" for c, _ in cheap), "convolution", "convolution"],
        [3, *(b for _, b in cheap), 3, 3],
    )
)


@given(net=NETS)
@settings(max_examples=100, deadline=None)
def test_the_last_rungs_of_the_ladder_in_the_papers_account(net: Net) -> None:
    """Beside the checkpoints, memory-centric peaks at max l_i. Where layers are of one size, speed-centric peaks at the
    largest segment with l^b of the checkpoint after it, if that is more, and cost-aware at max l_i again."""
    targets, sizes = net
    problem = sized(layers(*targets), sizes)
    memory_centric_peak = peak_beside_checkpoints(problem, SuperNeurons().sequence(problem, "memory-centric"))
    assert memory_centric_peak == max(footprints(problem))
    even = sized(layers(*targets), [4] * len(targets))
    segments = [len(segment) for segment in "".join("x" if t == "relu" else " " for t in targets).split()]
    speed_centric_peak = peak_beside_checkpoints(even, SuperNeurons().sequence(even, "speed-centric"))
    assert max(footprints(even)) == 16
    assert speed_centric_peak == max([16, *(4 * s + 3 * 4 for s in segments)])
    assert peak_beside_checkpoints(even, SuperNeurons().sequence(even, "cost-aware")) == 16


def test_paper_and_code_compare_a_segment_with_different_bytes() -> None:
    """Three layers of 5 bytes are between convolutions of 1. By the paper, 15, and at the end 1 and the gradient's 5,
    are above l_peak = 20. By the released code, 15 are not above the 15 that the third layer's backward reads."""
    problem = sized(layers("convolution", *["relu"] * 3, "convolution"), [1, 5, 5, 5, 1])
    segment_of = segments_between(problem, checkpoint_ops(problem))
    assert memory_centric(problem, segment_of, "paper") == {1}
    assert memory_centric(problem, segment_of, "code") == set()
    assert peak_beside_checkpoints(problem, SuperNeurons("cost-aware").sequence(problem, "cost-aware")) == 20
    by_code = SuperNeurons("cost-aware", "code").sequence(problem, "cost-aware")
    assert peak_beside_checkpoints(problem, by_code) == 25  # at that backward: 15, and gradients of 5 and 5


def test_the_comparison_of_cost_aware_looks_at_the_end_of_a_segment_only() -> None:
    """Layers of 3, 3, 5 and 1 bytes are between convolutions of 1: 12 and 1 + 1 + 1 at the end are below l_peak = 2 (3
    + 5). But at the backward of the third layer, 3 + 3 + 5 and gradients of 5 and 3 are resident: the peak can exceed
    max l_i."""
    problem = sized(layers("convolution", *["relu"] * 4, "convolution"), [1, 3, 3, 5, 1, 1])
    assert max(footprints(problem)) == 16
    assert memory_centric(problem, segments_between(problem, checkpoint_ops(problem)), "paper") == set()
    assert peak_beside_checkpoints(problem, SuperNeurons().sequence(problem, "cost-aware")) == 19


def test_joins_forks_and_losses_are_checkpoints() -> None:
    ops = (
        Op("relu", "forward", (), (0,), 1, target="relu"),  # a fork is read twice
        Op("relu", "forward", (0,), (1,), 1, target="relu"),
        Op("tanh", "forward", (1,), (2,), 1, target="tanh"),
        Op("add", "forward", (0, 2), (3,), 1, target="add.Tensor"),
        Op("mul", "forward", (3,), (4,), 1, target="mul.Tensor"),
        Op("loss", "forward", (4,), (5,), 1, target="aten._log_softmax.default"),
    )
    values = tuple(Value(f"v{i}", 1, "activation") for i in range(6))
    problem = Problem("net", ops, values, (5,))
    assert checkpoint_ops(problem) == {0, 3, 5}
    assert segments_between(problem, {0, 3, 5}) == {1: 1, 2: 1, 4: 4}


@given(n=st.integers(1, 20), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_speed_centric_takes_at_most_one_extra_forward(n: int, seed: int) -> None:
    problem = training_graph(n, seed)
    computations = Counter(SuperNeurons().sequence(problem, "speed-centric"))
    assert max(computations.values()) <= 2
    assert all(problem.ops[op].phase == "forward" for op, count in computations.items() if count > 1)


@pytest.mark.parametrize("wrong", [{"strategy": "both"}, {"threshold": "other"}])
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SuperNeurons(**wrong)  # type: ignore[arg-type]
