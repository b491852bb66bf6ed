"""Tests of the comparison of methods: a crash, a hang, a false claim and Ctrl-C each give a row in the table."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from types import ModuleType

import pytest

from remat_solvers import comparing
from remat_solvers.comparing import Comparison, Row, compare, solve_in_subprocess
from remat_solvers.generate import chain
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.recompute.chen import Chen
from remat_solvers.registry import solver_names
from remat_solvers.result import Limits, Outcome, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order

PROBLEM = chain(12)
BUDGET = 8
FAKES = """
import os, subprocess, sys, time
from dataclasses import dataclass
from remat_solvers.recompute.chen import Chen
from remat_solvers.result import Order
from dataclasses import replace

class Fake:
    version = "0"

class Raises(Fake):
    name = "raises"
    def solve(self, *args, **options):
        raise RuntimeError("no such luck")

class RaisesInProcess(Raises):
    in_process = True

class Dies(Fake):
    name = "dies"
    def solve(self, *args, **options):
        print("Segmentation fault (not really)", file=sys.stderr, flush=True)
        os.abort()

class Hangs(Fake):
    name = "hangs"
    def solve(self, *args, **options):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(os.environ["CHILD_OF_HANGS"], "w").write(str(child.pid))
        print("still here", flush=True)
        while True:
            time.sleep(1)

class Quits(Fake):
    name = "quits"
    def solve(self, *args, **options):
        sys.exit(7)

class Lies(Fake):
    name = "lies"
    def solve(self, problem, budget_bytes, **options):
        honest = Chen(strategy="sqrt", candidates="linearised").solve(problem, budget_bytes, **options)
        return replace(honest, bound_ns=10**6, order=Order.GIVEN)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "fake_solvers.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHILD_OF_HANGS", str(tmp_path / "child"))
    return importlib.import_module("fake_solvers")


def by_name(comparison: Comparison) -> dict[str, Row]:
    return {row.solver: row for row in comparison.rows}


def test_crashes_are_rows_with_their_error(fakes: ModuleType) -> None:
    solvers = [fakes.Raises(), fakes.Dies(), fakes.Quits(), "chen"]
    rows = by_name(compare(PROBLEM, BUDGET, solvers=solvers, limits=Limits(20)))
    assert rows["raises"].error == "RuntimeError: no such luck"
    assert "SIGABRT" in (rows["dies"].error or "")
    assert "Segmentation fault (not really)" in (rows["dies"].error or "") or "Aborted" in (rows["dies"].error or "")
    assert rows["quits"].error == "ended with exit code 7"
    assert all(rows[name].status == "failed" for name in ("raises", "dies", "quits"))
    assert rows["chen"].status == Status.FEASIBLE


def test_a_hanging_method_is_killed_with_its_child_processes(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "START_S", 4.0)
    rows = by_name(compare(PROBLEM, BUDGET, solvers=[fakes.Hangs(), "chen"], limits=Limits(1)))
    assert "killed" in (rows["hangs"].error or "")
    assert 1 < rows["hangs"].seconds < 15
    assert rows["chen"].status == Status.FEASIBLE
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and is_running(child):
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_bound_above_a_plan_is_shown_and_not_used(fakes: ModuleType) -> None:
    comparison = compare(PROBLEM, BUDGET, solvers=["chen", fakes.Lies()])
    rows = by_name(comparison)
    assert "its bound of 1000000 ns is above" in (rows["lies"].error or "")
    assert comparison.given_bound_ns < 10**6
    assert rows["chen"].error is None


def test_a_false_claim_of_infeasibility_is_an_error() -> None:
    class Denies:
        name = "denies"
        version = "0"
        in_process = True

        def solve(self, *args: object, **options: object) -> Outcome:
            return Outcome(Status.INFEASIBLE)

    rows = by_name(compare(PROBLEM, BUDGET, solvers=[Denies(), Chen()]))
    claim = f"it claims that no plan fits, but chen's does, with a peak of {rows['chen'].peak_bytes} bytes"
    assert (rows["denies"].status, rows["denies"].error) == (Status.INFEASIBLE, claim)
    alone = compare(PROBLEM, BUDGET, solvers=[Denies()]).rows[0]
    assert (alone.status, alone.error) == (Status.INFEASIBLE, None)


def test_gaps_are_relative_to_the_best_bound_of_all_methods(fakes: ModuleType) -> None:
    comparison = compare(PROBLEM, BUDGET, solvers=[Chen(), Checkmate(), fakes.RaisesInProcess()])
    rows = by_name(comparison)
    best = rows["checkmate"]
    assert (best.status, best.gap, best.time_ns) == (Status.OPTIMAL, 0, comparison.given_bound_ns)
    assert best.time_ns is not None
    assert rows["chen"].time_ns is not None
    assert rows["chen"].bound_ns is None
    assert rows["chen"].gap == (rows["chen"].time_ns - best.time_ns) / comparison.store_all_time_ns
    assert comparison.rows[0] == best
    assert comparison.rows[-1].error == "RuntimeError: no such luck"
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_no_method_recomputes_where_store_all_fits() -> None:
    unmodified = baseline(PROBLEM)
    comparison = compare(PROBLEM, unmodified.peak_bytes)
    assert {row.solver for row in comparison.rows} == set(solver_names())
    for row in comparison.rows:
        assert (row.status, row.overhead, row.gap, row.error) == (Status.OPTIMAL, 0, 0, None)
        assert (row.peak_bytes, row.reason) == (unmodified.peak_bytes, "fits as it is")


def test_ctrl_c_still_returns_the_table() -> None:
    class Interrupted:
        name = "interrupted"
        version = "0"
        in_process = True

        def solve(self, *args: object, **options: object) -> None:
            raise KeyboardInterrupt

    comparison = compare(PROBLEM, BUDGET, solvers=[Chen(), Interrupted(), Checkmate()])  # type: ignore[list-item]
    rows = by_name(comparison)
    assert rows["chen"].status == Status.FEASIBLE
    assert (rows["interrupted"].status, rows["interrupted"].error) == ("failed", "interrupted by the user")
    assert (rows["checkmate"].status, rows["checkmate"].error) == ("not_asked", None)
    assert rows["checkmate"].reason == "the user interrupted before its turn"


def test_ctrl_c_in_a_method_that_returns_ends_the_comparison() -> None:
    class ReturnsOnInterrupt:
        name = "hands-back"
        version = "0"
        in_process = True

        def solve(self, *args: object, **options: object) -> Outcome:
            return Outcome(Status.NOT_FOUND, stopped=Stopped.INTERRUPT)

    rows = by_name(compare(PROBLEM, BUDGET, solvers=[ReturnsOnInterrupt(), Checkmate()]))
    assert rows["hands-back"].status == Status.NOT_FOUND
    assert rows["hands-back"].reason == "The user interrupted before it had a plan of any size"
    assert rows["checkmate"].status == "not_asked"


def test_the_order_of_a_plan() -> None:
    assert keeps_order(Plan([Compute(0), Compute(1), Free(0), Compute(0), Compute(2)]))
    assert not keeps_order(Plan([Compute(0), Compute(2), Compute(1)]))
    assert not keeps_order(Plan([Compute(1), Compute(0)]))


def test_a_child_does_not_depend_on_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file in the working folder that shadows a module nor the caller's main program matters."""
    (tmp_path / "pickle.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    result = solve_in_subprocess(PROBLEM, BUDGET, solver="chen", limits=Limits(20))
    assert result.plan is not None
    assert os.listdir(tmp_path) == ["pickle.py"]
