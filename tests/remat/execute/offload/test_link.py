"""The link to a tier is stated, or it is measured once per machine through the engine that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import remat
from remat.execute.offload import link_speed
from remat.execute.offload.link_speed import LARGE_BYTES, SMALL_BYTES, measure_link
from remat.execute.offload.tiers import DiskTier, HostTier
from remat_solvers.errors import ApplyError, InputError
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link
from remat_solvers.simulate import copy_ns
from tests.remat.execute.offload.offloading import bit_equal, gradients

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("link", [Link(2 * 10**9, 10**9, 5_000), Link(3 * 10**7, 7 * 10**8, 0)])
def test_rates_and_latency_are_read_from_two_sizes(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(device: torch.device, tier: object, size_bytes: int) -> tuple[int, int]:
        rates = (link.to_host_bytes_per_s, link.to_device_bytes_per_s)
        offload_ns, fetch_ns = (copy_ns(size_bytes, rate, link.latency_ns) for rate in rates)
        return offload_ns, fetch_ns

    monkeypatch.setattr(link_speed, "copy_times", times)
    found = measure_link(CPU, HostTier())
    for size in (SMALL_BYTES, 10**6, LARGE_BYTES, 10**9):
        for measured, stated in (
            (found.to_host_bytes_per_s, link.to_host_bytes_per_s),
            (found.to_device_bytes_per_s, link.to_device_bytes_per_s),
        ):
            expected = copy_ns(size, stated, link.latency_ns)
            assert copy_ns(size, measured, found.latency_ns) == pytest.approx(expected, rel=1e-4, abs=2)


def test_each_tier_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, calls = link_speed.copy_times, []

    def count(device: torch.device, tier: HostTier | DiskTier, size_bytes: int) -> tuple[int, int]:
        calls.append((tier.name, size_bytes))
        return real(device, tier, size_bytes)

    monkeypatch.setattr(link_speed, "copy_times", count)
    for tier in (HostTier(), DiskTier(tmp_path)):
        first = measure_link(CPU, tier)
        assert measure_link(CPU, tier) == first
        assert min(first.to_host_bytes_per_s, first.to_device_bytes_per_s) > 10**6
    assert len(calls) == 4


def test_solve_takes_a_rate_or_measures() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert remat.solve(model, "100%", (x,), link="25GB/s", costs="roofline").problem.link == Link(
        25 * 10**9, 25 * 10**9
    )
    assert remat.solve(model, "100%", (x,), costs="roofline").problem.link is None
    measured = remat.solve(model, "100%", (x,), link="auto", costs="roofline").problem.link
    assert measured == measure_link(CPU, HostTier())
    with pytest.raises(InputError, match="not a rate"):
        remat.solve(model, "100%", (x,), link="fast")


def test_a_plan_that_offloads_values_runs_without_a_stated_link() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(2, 4)
    exported = remat.export(model, (x,), costs="roofline")
    (value,) = exported.problem.ops[1].outputs
    actions = list(remat.solve(model, "100%", (x,), costs="roofline").plan)
    position = next(
        i for i, a in enumerate(actions) if isinstance(a, Compute) and value in exported.problem.ops[a.op].outputs
    )
    plan = Plan([*actions[: position + 1], Offload(value), Free(value), Fetch(value), *actions[position + 1 :]])
    net = remat.apply(exported, plan)
    assert bit_equal(gradients(net, x), gradients(model, x))


def test_a_device_without_offloading_is_refused() -> None:
    from remat.execute.offload.engines import make_engine

    with pytest.raises(ApplyError, match="offloading from meta is not supported"):
        make_engine(torch.device("meta"), HostTier(), {0: 1})
    with pytest.raises(ApplyError, match="the tier disk is supported on the CPU"):
        make_engine(torch.device("cuda"), DiskTier(), {0: 1})
