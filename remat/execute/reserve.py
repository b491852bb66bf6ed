"""Bytes that an optimizer keeps resident, by asking it: one step on tensors without contents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from remat_solvers.errors import InputError

__all__ = ["reserve_of"]


def reserve_of(model: nn.Module, optimizer: Any, *, accumulate: bool) -> int:
    """Bytes of optimizer state, plus those of gradients that stay resident where `accumulate`.

    `optimizer` is None, a torch.optim class (its defaults, with lr=1e-3), or an instance: its state where it has
    stepped already, else what one step would make.
    """
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained) if accumulate else 0
    if optimizer is None:
        return gradients
    if isinstance(optimizer, torch.optim.Optimizer):
        held = _state_bytes(optimizer)
        return gradients + (held or _state_after_step(type(optimizer), optimizer.defaults, _parameters_of(optimizer)))
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return gradients + _state_after_step(optimizer, {"lr": 1e-3}, trained)
    raise InputError(f"optimizer must be a torch.optim.Optimizer or a class of it, not {optimizer!r}")


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _state_after_step(kind: Any, options: dict[str, Any], parameters: list[Tensor]) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True):
        stand_ins = [torch.empty(p.shape, dtype=p.dtype, device=p.device, requires_grad=True) for p in parameters]
        for stand_in in stand_ins:
            stand_in.grad = torch.empty_like(stand_in)
        made = kind(stand_ins, **options)
        made.step()
        return _state_bytes(made)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for t in torch.utils._pytree.tree_leaves(state)
        if isinstance(t, Tensor)
    }
    return sum(storages.values())
