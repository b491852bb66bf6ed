"""Wrong arguments in a call of the API: each raises one clear error, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import remat
from remat.verification import compare_steps, run_step
from remat_solvers.schedule import store_all

X = torch.ones(4, 8)
MODEL = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remat.solve(lambda x: x, "60%", (X,)), "the model must be a torch.nn.Module, not function"),
        (lambda: remat.export(None, (X,)), "the model must be a torch.nn.Module, not NoneType"),
        (
            lambda: remat.solve(MODEL, "60%", X),
            r"args must be a tuple of positional arguments, such as \(x,\), not Tensor",
        ),
        (lambda: remat.solve(MODEL, "60%", (X,), reserve_bytes="2GiB"), "reserve_bytes is a number of bytes"),
        (lambda: remat.solve(MODEL, "60%", (X,), limits=5), "limits is a remat.Limits"),
        (lambda: remat.apply(MODEL, []), "apply takes what remat.export returns, not Linear"),
        (lambda: remat.apply(remat.export(MODEL, (X,), costs="roofline"), None), "a plan is a Plan"),
        (lambda: remat.verify(MODEL, 5, (X,)), "a plan is a Plan"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(remat.InputError, match=message):
        call()


def test_sparse_gradients_are_refused_with_advice() -> None:
    with pytest.raises(remat.ExportError, match="sparse=False"):
        remat.export(nn.Embedding(10, 4, sparse=True), (torch.arange(4),), costs="roofline")


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(checkpoint(lambda h: torch.dropout(self.a(h).tanh(), 0.5, True), x, use_reentrant=True))


def test_the_plan_replaces_reentrant_checkpoints() -> None:
    model = Checkpointed()
    exported = remat.export(model, (X.clone().requires_grad_(),), costs="roofline")
    targets = [op.target for op in exported.problem.ops]
    assert targets.count("aten.tanh.default") == 1
    net = remat.apply(exported, store_all(exported.problem))
    args = (X.clone().requires_grad_(),)
    assert compare_steps(run_step(net, args, {}, exported), run_step(model, args, {}, exported)).equal
