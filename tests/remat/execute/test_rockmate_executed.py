"""Rockmate's plans on captured models: identical layers are solved once, and a step does what its plan predicts."""

from __future__ import annotations

import pytest

import remat
from examples.zoo import encoder
from remat.verification import compare_steps, run_step
from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.recompute.rockmate import Rockmate
from remat_solvers.recompute.rockmate.blocks import Block, block_of
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.chain import chain_view
from tests.remat.capture.test_exact import check_peak
from tests.remat.models.exports import measured
from tests.remat.modules import CASE as BY_NAME


@pytest.mark.parametrize("name", ["transformer-encoder", "gpt2", "attention-dropout"])
def test_as_predicted_and_bit_equal(name: str) -> None:
    exported, (_, args, kwargs) = measured(BY_NAME[name]), BY_NAME[name].make()
    problem = exported.problem
    unmodified = store_all(problem)
    budget_bytes = (simulate(problem, unmodified).peak_bytes + peak_bound_bytes(problem)) // 2
    result = solve(problem, budget_bytes, solver=Rockmate(granularities=1, peaks=2, saves=4))
    assert result.plan is not None
    assert len(result.plan) > len(unmodified)
    reference = run_step(remat.apply(exported, unmodified), args, kwargs, exported)
    step = run_step(remat.apply(exported, result.plan), args, kwargs, exported)
    assert compare_steps(step, reference).equal
    assert result.peak_bytes == simulate(problem, result.plan).peak_bytes
    check_peak(step, exported, result.plan)


def test_layers_of_a_captured_transformer_are_identical() -> None:
    """Two more layers add two more of the same blocks."""

    def blocks(layers: int) -> tuple[int, set[Block]]:
        model, args = encoder.encoder(length=32, width=64, layers=layers)
        problem = remat.export(model, args, costs="roofline").problem
        view = chain_view(problem)
        return len(view.stages), {block_of(view, k) for k in range(len(view.stages))}

    (four, blocks_of_four), (six, blocks_of_six) = blocks(4), blocks(6)
    assert six > four
    assert blocks_of_six == blocks_of_four
