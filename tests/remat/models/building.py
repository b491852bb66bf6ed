"""Parts of the small models of the tests: their widths, a net of two layers, a module from a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH, WIDTH, HIDDEN = 4, 16, 32


def rows() -> Tensor:
    return torch.randn(BATCH, WIDTH)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), *between, nn.Linear(HIDDEN, WIDTH))


class Lambda(nn.Module):
    """A module from a forward function and named parts, so that a reader sees a feature at a glance."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def seeded(make: Callable[[], Any]) -> Any:
    """Return the result of `make` from generator seed 0; the state of the generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()
