"""Calls of single ops on synthetic inputs, which have the layouts that tracing found.

Costs are measured on such calls, and real outputs are compared with traced ones. The user's tensors and generators are
never used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from remat.capture.rnn.ops import RUNTIME_CALLS, is_tape
from remat_solvers.errors import ExportError

READS_WHOLE_STORAGE: frozenset[Any] = frozenset({torch.ops.aten.copy.default})
"""Ops that read the whole storage of their first argument."""


def synthetic_call(node: fx.Node, *, repeatable: bool = False) -> Callable[[], object]:
    """Return a call of the op `node` on synthetic inputs. It may be called several times only where `repeatable`.

    The call raises ExportError where the op fails on these inputs.
    """
    target: Any = RUNTIME_CALLS.get(node.target, node.target)
    inputs: dict[fx.Node, Any] = {}

    def value_of(read: fx.Node) -> Any:
        if read not in inputs:
            whole = node.target in READS_WHOLE_STORAGE and read is node.args[0]
            inputs[read] = _like_with_whole_storage(read.meta["val"]) if whole else _synthetic(read, repeatable)
        return inputs[read]

    args = _with_own_generators(fx.map_arg(node.args, value_of))
    kwargs = _with_own_generators(fx.map_arg(node.kwargs, value_of))

    def call() -> object:
        try:
            with torch.no_grad(), torch._C._DisableAutocast():
                return target(*args, **kwargs)
        except Exception as error:
            raise ExportError(
                f"{node.target} could not be run on synthetic inputs ({error}); use costs='roofline'"
            ) from error

    return call


def _with_own_generators(arguments: Any) -> Any:
    """Replace the user's generators by others, because the call draws from them."""
    return torch.utils._pytree.tree_map_only(torch.Generator, lambda user: torch.Generator(user.device), arguments)


def _synthetic(node: fx.Node, repeatable: bool) -> Any:
    """Return a synthetic result of `node`; of a constant of the graph, the constant."""
    if node.op == "get_attr":
        constant: Any = node.graph.owning_module
        for name in str(node.target).split("."):
            constant = getattr(constant, name)
        return constant
    if is_tape(node):
        forward = node.args[0]
        assert isinstance(forward, fx.Node)
        tape = synthetic_call(forward)()[-1]  # type: ignore[index]
        tape.keep = repeatable
        return tape
    return torch.utils._pytree.tree_map_only(Tensor, _like, node.meta["val"])


def _like_with_whole_storage(fake: Tensor) -> Tensor:
    """Return a tensor like `_like`, at the same offset in a storage of the same size as that of `fake`."""
    base = torch.zeros(fake.untyped_storage().nbytes() // fake.element_size(), dtype=fake.dtype, device=fake.device)
    return base.as_strided(fake.shape, fake.stride(), fake.storage_offset())


def _like(fake: Tensor) -> Tensor:
    """Return a real tensor of the shape, strides, dtype and device of `fake`.

    Integers are 0, which is a valid index; numbers are 0.5, with which no op over- or underflows.
    """
    extent = 1 + sum((n - 1) * s for n, s in zip(fake.shape, fake.stride(), strict=True)) if fake.numel() else 0
    base = torch.empty(extent, dtype=fake.dtype, device=fake.device)
    base.fill_(0.5 if fake.is_floating_point() or fake.is_complex() else fake.dtype is torch.bool)
    return base.as_strided(fake.shape, fake.stride())
