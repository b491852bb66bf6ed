"""Measurement of a link between a device and a tier, through the engine that offloads over it."""

from __future__ import annotations

import json
import os
import time

import torch

from remat.allocator import warm_heap
from remat.capture.costs.cache import device_name, read_rows, write_rows
from remat.execute.offload.engines import make_engine
from remat.execute.offload.tiers import DiskTier, Tier
from remat_solvers.problem import Link

SMALL_BYTES, LARGE_BYTES = 2**16, 2**25
RUNS = 7  # of which the median is used


def measure_link(device: torch.device, tier: Tier) -> Link:
    """Return the rates to and from `tier`, in bytes per second, and the latency of a copy.

    A small and a large value are copied; the line through the two median times gives rate and latency. One direction is
    measured at a time, while nothing is computed, and on the CPU into warm memory, as ops are. The result is read from
    the cache where it is known. Raises OffloadError where the tier cannot be used.
    """
    key = _key(device, tier)
    known = read_rows([key]).get(key)
    if known is None:
        with warm_heap(2 * LARGE_BYTES if device.type == "cpu" else 0):
            small, large = copy_times(device, tier, SMALL_BYTES), copy_times(device, tier, LARGE_BYTES)
        to_host, to_device = _rate(small[0], large[0]), _rate(small[1], large[1])
        latency_ns = max(0, small[0] - _copy_ns(to_host), small[1] - _copy_ns(to_device))
        known = (to_host, to_device, latency_ns, 0)
        write_rows({key: known})
    return Link(to_host_bytes_per_s=known[0], to_device_bytes_per_s=known[1], latency_ns=known[2])


def _rate(small_ns: int, large_ns: int) -> int:
    return max(1, (LARGE_BYTES - SMALL_BYTES) * 10**9 // max(1, large_ns - small_ns))


def _copy_ns(rate: int) -> int:
    return SMALL_BYTES * 10**9 // rate


def copy_times(device: torch.device, tier: Tier, size_bytes: int) -> tuple[int, int]:
    """Return the median times of a copy of `size_bytes` to the tier, and of one back, in ns."""
    engine = make_engine(device, tier, {0: size_bytes})
    value = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    offload_ns, fetch_ns = [], []
    for _ in range(RUNS + 1):  # the first run warms up
        session = engine.begin()
        begin = _now_ns(device)
        session.offload(0, value)
        session.release(0, value)
        middle = _now_ns(device)
        content = session.fetch(0)
        session.wait_for_fetch(0)
        end = _now_ns(device)
        offload_ns.append(middle - begin)
        fetch_ns.append(end - middle)
        del session, content
    return sorted(offload_ns[1:])[RUNS // 2], sorted(fetch_ns[1:])[RUNS // 2]


def _now_ns(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()


def _key(device: torch.device, tier: Tier) -> str:
    disk = os.stat(tier.where).st_dev if isinstance(tier, DiskTier) and tier.where.exists() else 0
    return json.dumps(["link", device_name(device), tier.name, disk, torch.__version__])
