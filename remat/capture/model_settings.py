"""Settings of a model's modules that its forward may read, and that are fixed in a captured graph.

They are plain attributes such as `Dropout.p`, the class of every module and the number of its hooks. A planned step
runs no Python code, so a change of one of them after capture has to be noticed before the step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from remat.capture.call import PLAIN_TYPES


@dataclass(frozen=True)
class ModelSettings:
    """Plain attributes of a model's modules (`Dropout.p`, `BatchNorm2d.eps`), their classes and numbers of hooks."""

    attributes: tuple[Mapping[str, Any], ...]  # values by name, per module in the order of Module.modules()
    kinds: tuple[tuple[type, int], ...]  # per module: its class and its number of forward and backward hooks

    @staticmethod
    def of(model: nn.Module, set_by_forward: Collection[str]) -> ModelSettings:
        """Read the settings of `model`, except attributes that forward itself sets (paths within the model)."""
        attributes = []
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            own = {
                name: value
                for name, value in module.__dict__.items()
                if _is_setting(value) and not name.startswith("_") and name != "training"
                if prefix + name not in set_by_forward
            }
            attributes.append(own)
        return ModelSettings(tuple(attributes), tuple(_kind(module) for module in model.modules()))

    def differences(self, model: nn.Module) -> list[str]:
        """Return one phrase for each setting of `model` that has changed since."""
        changes = [
            f"{path or 'the model'} is a {type(module).__name__} with {_kind(module)[1]} hooks; "
            f"the plan is for a {kind.__name__} with {hooks}"
            for (path, module), (kind, hooks) in zip(model.named_modules(), self.kinds, strict=False)
            if _kind(module) != (kind, hooks)
        ]
        for (path, module), own in zip(model.named_modules(), self.attributes, strict=False):
            for name, before in own.items():
                after = module.__dict__.get(name)
                if before is not after and before != after:
                    changes.append(f"{path}.{name} is {after!r}; the plan is for {before!r}".removeprefix("."))
        return changes

    def match(self, modules: Iterable[nn.Module]) -> bool:
        """Return whether no setting of `modules` has changed. It is cheap, because it runs before every step."""
        modules = list(modules)
        if [_kind(module) for module in modules] != list(self.kinds):
            return False
        return all(
            {name: module.__dict__.get(name) for name in own} == own
            for module, own in zip(modules, self.attributes, strict=False)
        )


def _kind(module: nn.Module) -> tuple[type, int]:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module), sum(map(len, hooks))


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_setting(v) for v in value)
    return isinstance(value, PLAIN_TYPES)
