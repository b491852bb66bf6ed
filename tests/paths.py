"""Paths of the project and of its corpus of problems, and an environment for child processes that import it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests/corpus"


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process with the project on the path of Python, and with `changes`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "solvers")]), **changes}
