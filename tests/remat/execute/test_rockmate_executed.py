"""Rockmate's plans on captured models: identical layers are solved once, and the machine does as planned."""

from __future__ import annotations

import pytest

import remat
from examples.zoo import encoder
from remat.verification import TOLERANCE, TOLERANCE_BYTES, compare_steps, run_step
from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.recompute.rockmate import Rockmate
from remat_solvers.recompute.rockmate.blocks import Block, block_of
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.chain import chain_view
from tests.remat.models.table import CASES, Case


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", ["transformer-encoder", "gpt2", "attention-dropout"])
def test_as_predicted_and_bit_equal(name: str) -> None:
    model, args, kwargs = case_of(name).make()
    exported = remat.export(model.train(), args, kwargs)
    problem = exported.problem
    everything = store_all(problem)
    budget_bytes = (simulate(problem, everything).peak_bytes + peak_bound_bytes(problem)) // 2
    result = solve(problem, budget_bytes, solver=Rockmate(granularities=1, peaks=2, saves=4))
    assert result.plan is not None
    assert len(result.plan) > len(everything)
    kept = run_step(remat.apply(exported, everything), args, kwargs, exported)
    step = run_step(remat.apply(exported, result.plan), args, kwargs, exported)
    assert compare_steps(step, kept).equal
    measured = step.peak_bytes + problem.constant_bytes
    assert result.peak_bytes is not None
    assert abs(measured - result.peak_bytes) <= max(TOLERANCE_BYTES, TOLERANCE * result.peak_bytes)


def test_layers_of_a_captured_transformer_are_identical() -> None:
    """Two more layers are two more of the same blocks."""

    def blocks(layers: int) -> tuple[int, set[Block]]:
        model, args = encoder.encoder(length=32, width=64, layers=layers)
        problem = remat.export(model, args, costs="roofline").problem
        view = chain_view(problem)
        return len(view.stages), {block_of(view, k) for k in range(len(view.stages))}

    (four, blocks_of_four), (six, blocks_of_six) = blocks(4), blocks(6)
    assert six > four
    assert blocks_of_six == blocks_of_four
