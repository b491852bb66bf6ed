"""MODEL on the command line: the forms that load, and the message of each failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from remat.cli.model_loading import load_model
from remat_solvers.errors import InputError

GOOD = """
import torch
def two(): return torch.nn.Linear(2, 3), (torch.ones(1, 2),)
def three(): return torch.nn.Linear(2, 3), (), {"input": torch.ones(1, 2)}
def a_list(): return torch.nn.Linear(2, 3), [torch.ones(1, 2)]
def no_kwargs(): return torch.nn.Linear(2, 3), (), None
def with_default(width=2): return torch.nn.Linear(width, 3), (torch.ones(1, width),)
not_a_function = 3
def raises(): raise RuntimeError("no such checkpoint\\nand more")
def leaves(): raise SystemExit(3)
def needs(width, *, depth): ...
def nothing(): return None
def tensor(): return torch.nn.Linear(2, 3), torch.ones(1, 2)
def one(): return (torch.nn.Linear(2, 3),)
def a_class(): return torch.nn.Linear, ()
def bad_kwargs(): return torch.nn.Linear(2, 3), (), [1]
def bad_keys(): return torch.nn.Linear(2, 3), (), {1: 2}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with model files, as the working directory; imports leave no trace."""
    (tmp_path / "train.py").write_text(GOOD)
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    (tmp_path / "imports.py").write_text(
        "import torch, beside_it\ndef make(): return torch.nn.Linear(beside_it.WIDTH, 1), ()\n"
    )
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "needs_other.py").write_text("import no_such_library_at_all\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/nets.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("source", ["train.py", "./train.py", "package.nets", "package/nets.py"])
def test_files_and_modules(source: str) -> None:
    model, args, kwargs = load_model(f"{source}:two")
    assert isinstance(model, torch.nn.Linear)
    assert [list(a.shape) for a in args] == [[1, 2]]
    assert kwargs == {}


def test_absolute_paths_and_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    model, _, _ = load_model(f"{folder}/imports.py:make")
    assert model.in_features == 5


def test_forms_of_the_returned_tuple() -> None:
    assert list(load_model("train.py:three").kwargs) == ["input"]
    assert isinstance(load_model("train.py:a_list").args, tuple)
    assert load_model("train.py:no_kwargs").kwargs == {}
    assert load_model("train.py:with_default").model.in_features == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train.py", "train.py:make_model"),
        ("", "train.py:make_model"),
        (":two", "names no function"),
        ("train.py:", "names no function"),
        ("gone.py:make", "there is no file 'gone.py'"),
        ("no_such_package.nets:make", "there is no module 'no_such_package'"),
        ("package.gone:make", "there is no module 'package.gone'"),
        ("needs_other:make", "No module named 'no_such_library_at_all'"),
        ("needs_other.py:make", "No module named 'no_such_library_at_all'"),
        ("broken.py:make", "broken.py:2"),
        ("broken:make", "ZeroDivisionError"),
        ("syntax.py:make", "SyntaxError"),
        ("train.py:tow", "Functions it defines: two, three"),
        ("beside_it.py:make", "It defines no function"),
        ("train.py:not_a_function", "is not a function"),
        ("train.py:raises", "RuntimeError: no such checkpoint ("),
        ("train.py:raises", "train.py:9"),
        ("train.py:leaves", "SystemExit: 3"),
        ("train.py:needs", "needs width, depth"),
        ("train.py:nothing", "returned a NoneType"),
        ("train.py:tensor", "a single input is written (x,)"),
        ("train.py:one", "a tuple of 1"),
        ("train.py:a_class", "where the model, a torch.nn.Module, belongs"),
        ("train.py:bad_kwargs", "a list where kwargs"),
        ("train.py:bad_keys", "a dict with names as keys"),
    ],
)
def test_each_failure_has_its_message(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
