"""Loads the model that a command line names as `file.py:function` or `package.module:function`.

The function is called without arguments. It returns `(model, args)` or `(model, args, kwargs)`: the module, and the
arguments with which one training step calls it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from remat_solvers.errors import InputError

if TYPE_CHECKING:
    from torch import nn

FORM = "MODEL is file.py:function or package.module:function."
RETURNS = "It must return (model, args) or (model, args, kwargs), such as (MyModel(), (torch.randn(8, 16),))."


class Loaded(NamedTuple):
    """A model and the call that one training step makes."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def load_model(spec: str) -> Loaded:
    """Call the function that `spec` names. Raises InputError with the cause and advice."""
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise InputError(f"{spec!r} names no function: write it as {_example(spec)}. {FORM}")
    module = _load_file(spec, Path(source)) if source.endswith(".py") else _load_module(spec, source)
    return _check(spec, _call(spec, _find(spec, module, name)))


def _example(spec: str) -> str:
    return f"{spec.strip(':') or 'train.py'}:make_model"


def _load_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{spec}: there is no file {str(path)!r} in {Path.cwd()}. Check the path; {FORM}")
    name = f"model_file_{path.stem}"  # not the bare stem: a user's `types.py` must not replace the library's
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.resolve().parent))  # as for `python file.py`: files beside it can be imported
    sys.modules[name] = module  # dataclasses and pickle look classes up there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{spec}: importing {path} failed: {_reason(error)}. Try `python {path}`.") from error
    return module


def _load_module(spec: str, name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))  # as for `python -m module`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            hint = f"Run it where `python -c 'import {name}'` works, or give a file: path/to/file.py:function."
            raise InputError(f"{spec}: there is no module {error.name!r}. {hint}") from error
        raise InputError(f"{spec}: importing {name} failed: {_reason(error)}.") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: importing {name} failed: {_reason(error)}. Try `python -m {name}`.") from error


def _find(spec: str, module: ModuleType, name: str) -> Callable[[], object]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    own = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    defined = f"Functions it defines: {', '.join(own)}." if own else "It defines no function."
    problem = "is not a function" if function is not None else "does not exist"
    raise InputError(f"{spec}: {name!r} {problem} in {spec.rpartition(':')[0]}. {defined}")


def _call(spec: str, function: Callable[[], object]) -> object:
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise InputError(f"{spec}: the function is called without arguments, but needs {', '.join(needed)}. {RETURNS}")
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: the function failed: {_reason(error)}. Call it once by hand to debug it.") from error


def _check(spec: str, returned: object) -> Loaded:
    from torch import nn

    def wrong(description: str) -> InputError:
        return InputError(f"{spec}: the function returned {description}. {RETURNS}")

    if not isinstance(returned, tuple):
        raise wrong(f"a {type(returned).__name__}")
    if len(returned) not in (2, 3):
        raise wrong(f"a tuple of {len(returned)}")
    model, args, kwargs = returned if len(returned) == 3 else (*returned, None)
    if not isinstance(model, nn.Module):
        raise wrong(f"a {type(model).__name__} where the model, a torch.nn.Module, belongs")
    if not isinstance(args, tuple | list):
        raise wrong(f"a {type(args).__name__} where args, a tuple, belongs; a single input is written (x,)")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise wrong(f"a {type(kwargs).__name__} where kwargs, a dict with names as keys, belongs")
    return Loaded(model, tuple(args), kwargs)


def _reason(error: BaseException) -> str:
    """The error in one line, with the line of the user's code that raised it."""
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    frames = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f"{message} ({frames[-1].filename}:{frames[-1].lineno})" if frames else message
