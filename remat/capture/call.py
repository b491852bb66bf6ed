"""The signature of a call: a captured graph is valid for calls with the same signature.

A signature holds the shape, strides, dtype, device and requires_grad of every tensor, the value of every other
argument, the training flag of every module, and the autocast state. `signature_differences` explains to the user why a
later call does not fit.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from remat.capture.trees import Tree, flatten
from remat_solvers.errors import ExportError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The metadata of a dense tensor: everything but its contents."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]  # 0 in dimensions of size 1, whose stride has no meaning
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @staticmethod
    def of(tensor: Tensor) -> TensorSpec:
        """Read the metadata of `tensor`. Raises ExportError where it is sparse or nested."""
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ExportError(
                f"the inputs or parameters include a {kind} tensor, but only dense tensors can be planned. Make it "
                "dense (to_dense, to_padded_tensor), or move the part of the model that reads it out of the planned "
                "module."
            )
        shape = tuple(tensor.shape)
        stride = tuple(0 if n == 1 else s for n, s in zip(shape, tensor.stride(), strict=True))
        return TensorSpec(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad)


@dataclass(frozen=True)
class Signature:
    """Everything that a graph depends on. Two calls with equal signatures may use the same graph."""

    tree: Tree  # how args and kwargs are nested
    leaves: tuple[Any, ...]  # TensorSpec, a plain value, or the identity of any other object
    first_alias: tuple[int, ...]  # per leaf: index of the first leaf that is the same tensor
    parameters: tuple[TensorSpec, ...]  # unique parameters and buffers
    training: tuple[bool, ...]  # per module, in the order of Module.modules()
    autocast: tuple[tuple[str, torch.dtype | None], ...]  # per device type: the dtype, None where it is off


@dataclass(frozen=True)
class ModelState:
    """The unique tensors that a model owns, by the first name they are registered under."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters, then buffers."""
        return [*self.parameters.values(), *self.buffers.values()]


@dataclass(frozen=True)
class Call:
    """One call of a model, with its arguments flattened."""

    leaves: list[Any]  # of (args, kwargs)
    tree: Tree
    signature: Signature

    def without_contents(self) -> Call:
        """Return the same call with fake tensors in place of real ones, so that keeping it keeps no memory."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        fakes: dict[int, Tensor] = {}
        with mode:
            for leaf in unique_tensors(self.leaves):
                fake = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
                fakes[id(leaf)] = fake.requires_grad_(leaf.requires_grad)
        leaves = [fakes[id(leaf)] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return Call(leaves, self.tree, self.signature)


_TORCH_TYPES = (torch.dtype, torch.device, torch.memory_format)
PLAIN_TYPES = (int, float, complex, bool, str, bytes, type(None), enum.Enum, *_TORCH_TYPES)
"""Types whose values are compared by value; objects of other types are compared by identity."""


def read_model(model: nn.Module) -> ModelState:
    """Return the unique parameters and buffers of `model`; tied ones are listed once."""
    return ModelState(dict(model.named_parameters()), dict(model.named_buffers()))


def read_call(model: nn.Module, state: ModelState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Flatten one call of `model` and read its signature. Raises ExportError where a tensor is not dense."""
    leaves, tree = flatten((tuple(args), dict(kwargs)))
    signature = Signature(
        tree=tree,
        leaves=tuple(_leaf_spec(leaf) for leaf in leaves),
        first_alias=_first_aliases(leaves),
        parameters=tuple(TensorSpec.of(t) for t in state.tensors),
        training=tuple(m.training for m in model.modules()),
        autocast=autocast_state(leaves, state),
    )
    return Call(leaves, tree, signature)


def unique_tensors(leaves: Sequence[Any]) -> list[Tensor]:
    """Return the distinct tensors among `leaves`, in order of first appearance."""
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())


def autocast_state(leaves: Sequence[Any], state: ModelState) -> tuple[tuple[str, torch.dtype | None], ...]:
    """Return (device type, autocast dtype or None where it is off) for every device type that the call touches."""
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    devices |= {tensor.device.type for tensor in state.tensors} | {"cpu"}
    return tuple(
        (device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
        for device in sorted(devices)
        if device != "meta"
    )


def signature_differences(planned: Signature, called: Signature, model: nn.Module) -> list[str]:
    """Return one phrase for each way in which the signature `called` differs from `planned`."""
    changes: list[str] = []
    if planned.tree != called.tree:
        changes.append("the arguments are nested differently: positions, keywords, lengths or types have changed")
    else:
        for index, (old, new) in enumerate(zip(planned.leaves, called.leaves, strict=True)):
            changes.extend(_leaf_difference(f"argument leaf {index}", old, new))
        if planned.first_alias != called.first_alias:
            changes.append("different arguments are now the same tensor")
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    for name, before, after in zip(names, planned.parameters, called.parameters, strict=False):
        changes.extend(_leaf_difference(name, before, after))
    if len(planned.parameters) != len(called.parameters):
        changes.append(
            f"the model has {len(called.parameters)} parameters and buffers; the plan is for {len(planned.parameters)}"
        )
    if planned.training != called.training:
        changes.extend(_training_difference(planned.training, called.training, model))
    if planned.autocast != called.autocast:
        changes.append(
            f"autocast is {_describe_autocast(called)}; the plan is for autocast {_describe_autocast(planned)}"
        )
    return changes


def _leaf_spec(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return TensorSpec.of(leaf)
    if isinstance(leaf, PLAIN_TYPES):
        return (type(leaf).__name__, leaf)
    return ("object", id(leaf))


def _first_aliases(leaves: Sequence[Any]) -> tuple[int, ...]:
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(leaf), i) if isinstance(leaf, Tensor) else i for i, leaf in enumerate(leaves))


def _leaf_difference(name: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if isinstance(old, TensorSpec) and isinstance(new, TensorSpec):
        fields = ("shape", "stride", "dtype", "device", "requires_grad")
        pairs = [(f, getattr(old, f), getattr(new, f)) for f in fields]
        return [f"{name}: {f} is {after}; the plan is for {before}" for f, before, after in pairs if before != after]
    return [f"{name} is {_describe_leaf(new)}; the plan is for {_describe_leaf(old)}"]


def _describe_leaf(spec: Any) -> str:
    if isinstance(spec, TensorSpec):
        return f"a tensor of shape {spec.shape}"
    return f"the object at {spec[1]:#x}" if spec[0] == "object" else repr(spec[1])


def _training_difference(old: Sequence[bool], new: Sequence[bool], model: nn.Module) -> list[str]:
    if len(old) != len(new):
        return [f"the model has {len(new)} modules; the plan is for {len(old)}"]
    changed = [name or "the model" for (name, _), a, b in zip(model.named_modules(), old, new, strict=True) if a != b]
    others = f" and {len(changed) - 1} more modules" if len(changed) > 1 else ""
    return [f"the training mode of {changed[0]}{others} was changed"]


def _describe_autocast(signature: Signature) -> str:
    active = [f"{dtype} on {device}" for device, dtype in signature.autocast if dtype is not None]
    return ", ".join(active) if active else "off"
