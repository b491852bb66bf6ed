"""Counts the bytes that an optimizer keeps resident, by running one step of it on tensors without contents."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from remat_solvers.errors import InputError


def reserve_of(model: nn.Module, optimizer: Any, *, accumulate: bool) -> int:
    """Bytes of optimizer state, and with `accumulate` those of gradients, which then stay resident.

    `optimizer` is None, a torch.optim class (with its defaults and lr=1e-3), or an instance. An instance that has
    stepped has its state; for others it is the state that one step would create. Raises InputError where that cannot
    be found out.
    """
    trainable: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trainable) if accumulate else 0
    if optimizer is None:
        return gradients
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        optimizer_class: Any = optimizer
        with mode:
            optimizer = optimizer_class([_stand_in(p) for p in trainable], lr=1e-3)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer must be a torch.optim.Optimizer or a class of it, not {optimizer!r}")
    return gradients + (_state_bytes(optimizer) or _after_a_step(optimizer, mode))


def _after_a_step(optimizer: torch.optim.Optimizer, mode: FakeTensorMode) -> int:
    """Bytes of state that a first step of `optimizer` would create. The optimizer itself does not step."""
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    twin.__dict__.update(state=defaultdict(dict), _optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
    with mode, _ValuesAreOne(), torch.enable_grad():  # type: ignore[no-untyped-call]
        twin.param_groups = [
            {**group, "params": [_stand_in(p) for p in group["params"]]} for group in optimizer.param_groups
        ]
        try:
            type(optimizer).step(twin)  # on the class: a scheduler wraps the instance's
        except Exception as error:
            name = type(optimizer).__name__
            raise InputError(
                f"the bytes of the state of {name} are unknown ({error}): pass its bytes as reserve_bytes"
            ) from error
        return _state_bytes(twin)


def _stand_in(parameter: Tensor) -> Tensor:
    fake = torch.empty_like(parameter, requires_grad=parameter.requires_grad)
    if parameter.requires_grad:
        fake.grad = torch.empty_like(fake)
    return fake


class _ValuesAreOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives 1 to an optimizer that reads the value of a tensor, such as a norm; the size of its state is the same."""

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
