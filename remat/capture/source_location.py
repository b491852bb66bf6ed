"""The origin of an op in the user's code: its module path and source line.

While a model is traced, every torch call in a module's forward stamps the nodes that result from it. A backward node
carries the sequence number of the forward node that it belongs to, and so has the same origin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode

ORIGIN_KEY = "remat_origin"  # key in node.meta["custom"] of the pair (module path, source line)

_LIBRARY_ROOTS = (
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)


@contextmanager
def recording_origins(model: nn.Module) -> Iterator[None]:
    """Stamp nodes that are traced inside the context with their module path within `model` and their source line."""
    paths = {module: name for name, module in model.named_modules()}
    stack: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        if module in paths:
            stack.append(paths[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in paths and stack:
            stack.pop()

    handles = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        with _Stamp(stack):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Stamp(TorchFunctionMode):
    """Stamps the nodes of every torch call. `stack`: paths of the modules whose forward is running."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self._stack = stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a higher-order op (torch.cond) captures its branches
            return func(*args, **(kwargs or {}))
        if fx_traceback.has_preserved_node_meta():
            origin = (self._stack[-1] if self._stack else "", user_line())
            fx_traceback.current_meta["custom"] = {ORIGIN_KEY: origin}
        return func(*args, **(kwargs or {}))


def user_line() -> str:
    """Return `file.py:line` of the innermost frame outside torch and this library, "" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if is_user_file(path):
            return f"{os.path.basename(path)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def is_user_file(path: str) -> bool:
    """Return whether `path` is code of the user or of a model library: not torch, this library, or generated code."""
    return not path.startswith(_LIBRARY_ROOTS) and not path.startswith("<")
