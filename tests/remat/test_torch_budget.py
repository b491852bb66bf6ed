"""torch's partitioner as a method: its choices become plans that hold here, with dropout too."""

from __future__ import annotations

import pytest
import torch

import remat
import remat_solvers
from remat.torch_budget import SETTINGS, TorchBudget
from remat.verification import compare_steps, run_step
from remat_solvers.plan import Compute
from remat_solvers.result import Status
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate

from .models import CASES


@pytest.mark.parametrize("name", ["gpt2", "batch-norm", "dropout", "lstm", "returns-logits"])
def test_every_setting_is_a_valid_plan_that_runs(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs, costs="roofline")
    kept = run_step(remat.apply(exported, store_all(exported.problem)), args, kwargs, exported)
    seen = set()
    for setting, plan in TorchBudget(exported).plans():
        seen.add(setting)
        assert validate(exported.problem, plan) == []
        if setting in (1.0, 0.5, 0.0):
            assert compare_steps(run_step(remat.apply(exported, plan), args, kwargs, exported), kept).equal
    assert seen == set(SETTINGS)


def test_recompute_all_recomputes_the_forward() -> None:
    """At 0 torch saves inputs only: every forward op the backward depends on runs twice."""
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh()) for _ in range(4)))
    exported = remat.export(model, (torch.randn(4, 16, requires_grad=True),), costs="roofline")
    plan = dict(TorchBudget(exported).plans())[0.0]
    times = [sum(action == Compute(op) for action in plan) for op in exported.problem.forward_ops]
    assert times == [2] * 8


def test_a_solver_like_others() -> None:
    case = next(case for case in CASES if case.name == "gpt2")
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs, costs="roofline")
    problem, method = exported.problem, TorchBudget(exported)
    peak = simulate(problem, store_all(problem)).peak_bytes
    fits = remat_solvers.solve(problem, int(0.9 * peak), solver=method)
    assert fits.status is Status.FEASIBLE
    assert fits.peak_bytes is not None
    assert fits.peak_bytes <= 0.9 * peak
    least = min(simulate(problem, plan).peak_bytes for _, plan in method.plans())
    none = remat_solvers.solve(problem, least - 1, solver=method)
    assert none.status in (Status.NOT_FOUND, Status.INFEASIBLE)
