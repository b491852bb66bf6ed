"""Tests of both backends, also in a child process: after limits and hangs, the best solution found is kept."""

from __future__ import annotations

import time
from pathlib import Path

import pulp
import pytest

from remat_solvers.toolkit.programs import highs_process, pulp_backend
from remat_solvers.toolkit.programs.pulp_backend import Ended, minimise

SOLVERS_THAT_HANG = """
import time
import numpy as np
from remat_solvers.processes.child import leave_answer
from remat_solvers.toolkit.programs.highs_process import MipReport

def hang(folder, seconds, gap):
    time.sleep(600)

def find_and_hang(folder, seconds, gap):
    leave_answer(folder, MipReport("", np.array([1.0, 1.0, 0.0]), 4.0))
    time.sleep(600)
"""


def knapsack(demand: int) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """The program minimises 3a + 4b + 6c with 2a + 3b + 4c >= demand: for a demand of 5, a and b cost 7."""
    program = pulp.LpProblem("knapsack", pulp.LpMinimize)
    a, b, c = variables = [program.add_variable(name, 0, 1, pulp.LpBinary) for name in "abc"]
    program.setObjective(3 * a + 4 * b + 6 * c)
    program += 2 * a + 3 * b + 4 * c >= demand
    return program, variables


@pytest.fixture
def subprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program is solved in a child process, which also finds `solvers_that_hang`."""
    (tmp_path / "solvers_that_hang.py").write_text(SOLVERS_THAT_HANG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pulp_backend, "SUBPROCESS_VARIABLES", 0)


def check(backend: pulp_backend.Backend) -> None:
    program, variables = knapsack(5)
    answer = minimise(program, backend, seconds=30)
    assert (answer.ended, [round(v.varValue) for v in variables]) == (Ended.OPTIMAL, [1, 1, 0])
    assert answer.bound == pytest.approx(7)
    assert minimise(knapsack(10)[0], backend, seconds=30).ended is Ended.INFEASIBLE
    relaxed = minimise(knapsack(4)[0], backend, seconds=30, relaxed=True)
    assert (relaxed.ended, relaxed.relaxed) == (Ended.OPTIMAL, True)
    assert relaxed.bound == pytest.approx(4 + 1.5)  # 6 in integers


@pytest.mark.parametrize("backend", ["highs", "cbc"])
def test_optimum_infeasibility_and_relaxation(backend: pulp_backend.Backend) -> None:
    check(backend)


def test_a_child_process_gives_the_same_solution(subprocess: None) -> None:
    check("highs")


def test_a_hanging_solver_is_killed(subprocess: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_process, "TARGET", "solvers_that_hang:hang")
    start = time.monotonic()
    answer = minimise(knapsack(5)[0], "highs", seconds=1)
    assert time.monotonic() - start < 8
    assert (answer.ended, answer.bound) == (Ended.UNKNOWN, None)


def test_a_process_is_not_started_without_time_for_it(subprocess: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_process, "TARGET", "solvers_that_hang:find_and_hang")
    answer = minimise(knapsack(5)[0], "highs", seconds=0.1)
    assert (answer.ended, answer.bound) == (Ended.UNKNOWN, None)


def test_the_best_solution_of_a_killed_process_is_kept(subprocess: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_process, "TARGET", "solvers_that_hang:find_and_hang")
    program, variables = knapsack(5)
    answer = minimise(program, "highs", seconds=1.5)
    assert (answer.ended, answer.bound) == (Ended.FEASIBLE, 4.0)
    assert [v.varValue for v in variables] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("variables", [0, pulp_backend.SUBPROCESS_VARIABLES])
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: int) -> None:
    monkeypatch.setattr(pulp_backend, "SUBPROCESS_VARIABLES", variables)
    minimise(knapsack(5)[0], "highs", seconds=30)
    minimise(knapsack(5)[0], "cbc", seconds=30)
    assert capfd.readouterr() == ("", "")
