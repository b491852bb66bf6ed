"""What the tests of planned modules share: plans that recompute a lot, and what a step leaves behind."""

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
    """Exported for one call, with estimated costs."""
    return remat.export(model, args, kwargs, costs="roofline")


def storing_all(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> RematModule:
    exported = remat.export(model, args, kwargs, costs="roofline")
    return remat.apply(exported, store_all(exported.problem))


def recomputing(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, seed: int = 1
) -> RematModule:
    """By a random plan: values are freed and computed again wherever chance has it."""
    exported = remat.export(model, args, kwargs, costs="roofline")
    net = remat.apply(exported, random_plan(exported.problem, seed))
    assert recomputations(net.plan) > 0
    return net


PLANS = pytest.mark.parametrize("plan", [storing_all, recomputing], ids=["store-all", "recompute"])
"""A test of a planned module, once for a plan that recomputes nothing and once for one that recomputes a lot."""


def recomputations(plan: Plan) -> int:
    computed = plan.sequence
    return len(computed) - len(set(computed))


def solved(model: nn.Module, args: Sequence[Any], budget: int | str = "80%", **options: Any) -> RematModule:
    return remat.solve(model, budget, args, **({"costs": "roofline"} | options))


def training_loss(output: Any) -> Tensor:
    """The model's own loss where it returns one, else one made of all outputs."""
    loss = getattr(output, "loss", None)
    return loss_of(output) if loss is None else loss


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def left_behind(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Output, gradients, state and generator after one step from a fixed generator state."""
    torch.manual_seed(1)
    output = net(*args, **(kwargs or {}))
    training_loss(output).backward()
    after = torch.get_rng_state()
    return {"output": training_loss(output).detach(), "generator": after} | gradients_of(net) | state_of(net)


def different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names whose tensors are not bit-equal."""
    assert ours.keys() == theirs.keys()
    return [name for name, ours_ in ours.items() if not same(ours_, theirs[name])]


def same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))
