"""Tests of the package from outside: its public names, and that importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import remat_solvers

SOURCES = str(Path(__file__).parents[3] / "solvers")


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys; sys.path.insert(0, {SOURCES!r}); {statement}; print(*sys.modules, sep='\\n')"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_all_public_names_exist_and_no_others() -> None:
    assert dir(remat_solvers) == sorted(remat_solvers.__all__)
    for name in remat_solvers.__all__:
        assert getattr(remat_solvers, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        remat_solvers.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_after("import remat_solvers")
    assert not loaded & {"numpy", "networkx", "msgspec", "torch", "remat", "remat_solvers.problem"}


def test_listing_the_solvers_loads_none_of_them() -> None:
    loaded = loaded_after("import remat_solvers; remat_solvers.solver_names()")
    assert not loaded & {"numpy", "networkx", "torch", "remat_solvers.recompute"}


def test_solving_never_loads_torch() -> None:
    statements = "from remat_solvers.generate import random_layered; remat_solvers.solve(random_layered(9, 1), 400)"
    loaded = loaded_after(f"import remat_solvers; {statements}")
    assert "remat_solvers.optimal.auto" in loaded
    assert not loaded & {"torch", "remat"}
