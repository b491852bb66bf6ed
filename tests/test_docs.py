"""The documents: code in them runs, and files they point to exist."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from remat_solvers.formats import load_problem, save_problem
from remat_solvers.registry import solver_names
from remat_solvers.result import Status
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from tests.paths import CORPUS, ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_the_solver_of_the_contributing_guide_works(tmp_path: Path) -> None:
    (block,) = python_blocks("CONTRIBUTING.md")
    (tmp_path / "given_order.py").write_text(block)
    names = runpy.run_path(str(tmp_path / "given_order.py"))
    typed = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "given_order.py"]
    assert subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True).stdout.startswith("Success")
    problem = load_problem(CORPUS / "chain50.json")
    peak = baseline(problem).peak_bytes
    assert solve(problem, peak - 1, solver=names["GivenOrder"]()).status is Status.NOT_FOUND


def test_the_example_of_the_readme_works() -> None:
    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(128, 128), nn.GELU()) for _ in range(8)))
            self.head = nn.Linear(128, 10)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return functional.mse_loss(self.head(self.layers(x)), y)

    (block,) = python_blocks("README.md")
    batches = [(torch.randn(4096, 128), torch.randn(4096, 10)) for _ in range(2)]
    names: dict[str, Any] = {"MyModel": MyModel, "batches": batches}
    exec(block, names)
    assert names["net"].result.peak_bytes <= names["net"].result.store_all_peak_bytes * 60 // 100


def test_the_example_of_the_optimal_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = python_blocks("docs/optimal.md")
    problem = load_problem(CORPUS / "gpt.json")
    save_problem(tmp_path / "problem.json", problem)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["result"].gap < 0.001
    assert names["fastest"].peak_bytes <= names["budget_bytes"]
    assert names["fastest"].gap < 0.01


def test_the_page_of_methods_lists_every_method() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    assert [name for name in solver_names() if f"| `{name}` |" not in page] == []


def test_no_figure_is_left_open() -> None:
    assert [d.name for d in DOCUMENTS if re.search(r"@[A-Z]+@", d.read_text())] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []
