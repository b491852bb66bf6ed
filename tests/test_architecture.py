"""The rules of docs/architecture.md that import contracts cannot express."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import remat
import remat_solvers
from tests.paths import ROOT

CORE = ROOT / "solvers/remat_solvers"
MOST_FILES = 13  # Python files in a folder
MOST_CORE_FILES = 16
MOST_WORDS = 25  # of the glossary


def imported(file: Path) -> set[str]:
    """Return the project's modules that a file imports anywhere, for type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            raise AssertionError(f"{file}: an import that this test cannot read")
    return {name for name in names if name.split(".")[0] in ("remat", "remat_solvers")}


def test_the_validator_imports_only_the_problem_and_the_plan() -> None:
    assert imported(CORE / "validate.py") == {"remat_solvers.plan", "remat_solvers.problem"}


def test_the_certificate_checker_shares_nothing_with_the_prover() -> None:
    allowed = {f"remat_solvers.{name}" for name in ("errors", "problem", "result", "processes.stdout")}
    files = sorted((CORE / "certificates").rglob("*.py"))
    assert len(files) > 2
    for file in files:
        others = {name for name in imported(file) if not name.startswith("remat_solvers.certificates.")}
        assert others <= allowed, file
    assert imported(CORE / "processes/stdout.py") == set()


def test_no_folder_is_crowded() -> None:
    crowded = {}
    for top in ("remat", "solvers", "tests"):
        for folder in {file.parent for file in (ROOT / top).rglob("*.py")}:
            limit = MOST_CORE_FILES if folder == CORE else MOST_FILES
            count = len(list(folder.glob("*.py")))
            if count > limit:
                crowded[str(folder.relative_to(ROOT))] = count
    assert crowded == {}


def test_no_module_hides_a_public_name() -> None:
    """Importing `package.name` sets that attribute of the package, and would hide a function of this name."""
    hidden = {}
    for init in [*(ROOT / "remat").rglob("__init__.py"), *CORE.rglob("__init__.py")]:
        modules = {file.stem for file in init.parent.glob("*.py")} | {folder.parent.name for folder in subfolders(init)}
        tree = ast.parse(init.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if clash := modules & {alias.asname or alias.name for node in imports for alias in node.names}:
            hidden[str(init.relative_to(ROOT))] = clash
    assert hidden == {}
    for package in (remat, remat_solvers):  # their names are looked up when they are used
        folder = Path(str(package.__file__)).parent
        assert {file.stem for file in folder.iterdir()} & set(package.__all__) == set()


def subfolders(init: Path) -> list[Path]:
    """The packages in the folder of an `__init__.py`, each as its own `__init__.py`."""
    return list(init.parent.glob("*/__init__.py"))


def test_a_method_of_several_files_exports_its_class() -> None:
    for family in ("recompute", "swap"):
        for init in sorted((CORE / family).glob("*/__init__.py")):
            exported = re.search(r'^__all__ = \["(\w+)"\]$', init.read_text(), re.MULTILINE)
            assert exported is not None, init


def test_the_glossary_is_short() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words))
    assert sum(len(word.split(", ")) for word in words) <= MOST_WORDS
