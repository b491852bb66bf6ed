"""Offloading on a CPU: fetched values are bit-equal to the offloaded ones, and an error names the cause of a fault."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import remat
from remat.capture.exported import Exported
from remat.execute.offload import tiers
from remat.execute.offload.threads import ThreadEngine
from remat.execute.offload.tiers import BLOCK_BYTES, CHUNK_BYTES, Bytes, DiskTier, HostTier, Slab, Tier
from remat.verification import compare_steps, run_step
from remat_solvers.errors import OffloadError
from remat_solvers.generate import random_plan
from remat_solvers.plan import Compute, Offload, Plan
from remat_solvers.schedule import store_all
from remat_solvers.validate import validate
from tests.remat.capture.test_exact import check_peak
from tests.remat.execute.offload.offloading import (
    Offloading,
    bit_equal,
    gradients,
    offloading_case,
    offloading_plan,
    with_link,
)
from tests.remat.modules import CASE

TIERS = pytest.mark.parametrize("tier", [HostTier(), DiskTier()], ids=lambda tier: tier.name)


@dataclass(frozen=True)
class LateTier(HostTier):
    """A tier in host memory whose copies take a random time."""

    random: Random = field(default_factory=lambda: Random(0))
    max_s: float = 0.002

    def slab(self, size_bytes: int) -> Slab:
        return LateSlab(super().slab(size_bytes), self)


class LateSlab(Slab):
    def __init__(self, slab: Slab, tier: LateTier) -> None:
        self._slab, self._tier = slab, tier

    def write(self, offset: int, source: Bytes) -> None:
        time.sleep(self._tier.random.random() * self._tier.max_s)
        self._slab.write(offset, source)

    def read(self, offset: int, target: Bytes) -> None:
        target[:] = 0xFF
        time.sleep(self._tier.random.random() * self._tier.max_s)
        self._slab.read(offset, target)


def exported_case(name: str) -> tuple[Exported, nn.Module, Any, Any]:
    model, args, kwargs = CASE[name].make()
    return with_link(remat.export(model.train(), args, kwargs)), model, args, kwargs


@TIERS
@pytest.mark.parametrize("name", ["batch-norm", "two-heads", "gru-dropout", "gpt2", "vit"])
def test_random_plans_are_bit_equal_and_their_peaks_as_predicted(name: str, tier: Tier) -> None:
    exported, _, args, kwargs = exported_case(name)
    problem = exported.problem
    reference = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    for seed in range(2):
        plan = random_plan(problem, seed)
        assert validate(problem, plan) == []
        step = run_step(remat.apply(exported, plan, tier=tier), args, kwargs, exported)
        assert compare_steps(step, reference).equal
        check_peak(step, exported, plan)


def test_late_copies_never_change_a_gradient() -> None:
    """Two thousand steps run, two at a time, with copies of random duration."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    exported = with_link(remat.export(model, (x,), costs="roofline"))
    tier = LateTier(max_s=0.0002)
    nets = [remat.apply(exported, random_plan(exported.problem, seed), tier=tier) for seed in range(10)]
    for step in range(1000):
        net = nets[step % len(nets)]
        torch.manual_seed(step)
        expected = torch.autograd.grad(model(x).sum() + model(x).square().sum(), list(model.parameters()))
        torch.manual_seed(step)
        first, second = net(x), net(x)
        found = torch.autograd.grad(first.sum() + second.square().sum(), list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.fixture
def offloading() -> Offloading:
    return offloading_case()


@TIERS
def test_values_of_any_size_do_not_overlap(tier: Tier) -> None:
    """Neighbours do not change each other, whether or not they fill whole blocks."""
    random = Random(0)
    bounds = [BLOCK_BYTES, 3 * BLOCK_BYTES, CHUNK_BYTES]
    sizes = [max(0, random.choice(bounds) + random.choice([-1, 0, 1])) for _ in range(12)] + [0, 1, 5, BLOCK_BYTES // 2]
    random.shuffle(sizes)
    offsets = [sum(sizes[:k]) for k in range(len(sizes))]
    values = [np.frombuffer(random.randbytes(size), np.uint8) for size in sizes]
    slab = tier.slab(sum(sizes))
    for _ in range(2):
        for k in random.sample(range(len(sizes)), len(sizes)):
            slab.write(offsets[k], values[k])
    for offset, value in zip(offsets, values, strict=True):
        content = np.empty_like(value)
        slab.read(offset, content)
        assert (content == value).all()


def test_missing_host_memory_is_an_error(offloading: Offloading, monkeypatch: pytest.MonkeyPatch) -> None:
    exported, plan, _, x = offloading

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("Unable to allocate")

    net = remat.apply(exported, plan)
    monkeypatch.setattr(tiers.np, "empty", refuse)
    with pytest.raises(OffloadError, match=r"host failed for \d+ bytes: no memory"):
        net(x)


def test_a_retained_graph_has_a_second_backward(offloading: Offloading) -> None:
    exported, plan, model, x = offloading
    loss = remat.apply(exported, plan)(x)
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert bit_equal(list(first), list(second))
    assert bit_equal(list(first), gradients(model, x))


def test_copies_run_beside_compute() -> None:
    """A copy and the computing thread run at the same time, and a wait ends when the copy does."""
    started, done = threading.Event(), threading.Event()

    class WaitingSlab(Slab):
        def write(self, offset: int, source: Bytes) -> None:
            started.set()
            assert done.wait(10)

        def read(self, offset: int, target: Bytes) -> None:
            target[:] = 7

    class WaitingTier(HostTier):
        def slab(self, size_bytes: int) -> Slab:
            return WaitingSlab()

    session = ThreadEngine(WaitingTier(), {0: 16}).begin()
    value = torch.zeros(4)
    session.offload(0, value)
    assert started.wait(10)  # the copy runs while this thread continues
    done.set()
    session.release(0, value)
    content = session.fetch(0)
    session.wait_for_fetch(0)
    assert np.all(torch.as_tensor(content).numpy().view(np.uint8) == 7)


class Empty(nn.Module):
    """A model with a value of zero bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.second(h).sum() + self.second(h[:0] * 2).tanh().sum()


@TIERS
def test_values_without_bytes_are_offloaded_too(tier: Tier) -> None:
    model, x = Empty(), torch.randn(4, 8)
    exported = with_link(remat.export(model, (x,), costs="roofline"))
    problem = exported.problem
    activations = [v for v, value in enumerate(problem.values) if value.kind == "activation"]
    plan = offloading_plan(problem, [v for v in activations if v not in problem.results])
    assert any(isinstance(a, Offload) and not problem.values[a.value].bytes for a in plan)
    assert bit_equal(gradients(remat.apply(exported, plan, tier=tier), x), gradients(model, x))


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-dropout"])
def test_an_offloaded_tape_is_kept_with_a_retained_graph(name: str) -> None:
    exported, model, args, kwargs = exported_case(name)
    problem = exported.problem
    tapes = [v for v, value in enumerate(problem.values) if value.bytes and "rnn_forward" in value.name]
    offloaded = {v for v in tapes if v not in problem.results}
    plan = Plan(
        step
        for action in store_all(problem)
        for step in (
            action,
            *(Offload(v) for v in offloaded if isinstance(action, Compute) and v in problem.ops[action.op].outputs),
        )
    )
    assert offloaded
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss_of(net: nn.Module) -> Tensor:
        torch.manual_seed(0)
        output = net(*args, **kwargs)
        return (output[0] if isinstance(output, tuple) else output).sum()

    expected = list(torch.autograd.grad(loss_of(remat.apply(exported, store_all(problem))), parameters))
    loss = loss_of(remat.apply(exported, plan))
    assert bit_equal(list(torch.autograd.grad(loss, parameters, retain_graph=True)), expected)
    assert bit_equal(list(torch.autograd.grad(loss, parameters)), expected)
