"""State that a forward keeps or draws in Python: it is watched while tracing, and restored afterwards.

A plan runs the ops of one traced forward; the Python code around them does not run at later steps. Where that code
would have to run at every step, capture raises an error (it draws, or changes a tensor) or logs a warning (it sets
attributes).
"""

from __future__ import annotations

import copy
import logging
import random
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from remat.capture.source_location import user_line
from remat_solvers.errors import ExportError

log = logging.getLogger("remat")

_IN_PLACE = re.compile(r"(?!__)\w*[^_]_|__i\w+__|__setitem__")
_HARMLESS = ("requires_grad_", "__index__", "__int__", "__invert__")
_PLAIN = (int, float, complex, bool, str, type(None))


class PythonState:
    """Watches the Python state of one model while its forward is traced."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: dict(module.__dict__) for name, module in model.named_modules()}
        self._replaced: dict[int, str] = {}  # per id of a replaced tensor: the attribute that held it
        self._set: dict[str, None] = {}  # attributes that forward sets

    @property
    def set_by_forward(self) -> Collection[str]:
        """Return the paths of the attributes that forward sets."""
        return self._set.keys()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch one traced forward. Raises ExportError where it does something that a plan cannot repeat."""
        python_state, numpy_state = random.getstate(), _numpy_state()
        generator = _Generator(torch.default_generator)
        with mock.patch.object(torch.random, "default_generator", generator), _InPlaceGuard(self._name_of):
            yield
        if random.getstate() != python_state or _numpy_state() != numpy_state:
            raise ExportError(
                "forward draws from a generator of Python or numpy, and every planned step would repeat the same draw. "
                "Draw with torch instead (torch.rand, torch.where), whose draws a plan replays exactly."
            )
        self._record_changes()

    def _record_changes(self) -> None:
        for name, module in self._model.named_modules():
            before = self._before[name]
            for attribute, value in module.__dict__.items():
                old = before.get(attribute)
                if value is old or isinstance(value, dict) or attribute.startswith("_"):
                    continue
                path = f"{name}.{attribute}" if name else attribute
                if isinstance(old, Tensor):
                    self._replaced[id(old)] = path
                if isinstance(value, Tensor) or (isinstance(value, _PLAIN) and value != old):
                    self._set[path] = None

    def check(self, constants: Iterable[Tensor]) -> None:
        """Raise ExportError where the graph reads a tensor that only Python code updates, or that would be trained.

        constants: tensors that the graph reads and that are no parameter, buffer or input.
        """
        for tensor in constants:
            name = self._name_of(tensor)
            if tensor.requires_grad:
                raise ExportError(
                    f"forward reads {name}, which requires a gradient but is not a registered parameter. Assign it as "
                    "an nn.Parameter, or put several into an nn.ParameterList or nn.ParameterDict."
                )
            if id(tensor) in self._replaced:
                raise ExportError(
                    f"forward reads {name} and replaces it. Register it as a buffer (self.register_buffer), so that "
                    "every planned step updates it."
                )
        if self._set:
            log.warning(
                "forward sets attributes of the model (%s), but a planned step runs no Python code and does not set "
                "them. Return values that are needed outside, and keep state in buffers.",
                ", ".join(self._set),
            )

    def _name_of(self, tensor: Tensor) -> str:
        for name, attributes in self._before.items():
            for attribute, value in attributes.items():
                parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
                if attribute not in ("_parameters", "_buffers") and (
                    value is tensor or any(p is tensor for p in parts)
                ):
                    return f"{name}.{attribute}" if name else attribute
        return f"a tensor of shape {tuple(tensor.shape)}"


class _Generator:
    """Stands in for torch's default generator while tracing, and refuses to be seeded: a plan would not repeat it."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def manual_seed(self, seed: int) -> None:
        raise ExportError(
            f"forward seeds torch's generator (torch.manual_seed({seed})), which a plan does not repeat. Draw the "
            "tensor before the call and pass it, or keep it in a buffer."
        )


class _InPlaceGuard(TorchFunctionMode):
    """Refuses in-place changes of real tensors while tracing: they belong to the user."""

    def __init__(self, name_of: Any) -> None:
        super().__init__()
        self._name_of = name_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return func(*args, **(kwargs or {}))
        changed = args[0] if args and _is_in_place(func) else (kwargs or {}).get("out")
        if type(changed) in (Tensor, nn.Parameter):
            raise ExportError(
                f"{user_line()}: forward changes {self._name_of(changed)} in place, which is not a buffer. Register it "
                "as one (self.register_buffer), so that every planned step updates it."
            )
        return func(*args, **(kwargs or {}))


def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return _IN_PLACE.fullmatch(name) is not None and name not in _HARMLESS


def _numpy_state() -> tuple[bytes, int]:
    _, keys, position, *_ = np.random.get_state()
    return np.asarray(keys).tobytes(), int(position)


@contextmanager
def preserved_model(model: nn.Module) -> Iterator[None]:
    """Restore, at the end, the generators and the module attributes that a forward may change.

    Attributes include the contents of lists, dicts and sets.
    """
    attributes = [(module, _plain_attributes(module)) for module in model.modules()]
    containers = [value for _, own in attributes for value in own.values() if isinstance(value, (list, dict, set))]
    contents = [copy.copy(value) for value in containers]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for module, before in attributes:
            for name in set(_plain_attributes(module)) - set(before):
                del module.__dict__[name]
            module.__dict__.update(before)
        for value, content in zip(containers, contents, strict=True):
            _restore(value, content)


def _restore(value: Any, content: Any) -> None:
    if len(value) == len(content) and all(a is b for a, b in zip(_elements(value), _elements(content), strict=True)):
        return
    value.clear()
    if isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)


def _elements(value: Any) -> list[Any]:
    return [element for item in value.items() for element in item] if isinstance(value, dict) else list(value)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    registries = ("_parameters", "_buffers", "_modules")
    return {name: value for name, value in module.__dict__.items() if name not in registries}
