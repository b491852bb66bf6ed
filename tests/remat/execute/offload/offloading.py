"""Helpers for the tests of offloading: a model with large activations, plans that offload, and comparisons."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import remat
from remat.capture.exported import Exported
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate

Offloading = tuple[Exported, Plan, nn.Module, Tensor]


class Big(nn.Module):
    """A model whose activations have 1 MiB each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def with_link(exported: Exported) -> Exported:
    """Return the export with a link of 1 GB/s in both directions."""
    return replace(exported, problem=replace(exported.problem, link=Link(10**9, 10**9)))


def offloading_case() -> Offloading:
    """Return `Big` exported, and a plan that offloads every large activation."""
    model, x = Big(), torch.randn(4096, 64)
    exported = with_link(remat.export(model, (x,), costs="roofline"))
    problem = exported.problem
    plan = offloading_plan(
        problem, [i for i, v in enumerate(problem.values) if v.kind == "activation" and v.bytes >= 2**20]
    )
    assert simulate(problem, plan).peak_bytes < baseline(problem).peak_bytes
    return exported, plan, model, x


def offloading_plan(problem: Problem, values: Collection[int]) -> Plan:
    """Return the store-all plan, changed so that each of `values` is resident only while an op computes or reads it."""
    actions: list[Any] = []
    copied: set[int] = set()
    for action in store_all(problem):
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            actions += [Fetch(value) for value in op.inputs if value in copied]
            actions.append(action)
            for value in (*op.inputs, *op.outputs):
                if value in values:
                    actions += [Free(value)] if value in copied else [Offload(value), Free(value)]
                    copied.add(value)
        elif action.value not in copied:
            actions.append(action)
    plan = Plan(actions)
    assert validate(problem, plan) == []
    return plan


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(net(x).sum(), list(net.parameters())))


def bit_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def wait_until(done: Callable[[], bool]) -> None:
    """Wait up to 2 s, until threads have released what they held."""
    for _ in range(200):
        gc.collect()
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("something is still held")
