"""Tests of the options of every solver: wrong types are refused; absurd values are refused or keep the time limit."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import pytest

from remat_solvers.errors import InputError
from remat_solvers.generate import chain
from remat_solvers.problem import Link, Problem
from remat_solvers.registry import create, solver_names
from remat_solvers.result import Limits
from remat_solvers.solving import solve
from remat_solvers.toolkit.options import option_names

WRONG = (b"a", "", "x", 1.5, float("nan"), float("inf"), -1, [1], (1,), {}, object())
ABSURD = (0, 1, 10**6, 10**30, True, False, None)
PROBLEM = Problem(**{**{f.name: getattr(chain(12), f.name) for f in fields(Problem)}, "link": Link(10**9, 10**9, 100)})
BUDGET = 8
LIMIT_S = 1.0
SLOWEST_S = 10.0  # with the start of a backend, on a busy machine
OPTIONS = [(name, option) for name in solver_names() for option in option_names(type(create(name)))]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_values_of_wrong_types_are_refused(name: str, option: str) -> None:
    """A float may be a share or seconds, so 1.5 may be within its range."""
    default = getattr(create(name), option)
    for value in WRONG:
        if isinstance(default, float) and value == 1.5:
            continue
        with pytest.raises(InputError, match=rf"^{name}: {option} must be"):
            create(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_absurd_values_are_refused_or_keep_the_limit(name: str, option: str) -> None:
    for value in ABSURD:
        start = time.monotonic()
        try:
            solver: Any = create(name, **{option: value})
        except InputError:
            continue
        solve(PROBLEM, BUDGET, solver=solver, limits=Limits(LIMIT_S))
        assert time.monotonic() - start < SLOWEST_S, value


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_numbers_are_not_flags_nor_flags_numbers(name: str, option: str) -> None:
    accepted = 0
    for value in (1, True):
        try:
            create(name, **{option: value})
            accepted += 1
        except InputError:
            pass
    assert accepted <= 1
