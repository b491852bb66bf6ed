"""Laws of results that the tests of several solvers check."""

from __future__ import annotations

from remat_solvers.bounds import time_bound_ns
from remat_solvers.optimal.local_search.annealing import FoundSequence
from remat_solvers.problem import Problem
from remat_solvers.result import Result, Status
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate


def check_result(problem: Problem, result: Result) -> None:
    """Checks that a plan is valid, within the budget and costs what the result says; without a plan, the status says
    why."""
    assert result.problem == problem.fingerprint
    if result.plan is None:
        assert result.status in (Status.INFEASIBLE, Status.NOT_FOUND, Status.NOT_APPLICABLE)
        assert result.time_ns is result.peak_bytes is result.gap is None
        assert result.status is not Status.INFEASIBLE or result.peak_bound_bytes > result.budget_bytes
        assert result.reason or result.status is Status.NOT_FOUND
        return
    assert result.status in (Status.OPTIMAL, Status.FEASIBLE)
    assert validate(problem, result.plan, result.budget_bytes) == []
    line = simulate(problem, result.plan)
    assert (result.time_ns, result.peak_bytes) == (line.time_ns, line.peak_bytes)
    assert result.peak_bound_bytes <= line.peak_bytes <= result.budget_bytes
    assert result.smallest_peak_bytes is not None
    assert result.smallest_peak_bytes <= line.peak_bytes
    assert line.time_ns >= time_bound_ns(problem)
    if result.status is Status.OPTIMAL:
        assert result.bound_ns == line.time_ns
        assert result.gap == 0


def check_found(problem: Problem, found: FoundSequence | None) -> None:
    """Checks that a local search found a valid plan whose time and peak are those of the replay."""
    assert found is not None
    plan = plan_from_sequence(problem, found.sequence)
    replay = simulate(problem, plan)
    assert (found.time_ns, found.peak_bytes) == (replay.time_ns, replay.peak_bytes)
    assert validate(problem, plan) == []
