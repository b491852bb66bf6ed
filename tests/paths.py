"""Where the project and its corpus of problems stand, and how a child process finds the project."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests/corpus"


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of this process with the project on the path of Python, and with these changes."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "solvers")]), **changes}
