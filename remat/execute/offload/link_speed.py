"""How fast values move between a device and a tier, measured through the engine that will move them."""

from __future__ import annotations

import json
import os
import time

import torch

from remat.allocator import warmed
from remat.capture.costs.cache import read_rows, write_rows
from remat.capture.costs.roofline import cpu_name
from remat.execute.offload.engines import make_engine
from remat.execute.offload.tiers import DiskTier, Tier
from remat_solvers.problem import Link

__all__ = ["measure_link"]

SMALL_BYTES, LARGE_BYTES = 2**16, 2**25
RUNS = 7  # the median of so many counts


def measure_link(device: torch.device, tier: Tier) -> Link:
    """The rates to and from `tier`, in bytes per second, and the latency of a copy; known ones come from the cache.

    Copies of a small and of a large value, each median of several; the line through both gives rate and latency. One
    direction at a time, with nothing computed meanwhile, and on the CPU into warm memory, as ops are measured. Raises
    OffloadError where the tier cannot be used.
    """
    key = _key(device, tier)
    known = read_rows([key]).get(key)
    if known is None:
        with warmed(2 * LARGE_BYTES if device.type == "cpu" else 0):
            small, large = _times(device, tier, SMALL_BYTES), _times(device, tier, LARGE_BYTES)
        to_host, to_device = _rate(small[0], large[0]), _rate(small[1], large[1])
        latency_ns = max(0, small[0] - _copy_ns(to_host), small[1] - _copy_ns(to_device))
        known = (to_host, to_device, latency_ns, 0)
        write_rows({key: known})
    return Link(to_host_bytes_per_s=known[0], to_device_bytes_per_s=known[1], latency_ns=known[2])


def _rate(small_ns: int, large_ns: int) -> int:
    return max(1, (LARGE_BYTES - SMALL_BYTES) * 10**9 // max(1, large_ns - small_ns))


def _copy_ns(rate: int) -> int:
    return SMALL_BYTES * 10**9 // rate


def _times(device: torch.device, tier: Tier, size_bytes: int) -> tuple[int, int]:
    """Median ns of one copy of `size_bytes` to the tier, and of one back."""
    engine = make_engine(device, tier, {0: size_bytes})
    value = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    out, back = [], []
    for _ in range(RUNS + 1):  # the first one warms up
        session = engine.begin()
        begin = _now(device)
        session.offload(0, value)
        session.release(0, value)
        middle = _now(device)
        content = session.fetch(0)
        session.wait_for_fetch(0)
        end = _now(device)
        out.append(middle - begin)
        back.append(end - middle)
        del session, content
    return sorted(out[1:])[RUNS // 2], sorted(back[1:])[RUNS // 2]


def _now(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()


def _key(device: torch.device, tier: Tier) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    where = os.stat(tier.where).st_dev if isinstance(tier, DiskTier) and tier.where.exists() else 0
    return json.dumps(["link", name, tier.name, where, torch.__version__])
