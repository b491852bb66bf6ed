"""The functions that emitted graphs call beside the ops of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hold(*values: Any) -> None:
    """Do nothing: the arguments stay resident until this call."""


def save_rng(device: torch.device) -> Any:
    """The state of the device's default generator, in memory outside the device allocator."""
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


RNG_LOCK = threading.RLock()
"""Held while a planned step draws or replays: threads share the generator, and a replay needs it undisturbed."""


@cache
def drawing(target: Callable[..., Any]) -> Callable[..., Any]:
    """The random op `target`, drawing from the current state of the generator."""

    def draw(*args: Any, **kwargs: Any) -> Any:
        with RNG_LOCK:
            return target(*args, **kwargs)

    return draw


@cache
def recording(target: Callable[..., Any]) -> Callable[..., Any]:
    """The random op `target`, returning its result and the generator state that it drew from, to be replayed."""

    def draw_and_record(device: torch.device, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        with RNG_LOCK:
            state = save_rng(device)
            return target(*args, **kwargs), state

    return draw_and_record


@cache
def replaying(target: Callable[..., Any]) -> Callable[..., Any]:
    """The random op `target`, drawing from a recorded state; the generator is left as it was."""

    def replay(device: torch.device, state: Any, /, *args: Any, **kwargs: Any) -> Any:
        with RNG_LOCK:
            current = save_rng(device)
            restore_rng(device, state)
            try:
                return target(*args, **kwargs)
            finally:
                restore_rng(device, current)

    return replay


def coerce(tangent: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """`tangent` in the layout that the graph was captured for; copied only where its own is another."""
    if tangent.stride() == stride or tangent.numel() <= 1:
        return tangent
    return torch.empty_strided(size, stride, dtype=tangent.dtype, device=tangent.device).copy_(tangent)
