"""Running a program: both backends, HiGHS in a process of its own, and what a limit, a hang or a loss leaves."""

from __future__ import annotations

import time

import pulp
import pytest

from remat_solvers.toolkit.programs import highs_process as highs_apart
from remat_solvers.toolkit.programs import pulp_backend as milp
from remat_solvers.toolkit.programs.pulp_backend import Ended, run

HANGS = "import time; time.sleep(600)"
FINDS_AND_HANGS = """
import sys, time
from pathlib import Path
import numpy as np
from remat_solvers.toolkit.programs.highs_process import Apart, _write
_write(Path(sys.argv[1]), Apart("", np.array([1.0, 1.0, 0.0]), 4.0))
time.sleep(600)
"""


def knapsack(most: int) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """Least 3a + 4b + 6c with 2a + 3b + 4c >= most: 5 asks for a and b, 7."""
    program = pulp.LpProblem("knapsack", pulp.LpMinimize)
    a, b, c = variables = [program.add_variable(name, 0, 1, pulp.LpBinary) for name in "abc"]
    program.setObjective(3 * a + 4 * b + 6 * c)
    program += 2 * a + 3 * b + 4 * c >= most
    return program, variables


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milp, "APART_VARIABLES", 0)


def check(backend: milp.Backend) -> None:
    program, variables = knapsack(5)
    answer = run(program, backend, seconds=30)
    assert (answer.ended, [round(v.varValue) for v in variables]) == (Ended.OPTIMAL, [1, 1, 0])
    assert answer.bound == pytest.approx(7)
    assert run(knapsack(10)[0], backend, seconds=30).ended is Ended.INFEASIBLE
    relaxed = run(knapsack(4)[0], backend, seconds=30, relaxed=True)
    assert (relaxed.ended, relaxed.relaxed) == (Ended.OPTIMAL, True)
    assert relaxed.bound == pytest.approx(4 + 1.5)  # 6 in whole numbers


@pytest.mark.parametrize("backend", ["highs", "cbc"])
def test_optimum_infeasibility_and_relaxation(backend: milp.Backend) -> None:
    check(backend)


def test_the_same_in_a_process_of_its_own(apart: None) -> None:
    check("highs")


def test_a_hanging_solver_is_killed(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_apart, "CHILD", HANGS)
    start = time.monotonic()
    answer = run(knapsack(5)[0], "highs", seconds=1)
    assert time.monotonic() - start < 8
    assert (answer.ended, answer.bound) == (Ended.UNKNOWN, None)


def test_without_time_to_start_it_is_not_started(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_apart, "CHILD", FINDS_AND_HANGS)
    answer = run(knapsack(5)[0], "highs", seconds=0.1)
    assert (answer.ended, answer.bound) == (Ended.UNKNOWN, None)


def test_what_it_found_before_it_was_killed_is_kept(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_apart, "CHILD", FINDS_AND_HANGS)
    program, variables = knapsack(5)
    answer = run(program, "highs", seconds=1.5)
    assert (answer.ended, answer.bound) == (Ended.FEASIBLE, 4.0)
    assert [v.varValue for v in variables] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("most", [0, milp.APART_VARIABLES])
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(milp, "APART_VARIABLES", most)
    run(knapsack(5)[0], "highs", seconds=30)
    run(knapsack(5)[0], "cbc", seconds=30)
    assert capfd.readouterr() == ("", "")
