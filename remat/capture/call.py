"""What a captured call looked like, and in what a later call differs from it.

A graph is valid for one signature: shapes, strides, dtypes, devices and requires_grad of every tensor, the
values of every other argument, the training flag of every module, and the autocast state.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from remat.capture.trees import Tree, flatten
from remat_solvers.errors import ExportError

__all__ = [
    "Call",
    "ModelSettings",
    "ModelState",
    "Signature",
    "TensorSpec",
    "autocast_state",
    "read_call",
    "read_model",
    "signature_differences",
    "unique_tensors",
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Everything about a tensor but its contents."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]  # 0 in dimensions of size 1, where it means nothing
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @staticmethod
    def of(tensor: Tensor) -> TensorSpec:
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ExportError(
                f"a {kind} tensor among the inputs or parameters: only dense ones can be planned. Make it dense "
                "(to_dense, to_padded_tensor), or move the part of the model that reads it out of the planned module."
            )
        shape = tuple(tensor.shape)
        stride = tuple(0 if n == 1 else s for n, s in zip(shape, tensor.stride(), strict=True))
        return TensorSpec(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad)


@dataclass(frozen=True)
class Signature:
    """What a graph is valid for. Two calls with equal signatures may use the same graph."""

    tree: Tree  # how args and kwargs are nested
    leaves: tuple[Any, ...]  # TensorSpec, a plain value, or the identity of any other object
    same: tuple[int, ...]  # per leaf: the first leaf that is the same tensor
    parameters: tuple[TensorSpec, ...]  # unique parameters and buffers
    training: tuple[bool, ...]  # per module, in the order of Module.modules()
    autocast: tuple[tuple[str, torch.dtype | None], ...]  # per device type: dtype, None where off


@dataclass(frozen=True)
class ModelState:
    """The unique tensors a model owns, by the first name they are registered under."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters, then buffers."""
        return [*self.parameters.values(), *self.buffers.values()]


@dataclass(frozen=True)
class Call:
    """One call of a model, flattened."""

    leaves: list[Any]  # of (args, kwargs)
    tree: Tree
    signature: Signature

    def without_contents(self) -> Call:
        """The same call with stand-ins for its tensors, so that keeping it keeps no memory."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        stand_ins: dict[int, Tensor] = {}
        with mode:
            for leaf in unique_tensors(self.leaves):
                made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
                stand_ins[id(leaf)] = made.requires_grad_(leaf.requires_grad)
        leaves = [stand_ins[id(leaf)] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return Call(leaves, self.tree, self.signature)


_PLAIN = (int, float, complex, bool, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.memory_format)


@dataclass(frozen=True)
class ModelSettings:
    """Plain attributes of a model's modules (`Dropout.p`, `BatchNorm2d.eps`), which its forward may have read."""

    names: tuple[tuple[str, ...], ...]  # per module, in the order of Module.modules()
    values: tuple[Any, ...]
    kinds: tuple[tuple[type, int], ...]  # per module: its class and how many hooks its forward runs

    @staticmethod
    def of(model: nn.Module, set_by_forward: Collection[str]) -> ModelSettings:
        """All but those that forward itself sets, given as paths within the model."""
        names: list[tuple[str, ...]] = []
        values: list[Any] = []
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            own = [
                name
                for name, value in module.__dict__.items()
                if _is_setting(value) and not name.startswith("_") and name != "training"
                if prefix + name not in set_by_forward
            ]
            names.append(tuple(own))
            values.extend(module.__dict__[name] for name in own)
        return ModelSettings(tuple(names), tuple(values), tuple(_kind(module) for module in model.modules()))

    def differences(self, model: nn.Module) -> list[str]:
        """Sentences that name the settings that were changed since."""
        found = [
            f"{path or 'the model'} is a {type(module).__name__} with {_kind(module)[1]} hooks; "
            f"the plan is for a {kind.__name__} with {hooks}"
            for (path, module), (kind, hooks) in zip(model.named_modules(), self.kinds, strict=False)
            if _kind(module) != (kind, hooks)
        ]
        values = iter(self.values)
        for (path, module), names in zip(model.named_modules(), self.names, strict=False):
            for name in names:
                before, after = next(values), module.__dict__.get(name)
                if before is not after and before != after:
                    found.append(f"{path}.{name} is {after!r}; the plan is for {before!r}".removeprefix("."))
        return found

    def match(self, modules: Iterable[nn.Module]) -> bool:
        """Whether they all are as they were."""
        modules = list(modules)
        if [_kind(module) for module in modules] != list(self.kinds):
            return False
        now = [module.__dict__.get(n) for module, names in zip(modules, self.names, strict=False) for n in names]
        return now == list(self.values)


def _kind(module: nn.Module) -> tuple[type, int]:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module), sum(map(len, hooks))


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_setting(v) for v in value)
    return isinstance(value, _PLAIN)


def read_model(model: nn.Module) -> ModelState:
    """The unique parameters and buffers of `model`, tied ones once."""
    return ModelState(dict(model.named_parameters()), dict(model.named_buffers()))


def read_call(model: nn.Module, state: ModelState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Flatten one call and take its signature."""
    leaves, tree = flatten((tuple(args), dict(kwargs)))
    signature = Signature(
        tree=tree,
        leaves=tuple(_leaf_spec(leaf) for leaf in leaves),
        same=_first_same(leaves),
        parameters=tuple(TensorSpec.of(t) for t in state.tensors),
        training=tuple(m.training for m in model.modules()),
        autocast=autocast_state(leaves, state),
    )
    return Call(leaves, tree, signature)


def unique_tensors(leaves: Sequence[Any]) -> list[Tensor]:
    """The distinct tensors among `leaves`, in order of first appearance."""
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())


def autocast_state(leaves: Sequence[Any], state: ModelState) -> tuple[tuple[str, torch.dtype | None], ...]:
    """Autocast per device type that the call touches: (device type, dtype or None where off)."""
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    devices |= {tensor.device.type for tensor in state.tensors} | {"cpu"}
    return tuple(
        (device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
        for device in sorted(devices)
        if device != "meta"
    )


def signature_differences(planned: Signature, called: Signature, model: nn.Module) -> list[str]:
    """Sentences that name in what `called` differs from `planned`."""
    found: list[str] = []
    if planned.tree != called.tree:
        found.append("the arguments are nested otherwise: other positions, keywords, lengths or types")
    else:
        for index, (old, new) in enumerate(zip(planned.leaves, called.leaves, strict=True)):
            found.extend(_leaf_difference(f"argument leaf {index}", old, new))
        if planned.same != called.same:
            found.append("other arguments are the same tensor")
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    for name, before, after in zip(names, planned.parameters, called.parameters, strict=False):
        found.extend(_leaf_difference(name, before, after))
    if len(planned.parameters) != len(called.parameters):
        found.append(f"{len(called.parameters)} parameters and buffers; the plan is for {len(planned.parameters)}")
    if planned.training != called.training:
        found.extend(_training_difference(planned.training, called.training, model))
    if planned.autocast != called.autocast:
        found.append(f"autocast is {_autocast_words(called)}; the plan is for {_autocast_words(planned)}")
    return found


def _leaf_spec(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return TensorSpec.of(leaf)
    if isinstance(leaf, _PLAIN):
        return (type(leaf).__name__, leaf)
    return ("object", id(leaf))


def _first_same(leaves: Sequence[Any]) -> tuple[int, ...]:
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(leaf), i) if isinstance(leaf, Tensor) else i for i, leaf in enumerate(leaves))


def _leaf_difference(name: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if isinstance(old, TensorSpec) and isinstance(new, TensorSpec):
        fields = ("shape", "stride", "dtype", "device", "requires_grad")
        pairs = [(f, getattr(old, f), getattr(new, f)) for f in fields]
        return [f"{name}: {f} is {after}; the plan is for {before}" for f, before, after in pairs if before != after]
    return [f"{name} is {_words(new)}; the plan is for {_words(old)}"]


def _words(spec: Any) -> str:
    if isinstance(spec, TensorSpec):
        return f"a tensor of shape {spec.shape}"
    return f"the object at {spec[1]:#x}" if spec[0] == "object" else repr(spec[1])


def _training_difference(old: Sequence[bool], new: Sequence[bool], model: nn.Module) -> list[str]:
    if len(old) != len(new):
        return [f"the model has {len(new)} modules; the plan is for {len(old)}"]
    changed = [name or "the model" for (name, _), a, b in zip(model.named_modules(), old, new, strict=True) if a != b]
    more = f" and {len(changed) - 1} more modules" if len(changed) > 1 else ""
    return [f"the training mode of {changed[0]}{more} was changed"]


def _autocast_words(signature: Signature) -> str:
    active = [f"{dtype} on {device}" for device, dtype in signature.autocast if dtype is not None]
    return ", ".join(active) if active else "off"
