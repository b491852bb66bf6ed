"""Tests of the chain view: states follow their definition, and schedules are valid plans."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import adversarial, chain, training_graph
from remat_solvers.problem import Problem
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.toolkit.chains.chain import Chain, chain_view
from remat_solvers.toolkit.chains.cuts import Cuts
from remat_solvers.toolkit.chains.schedule import (
    Advance,
    Back,
    ChainStep,
    Save,
    forward_steps_of,
    keep_nothing_steps,
    sequence_of,
)
from remat_solvers.toolkit.graphs.dropped_values import droppable
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem

CUTS = st.sampled_from(["minima", "renewed"])


def state_by_definition(problem: Problem, cut: int) -> set[int]:
    """The values computed up to `cut` that are read by a forward op after it, or by a backward op up to the last that
    reads a value computed after it."""
    position = {op: k for k, op in enumerate(problem.forward_ops)}
    drop = droppable(problem)
    computed = {v: position[problem.producer[v]] for v, d in enumerate(drop) if d}
    late = [op for op in problem.backward_ops if any(computed.get(v, -1) > cut for v in problem.ops[op].inputs)]
    readers = [op for op in problem.forward_ops if position[op] > cut]
    readers += [op for op in problem.backward_ops if late and op <= late[-1]]
    return {v for op in readers for v in problem.ops[op].inputs if computed.get(v, cut + 1) <= cut}


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), cuts=CUTS, max_stages=st.integers(1, 14))
@settings(max_examples=200, deadline=None)
def test_stages_cover_the_step_and_their_states_cross_the_cuts(n: int, seed: int, cuts: Cuts, max_stages: int) -> None:
    for problem in (training_graph(n, seed), adversarial(seed)):
        view = chain_view(problem, cuts=cuts, max_stages=max_stages)
        assert 1 <= len(view.stages) <= max_stages
        assert tuple(op for stage in view.stages for op in stage.ops) == problem.forward_ops
        assert tuple(op for stage in view.stages[::-1] for op in stage.backward) == problem.backward_ops
        num_ops = 0
        for k, stage in enumerate(view.stages):
            assert set(stage.state) == (state_by_definition(problem, num_ops - 1) if k else set())
            num_ops += len(stage.ops)
            available = {v for op in stage.ops for v in problem.ops[op].outputs} | set(stage.state)
            assert set(stage.saved) <= available


def random_steps(stages: int, seed: int) -> list[ChainStep]:
    """A random schedule: each segment is split, saved at its start or end, or recomputed from its start."""
    rng = random.Random(seed)

    def segment(first: int, end: int) -> list[ChainStep]:
        if end - first < 1:
            return []
        kind = rng.choice(("least", "split", "save", "inner")) if end - first > 1 else "save"
        if kind == "least":
            return keep_nothing_steps(first, end)
        if kind == "save":
            return [Save(first, onward=end - first > 1), *segment(first + 1, end), Back(first)]
        cut = rng.randrange(first + 1, end)
        if kind == "split":
            return [Advance(first, cut), *segment(cut, end), *segment(first, cut)]
        onward = cut + 1 < end
        inner = [Save(cut, onward=onward, alone=True), *segment(cut + 1, end), Back(cut)]
        return [Advance(first, cut), *inner, *segment(first, cut)]

    return segment(0, stages)


@given(n=st.integers(1, 20), seed=st.integers(0, 10**6), cuts=CUTS)
@settings(max_examples=300, deadline=None)
def test_every_schedule_of_the_stages_is_a_valid_plan(n: int, seed: int, cuts: Cuts) -> None:
    for problem in (training_graph(n, seed), adversarial(seed)):
        if not problem.backward_ops:
            continue
        view = chain_view(problem, cuts=cuts)
        steps = random_steps(len(view.stages), seed)
        assert sorted(s.stage for s in steps if isinstance(s, Back)) == list(range(len(view.stages)))
        plan = plan_from_sequence(problem, sequence_of(view, steps))
        assert validate(problem, plan, 2**62) == []


def save_every_stage(view: Chain) -> list[ChainStep]:
    count = len(view.stages)
    return [*(Save(k, onward=k + 1 < count) for k in range(count)), *(Back(k) for k in range(count)[::-1])]


@pytest.mark.parametrize("name", ["chain50", "gpt", "lstm", "r50", "unet"])
def test_saving_every_stage_is_store_all(name: str) -> None:
    problem = corpus_problem(name)
    view = chain_view(problem, max_stages=1000)
    assert sequence_of(view, save_every_stage(view)) == [*problem.forward_ops, *problem.backward_ops]


def test_the_time_steps_of_an_unrolled_lstm() -> None:
    """Between two of the 100 steps of 12 ops, h and c cross, 262,144 bytes each. Zeros, head and loss are the rest."""
    problem = corpus_problem("lstm")
    view = chain_view(problem, cuts="renewed", max_stages=1024)
    assert len(view.stages) == 104
    steps = view.stages[2:101]
    assert {(len(stage.ops), len(stage.state), view.bytes(stage.state)) for stage in steps} == {(12, 2, 2 * 262_144)}
    assert len({view.bytes(stage.saved) for stage in steps}) == 1


def test_a_unit_chain_has_a_stage_per_op_and_no_extra_state() -> None:
    view = chain_view(chain(30))
    assert [stage.ops for stage in view.stages] == [(k,) for k in range(30)]
    assert [stage.state for stage in view.stages] == [(), *((k,) for k in range(29))]
    assert forward_steps_of(keep_nothing_steps(0, 30)) == 30 * 31 // 2
