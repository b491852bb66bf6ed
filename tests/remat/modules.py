"""Helpers for the tests of planned modules: modules whose plan recomputes a lot, and records of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

import remat
from remat.capture.exported import Exported
from remat.execute.module import RematModule
from remat_solvers.generate import random_plan
from remat_solvers.plan import Plan
from remat_solvers.schedule import store_all
from tests.remat.models.table import CASES, Case, loss_of

CASE = {case.name: case for case in CASES}
WIDTH, ROWS = 8, 64

Plans: TypeAlias = Callable[..., RematModule]


def layers(*more: nn.Module) -> nn.Sequential:
    """Six blocks with batch norm, dropout and an in-place op; most of a step's memory is activations."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        blocks = [
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Dropout(0.2))
            for _ in range(6)
        ]
        return nn.Sequential(*blocks, *more)


def batch(seed: int = 0, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def sequential() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return layers(), (batch(),)


CASE["sequential"] = Case("sequential", sequential)


def roofline(model: nn.Module, *args: Any, **kwargs: Any) -> Exported:
    """Export the model for one call, with estimated costs."""
    return remat.export(model, args, kwargs, costs="roofline")


def storing_all(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> RematModule:
    exported = remat.export(model, args, kwargs, costs="roofline")
    return remat.apply(exported, store_all(exported.problem))


def recomputing(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, seed: int = 1
) -> RematModule:
    """Return the model with a random plan, which frees and recomputes values at random."""
    exported = remat.export(model, args, kwargs, costs="roofline")
    net = remat.apply(exported, random_plan(exported.problem, seed))
    assert recomputations(net.plan) > 0
    return net


PLANS = pytest.mark.parametrize("plan", [storing_all, recomputing], ids=["store-all", "recompute"])
"""Runs a test of a planned module with a plan that recomputes nothing, and with one that recomputes a lot."""


def recomputations(plan: Plan) -> int:
    computed = plan.sequence
    return len(computed) - len(set(computed))


def solved(model: nn.Module, args: Sequence[Any], budget: int | str = "80%", **options: Any) -> RematModule:
    return remat.solve(model, budget, args, **({"costs": "roofline"} | options))


def training_loss(output: Any) -> Tensor:
    """The model's own loss where it returns one, otherwise a scalar of all outputs."""
    loss = getattr(output, "loss", None)
    return loss_of(output) if loss is None else loss


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run_and_record(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run one step from a fixed generator state, and return its output, gradients, state and generator state."""
    torch.manual_seed(1)
    output = net(*args, **(kwargs or {}))
    training_loss(output).backward()
    after = torch.get_rng_state()
    return {"output": training_loss(output).detach(), "generator": after} | gradients_of(net) | state_of(net)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names whose tensors are not bit-equal."""
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not bit_equal(value, theirs[name])]


def bit_equal(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))
