"""The few functions that emitted graphs call beside the model's own ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["coerce", "hold", "restore_rng", "save_rng", "swap_rng"]


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


def swap_rng(device: torch.device, state: Any) -> Any:
    """Set the device's default generator to `state`; returns the state it was in."""
    current = save_rng(device)
    restore_rng(device, state)
    return current


def coerce(tangent: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """`tangent` in the layout the graph was captured for; a copy only where it has another."""
    if tangent.stride() == stride or tangent.numel() <= 1:
        return tangent
    return torch.empty_strided(size, stride, dtype=tangent.dtype, device=tangent.device).copy_(tangent)
