"""Which engine moves the values of a program: by the device its tensors are on, and the tier they go to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from remat.execute.offload.session import OffloadEngine
from remat.execute.offload.tiers import HostTier, Tier
from remat_solvers.errors import ApplyError

__all__ = ["make_engine"]


def make_engine(device: torch.device, tier: Tier, size_bytes: Mapping[int, int]) -> OffloadEngine:
    """The engine for values of `size_bytes` each, from `device` to `tier`. Raises ApplyError where there is none."""
    if device.type == "cpu":
        from remat.execute.offload.threads import ThreadEngine

        return ThreadEngine(tier, size_bytes)
    if device.type == "cuda":
        if not isinstance(tier, HostTier):
            raise ApplyError(f"values on {device} are offloaded to host memory; the tier {tier.name} is for the CPU")
        from remat.execute.offload.streams import CudaDevice, StreamEngine

        return StreamEngine(CudaDevice(device), size_bytes)
    raise ApplyError(f"offloading from {device} is not supported: solve without a link")
