"""Tests of binomial checkpointing: the closed form, the schedule that reaches it, and Gruslys' optimum."""

from __future__ import annotations

from itertools import pairwise

import pytest

from remat_solvers.errors import InputError
from remat_solvers.generate import chain
from remat_solvers.recompute.gruslys import steps_table
from remat_solvers.recompute.revolve import Revolve
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.binomial import binomial_schedule, forward_steps, repetitions
from remat_solvers.toolkit.chains.schedule import Advance, Save, forward_steps_of


@pytest.mark.parametrize(
    ("steps", "snapshots", "runs"), [(100, 5, 416), (100, 10, 322), (1000, 10, 4636), (1000, 20, 3747)]
)
def test_known_values(steps: int, snapshots: int, runs: int) -> None:
    assert forward_steps(steps, snapshots) == runs
    assert forward_steps_of(binomial_schedule(steps, snapshots)) == runs


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (2, 3)])
def test_the_recursion_of_checkpoint_schedules(forward: int, backward: int) -> None:
    """opt[m][l] = min over j of j uf + opt[m - 1][l - j] + opt[m][j - 1], as in the code of H-Revolve, is the cost of l
    + 1 steps with m snapshots. There ub includes the forward step inside a backward one; an advance alone costs uf."""
    steps, most = 25, 6
    opt = [[0] * steps for _ in range(most + 1)]
    for m in range(1, most + 1):
        opt[m][0] = backward
        opt[m][1] = forward + 2 * backward
        for last in range(2, steps):
            if m == 1:
                opt[1][last] = (last + 1) * backward + last * (last + 1) // 2 * forward
            else:
                opt[m][last] = min(j * forward + opt[m - 1][last - j] + opt[m][j - 1] for j in range(1, last))
        for last in range(steps):
            advances = forward_steps(last + 1, m) - (last + 1)
            assert opt[m][last] == advances * forward + (last + 1) * backward


def test_every_schedule_has_the_minimum_of_steps_and_of_repetitions() -> None:
    minimum = steps_table(60, 10, "hidden")
    for steps in range(1, 61):
        for snapshots in range(1, 11):
            schedule = binomial_schedule(steps, snapshots)
            assert forward_steps_of(schedule) == forward_steps(steps, snapshots) == minimum[steps, snapshots]
            advanced = [k for s in schedule if isinstance(s, Advance) for k in range(s.first, s.end)]
            assert max(map(advanced.count, range(steps))) <= repetitions(steps, snapshots)


def test_a_schedule_never_exceeds_its_snapshots() -> None:
    for snapshots in (1, 2, 3, 7):
        held, most = {0}, 1
        for step, after in pairwise(binomial_schedule(50, snapshots)):
            if isinstance(step, Save):
                held.discard(step.stage)  # its backward is next
            elif isinstance(step, Advance) and after != Save(
                step.end
            ):  # otherwise it is the running state and is used at once
                held.add(step.end)
            most = max(most, len(held))
        assert most == snapshots


def test_no_schedule_is_faster_on_a_unit_chain() -> None:
    problem = chain(60)
    for budget_bytes in range(5, 60, 6):
        binomial, program = (solve(problem, budget_bytes, solver=name) for name in ("revolve", "gruslys"))
        assert binomial.time_ns is not None
        assert program.time_ns is not None
        assert program.time_ns <= binomial.time_ns
        assert binomial.plan is not None
        assert simulate(problem, binomial.plan).peak_bytes <= budget_bytes


@pytest.mark.parametrize("arguments", [(-1, 3), (5, 0), (True, 3), (5, 2.0)])
def test_arguments_are_checked(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        forward_steps(*arguments)


@pytest.mark.parametrize("options", [{"snapshots": 0}, {"steps": "many"}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Revolve(**options)  # type: ignore[arg-type]
