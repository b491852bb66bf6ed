"""Problems and budgets that tests of several solvers share."""

from __future__ import annotations

import functools

from remat_solvers.formats import load_problem
from remat_solvers.problem import Problem
from tests.paths import CORPUS


@functools.cache
def corpus_problem(name: str) -> Problem:
    """The corpus's problem of this name; problems are immutable, so all tests of a process share one."""
    return load_problem(CORPUS / f"{name}.json")
