"""Bytes that an optimizer keeps resident, by asking it: one step on tensors without contents."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        make: Any = optimizer
        with mode:
            optimizer = make([_stand_in(p) for p in trained], lr=1e-3)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer must be a torch.optim.Optimizer or a class of it, not {optimizer!r}")
    return gradients + (_state_bytes(optimizer) or _after_a_step(optimizer, mode))


def _after_a_step(optimizer: torch.optim.Optimizer, mode: FakeTensorMode) -> int:
    """Bytes of state that a first step of `optimizer`, which is left alone, would make."""
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    twin.__dict__.update(state=defaultdict(dict), _optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
    with mode, _AnyValue(), torch.enable_grad():  # type: ignore[no-untyped-call]
        twin.param_groups = [
            {**group, "params": [_stand_in(p) for p in group["params"]]} for group in optimizer.param_groups
        ]
        try:
            type(optimizer).step(twin)  # on the class: a scheduler wraps the instance's
        except Exception as error:
            name = type(optimizer).__name__
            raise InputError(
                f"what {name} keeps cannot be found out ({error}): pass its bytes as reserve_bytes"
            ) from error
        return _state_bytes(twin)


def _stand_in(parameter: Tensor) -> Tensor:
    made = torch.empty_like(parameter, requires_grad=parameter.requires_grad)
    if parameter.requires_grad:
        made.grad = torch.empty_like(made)
    return made


class _AnyValue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An optimizer that asks for the value of a tensor, a norm say, is told 1; what it keeps does not depend on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return 1.0


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for t in torch.utils._pytree.tree_leaves(state)
        if isinstance(t, Tensor)
    }
    return sum(storages.values())
