"""A net whose activations all leave, and what the tests of offloading compare."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import remat
from remat.capture.exported import Exported
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate

Offloading = tuple[Exported, Plan, nn.Module, Tensor]


class Big(nn.Module):
    """Layers of 1 MiB activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def offloading_case() -> tuple[Exported, Plan, nn.Module, Tensor]:
    """A plan that sends every activation away and fetches it where it is read."""
    model, x = Big(), torch.randn(4096, 64)
    exported = remat.export(model, (x,), costs="roofline")
    problem = replace(exported.problem, link=Link(10**9, 10**9))
    actions: list[Any] = []
    copied: set[int] = set()
    for action in store_all(problem):
        if isinstance(action, Compute):
            for value in problem.ops[action.op].inputs:
                if value in copied:
                    actions.append(Fetch(value))
            actions.append(action)
            sent = [v for v in (*problem.ops[action.op].inputs, *problem.ops[action.op].outputs) if v in away(problem)]
            for value in sent:
                if value not in copied:
                    actions.append(Offload(value))
                    copied.add(value)
                actions.append(Free(value))
        elif action.value not in copied:
            actions.append(action)
    plan = Plan(actions)
    assert validate(problem, plan) == []
    assert simulate(problem, plan).peak_bytes < baseline(problem).peak_bytes
    return replace(exported, problem=problem), plan, model, x


def away(problem: Any) -> set[int]:
    return {i for i, v in enumerate(problem.values) if v.kind == "activation" and v.bytes >= 2**20}


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(net(x), list(net.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def settled(done: Callable[[], bool]) -> None:
    """Wait, for a while, until threads have let go of what they held."""
    for _ in range(200):
        gc.collect()
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("still held")
