"""Choice of the engine that offloads the values of a program: by their device, and by the tier that they go to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from remat.execute.offload.session import OffloadEngine
from remat.execute.offload.tiers import HostTier, Tier
from remat_solvers.errors import ApplyError


def make_engine(device: torch.device, tier: Tier, size_bytes: Mapping[int, int]) -> OffloadEngine[Any]:
    """Return an engine that offloads from `device` to `tier`. Raises ApplyError where there is none.

    size_bytes: the bytes of each value that is offloaded.
    """
    if device.type == "cpu":
        from remat.execute.offload.threads import ThreadEngine

        return ThreadEngine(tier, size_bytes)
    if device.type == "cuda":
        if not isinstance(tier, HostTier):
            raise ApplyError(
                f"values on {device} are offloaded to host memory only: the tier {tier.name} is supported on the CPU"
            )
        from remat.execute.offload.streams import CudaDevice, StreamEngine

        return StreamEngine(CudaDevice(device), size_bytes)
    raise ApplyError(f"offloading from {device} is not supported: solve without a link")
