"""The few functions that emitted graphs call beside the model's own ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["hold", "run_with_rng", "save_rng"]


def hold(*values: Any) -> None:
    """Does nothing: the values passed live at least until here."""


def save_rng(device: torch.device) -> Any:
    """State of the device's default generator, kept outside the device allocator."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device).numpy()
    return torch.get_rng_state().numpy().copy()


def restore_rng(device: torch.device, state: Any) -> None:
    """Set the device's default generator to a saved state."""
    tensor = torch.from_numpy(np.asarray(state))
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensor, device)
    else:
        torch.set_rng_state(tensor)


def run_with_rng(device: torch.device, state: Any, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `target` as if the generator were at `state`; the generator is where it was afterwards."""
    current = save_rng(device)
    restore_rng(device, state)
    try:
        return target(*args, **kwargs)
    finally:
        restore_rng(device, current)


def coerce(tangent: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """`tangent` in the layout the graph was captured for; a copy only where it has another."""
    if tangent.stride() == stride or tangent.numel() <= 1:
        return tangent
    return torch.empty_strided(size, stride, dtype=tangent.dtype, device=tangent.device).copy_(tangent)
