"""A step takes the time that `simulate` predicts, with ops of known time and a tier that has the rate of its link."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import remat
from remat.execute.offload.tiers import Bytes, HostTier, Slab
from remat_solvers.plan import Fetch
from remat_solvers.problem import Link
from remat_solvers.schedule import baseline
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.solving import solve

OP_NS = 40_000_000  # mostly sleep, so that neither other processes nor the number of cores change it much
LAYERS, ROWS, WIDTH = 5, 256, 1024  # activations of 1 MiB
TRIES = 3


T = TypeVar("T")


def paced(nanoseconds: int, work: Callable[[], T]) -> T:
    """Run `work`, and return its result when `nanoseconds` have passed in total."""
    end = time.perf_counter() + nanoseconds / 1e9
    result = work()
    time.sleep(max(0.0, end - time.perf_counter()))
    return result


@torch.library.custom_op("remat_tests::slow", mutates_args=())
def slow(x: Tensor) -> Tensor:
    return paced(OP_NS, x.sin)


@torch.library.custom_op("remat_tests::slow_backward", mutates_args=())
def slow_backward(gradient: Tensor, x: Tensor) -> Tensor:
    return paced(OP_NS, lambda: gradient * x.cos())


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    return slow_backward(gradient, *ctx.saved_tensors)


slow.register_fake(torch.empty_like)
slow_backward.register_fake(lambda gradient, x: torch.empty_like(x))
slow.register_autograd(_backward, setup_context=_save)


class Slow(nn.Module):
    """A model whose layers take OP_NS each, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        for _ in range(LAYERS):
            x = slow(x)
        return x.sum()


@dataclass(frozen=True)
class Throttled(HostTier):
    """A tier in host memory whose copies take the time that a link states."""

    link: Link

    def slab(self, size_bytes: int) -> Slab:
        return ThrottledSlab(super().slab(size_bytes), self.link)


class ThrottledSlab(Slab):
    def __init__(self, slab: Slab, link: Link) -> None:
        self._slab, self._link = slab, link

    def write(self, offset: int, source: Bytes) -> None:
        rate, latency_ns = self._link.to_host_bytes_per_s, self._link.latency_ns
        paced(copy_ns(len(source), rate, latency_ns), lambda: self._slab.write(offset, source))

    def read(self, offset: int, target: Bytes) -> None:
        rate, latency_ns = self._link.to_device_bytes_per_s, self._link.latency_ns
        paced(copy_ns(len(target), rate, latency_ns), lambda: self._slab.read(offset, target))


@pytest.mark.parametrize("solver", ["swap-only", "vdnn"])
@pytest.mark.parametrize(
    ("link", "waits"),
    [
        (Link(5 * 10**7, 5 * 10**7, 1_000_000), False),  # a copy takes 22 ms, beside ops of 40 ms
        (Link(2 * 10**7, 10**7, 0), True),  # 52 ms out and 105 ms back
    ],
)
def test_the_step_takes_the_time_of_its_replay(link: Link, waits: bool, solver: str) -> None:
    model, x = Slow(), torch.ones(ROWS, WIDTH)
    exported = remat.export(model, (x,), costs="roofline")
    ops = tuple(replace(op, time_ns=OP_NS if "slow" in op.target else 0) for op in exported.problem.ops)
    problem = replace(exported.problem, ops=ops, link=link)
    unmodified = baseline(problem)
    assert unmodified.time_ns == 2 * LAYERS * OP_NS
    result = solve(problem, int(0.75 * unmodified.peak_bytes), solver=solver)
    assert result.plan is not None
    assert any(isinstance(action, Fetch) for action in result.plan)
    replayed = simulate(problem, result.plan)
    assert (replayed.wait_ns > 0.15 * unmodified.time_ns) is waits
    net = remat.apply(replace(exported, problem=problem), result.plan, tier=Throttled(link))
    errors = [abs(_seconds(net, x) * 1e9 / replayed.time_ns - 1) for _ in range(TRIES)]
    assert min(errors) <= 0.15, errors


def _seconds(net: nn.Module, x: Tensor) -> float:
    begin = time.perf_counter()
    net(x).backward()
    return time.perf_counter() - begin
