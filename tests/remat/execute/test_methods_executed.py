"""The plans of every method, run on three models with measured costs, do what `simulate` predicts.

The models have a link to host memory, so that swap methods have plans too.
Expected peaks come from the profiler, and expected bits come from the store-all plan of the same graph.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn

import remat
import remat_solvers
from examples.zoo import encoder, recurrent
from remat.capture.exported import Exported
from remat.model_solvers.registry import bind
from remat.verification import StepRecord, compare_steps, run_step
from remat_solvers.plan import Offload, Plan
from remat_solvers.problem import Link
from remat_solvers.registry import Entry
from remat_solvers.result import Limits, Result
from remat_solvers.schedule import store_all
from tests.remat.capture.test_exact import check_peak
from tests.remat.models.matrix import METHODS, budgets
from tests.remat.models.table import Case

SECONDS = 1.0
MODELS = {
    case.name: case
    for case in (
        Case("convnet", lambda: (convnet(), (torch.randn(16, 3, 32, 32),))),
        Case("transformer", partial(encoder.encoder, batch=16, vocabulary=64, width=64, layers=2)),
        Case("lstm", partial(recurrent.lstm, batch=256, steps=6, vocabulary=64, width=64, dropout=0.2)),
    )
}
QUICK = [entry for entry in METHODS if not entry.slow]


def convnet() -> nn.Module:
    """Return convolutions with batch norm, in-place ReLU and dropout, which update buffers and draw random numbers."""
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.1))
        for inputs in (3, 8, 8, 8)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@cache
def exported(name: str) -> Exported:
    model, args, kwargs = MODELS[name].make()
    captured = remat.export(model.train(), args, kwargs, unroll_rnn=True)
    return replace(captured, problem=replace(captured.problem, link=Link(10**9, 10**9)))


@cache
def results_of(name: str, method: str) -> tuple[Result, ...]:
    """Return the method's result at every budget."""
    problem, solver = exported(name).problem, bind(method, exported(name))
    return tuple(
        remat_solvers.solve(problem, budget.bytes, solver=solver, limits=Limits(SECONDS)) for budget in budgets(problem)
    )


@cache
def run(name: str, plan: Plan) -> StepRecord:
    """Run one step with the plan, once for all methods that find it."""
    _, args, kwargs = MODELS[name].make()
    return run_step(remat.apply(exported(name), plan), args, kwargs, exported(name))


@pytest.mark.parametrize(
    ("name", "entry"),
    [pytest.param(name, entry, id=f"{name}-{entry.name}") for name in MODELS for entry in METHODS],
)
def test_plans_run_as_predicted_and_bit_equal(name: str, entry: Entry) -> None:
    reference = run(name, store_all(exported(name).problem))
    for plan in {result.plan for result in results_of(name, entry.name) if result.plan is not None}:
        step = run(name, plan)
        check_peak(step, exported(name), plan)
        assert compare_steps(step, reference).equal


@pytest.mark.parametrize("name", MODELS)
def test_methods_find_plans(name: str) -> None:
    """Most methods find a plan at some budget, not all of them the same; some plans offload."""
    plans = {entry.name: {r.plan for r in results_of(name, entry.name) if r.plan is not None} for entry in QUICK}
    assert sum(map(bool, plans.values())) > len(QUICK) / 2
    assert len(set().union(*plans.values())) > len(QUICK)
    offloading = {m for m, found in plans.items() if any(isinstance(a, Offload) for plan in found for a in plan)}
    assert len(offloading) > 2
