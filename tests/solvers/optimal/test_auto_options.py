"""Tests of the options of `auto`: an old name is an error that names the new one; copies keep every option."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from remat_solvers.errors import InputError
from remat_solvers.optimal.auto import Auto
from remat_solvers.plan import Compute, Plan
from remat_solvers.registry import FindsMinPeak, WarmStarted, create, with_starts
from remat_solvers.toolkit.options import option_names

RENAMED = {"apart": "subprocess", "repeats": "lagrangian", "decomposed": "windows", "states": "state_search"}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_an_error_that_names_the_new_one(old: str, new: str) -> None:
    options: dict[str, Any] = {old: True}
    message = f"auto: the option '{old}' is called '{new}' now"
    with pytest.raises(InputError, match=message):
        Auto(**options)
    with pytest.raises(InputError, match=message):
        create("auto", **options)
    with pytest.raises(InputError, match=message):
        replace(Auto(), **options)
    assert getattr(create("auto", **{new: False}), new) is False


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(InputError, match="aparts"):
        create("auto", aparts=True)
    with pytest.raises(InputError, match="within"):
        Auto(within=2.0)


def test_copies_and_pickles_keep_every_option() -> None:
    solver = replace(Auto(order="given", windows=False), within=0.1, starts=(Plan([Compute(0)]),))
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert (solver.order, solver.windows, solver.within, len(solver.starts)) == ("given", False, 0.1, 1)
    assert option_names(Auto)[:2] == ["order", "within"]
    assert "starts" not in option_names(Auto)


def test_auto_finds_the_smallest_peak_and_is_warm_started() -> None:
    plans = (Plan([Compute(0)]), Plan([Compute(1)]))
    assert isinstance(Auto(), FindsMinPeak)
    started = with_starts(Auto(starts=plans[:1], cuts=False), plans[1:])
    assert isinstance(started, WarmStarted)
    assert started == Auto(starts=plans, cuts=False)
    revolve = create("revolve")
    assert not isinstance(revolve, FindsMinPeak | WarmStarted)
    assert with_starts(revolve, plans) is revolve
