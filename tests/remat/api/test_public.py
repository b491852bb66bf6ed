"""The public names of both packages: the list of them is complete, each exists, and type checkers see the same ones."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

import remat
import remat_solvers


def test_public_surface() -> None:
    assert remat.__all__ == [
        "ApplyError", "BudgetError", "ChangedError", "DiskTier", "ExportError", "FormatError", "HostTier",
        "InfeasibleError", "InputError", "Limits", "Link", "OffloadError", "Parts", "PlanError", "ProblemError",
        "RematError", "Result", "Status", "StepOptions", "SubBatches", "apply", "export", "load", "solve",
        "solve_in_parts", "verify",
    ]  # fmt: skip
    assert all(getattr(remat, name).__module__.startswith(("remat.", "remat_solvers.")) for name in remat.__all__)
    assert all(callable(getattr(remat, name)) for name in ("apply", "export", "load", "solve", "verify"))
    assert remat.__all__ == dir(remat)
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        _ = remat.nonesuch


@pytest.mark.parametrize("package", [remat, remat_solvers])
def test_type_checkers_see_the_names_that_are_looked_up(package: ModuleType) -> None:
    """Names stand in the imports under TYPE_CHECKING, in the form that re-exports, and in the table of homes."""
    (block,) = [node for node in ast.parse(inspect.getsource(package)).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    prefix = "" if package is remat else "remat_solvers."
    assert {(node.module, alias.name) for node in imports for alias in node.names} == {
        (prefix + home, name) for home, names in package._HOMES.items() for name in names
    }
