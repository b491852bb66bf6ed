"""Recurrent cells unrolled in Python: the export finds their time steps, and plans over them run exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import remat
from remat.verification import compare_steps, run_step
from remat_solvers.recompute.gruslys import Gruslys, forward_steps
from remat_solvers.recompute.rotor import Rotor
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.chain import chain_view

STEPS = 40


class Unrolled(nn.Module):
    """A sequence (batch, steps, width) through one cell. The loss reads the last output, or all."""

    def __init__(self, cell: type[nn.Module], width: int, all_outputs: bool) -> None:
        super().__init__()
        self.cell = cell(width, width)
        self.all_outputs = all_outputs

    def forward(self, sequence: Tensor) -> Tensor:
        zeros = torch.zeros(len(sequence), sequence.shape[-1])
        state = (zeros, torch.zeros_like(zeros)) if isinstance(self.cell, nn.LSTMCell) else zeros
        outputs = []
        for step in sequence.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return (torch.stack(outputs) if self.all_outputs else outputs[-1]).square().mean()


@pytest.mark.parametrize("all_outputs", [False, True])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_steps_are_found_and_the_work_is_that_of_the_program(cell: type[nn.Module], all_outputs: bool) -> None:
    exported = remat.export(Unrolled(cell, 64, all_outputs), (torch.randn(64, STEPS, 64),), costs="roofline:cpu")
    problem = exported.problem
    stages = len(chain_view(problem, cuts="renewed", max_stages=1024).stages)
    assert STEPS <= stages <= STEPS + 6
    forward_ns = sum(problem.ops[op].time_ns for op in problem.forward_ops)
    for slots in (4, 8):
        outcome = Gruslys("internal", slots).solve(problem, 2**40, limits=Limits(None), on_progress=None, seed=0)
        assert outcome.plan is not None
        extra_ns = simulate(problem, outcome.plan).time_ns - baseline(problem).time_ns
        program = forward_steps(stages, slots, "internal") / stages - 1
        assert 0.7 * program <= extra_ns / forward_ns <= 1.05 * program


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_plans_over_the_steps_run_exactly(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, args = Unrolled(cell, 16, all_outputs=True), (torch.randn(64, 20, 16),)
    exported = remat.export(model, args, costs="roofline:cpu")
    problem = exported.problem
    unmodified = baseline(problem).peak_bytes
    reference = run_step(remat.apply(exported, store_all(problem)), args, {}, exported)
    for solver in (Gruslys(), Rotor()):
        result = solve(problem, int(0.6 * unmodified), solver=solver)
        assert result.plan is not None
        assert compare_steps(run_step(remat.apply(exported, result.plan), args, {}, exported), reference).equal
