"""Tests of exhaustive search with copies: no plan beats it, and the value of a link follows the laws."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remat_solvers.bounds import time_bound_ns
from remat_solvers.generate import random_plan
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.brute_force.solver import BruteForce, best_moving_plan, best_sequence
from remat_solvers.result import Order, Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.validate import validate
from tests.solvers.makers import constrained_linked_steps, poet_chain


def time_of(problem: Problem, budget_bytes: int, link: Link) -> float:
    """The time of the exact optimum over this link."""
    plan = best_moving_plan(replace(problem, link=link), budget_bytes)
    return float("inf") if plan is None else simulate(replace(problem, link=link), plan).time_ns


def keeps_order(plan: Plan) -> bool:
    """Whether first computations keep the order of the problem."""
    computed: list[int] = []
    for action in plan:
        if isinstance(action, Compute) and action.op not in computed:
            computed.append(action.op)
    return computed == sorted(computed)


def test_neither_random_plans_nor_recomputation_alone_beat_it() -> None:
    faster = 0
    for problem, budget_bytes in constrained_linked_steps(53):
        plan = best_moving_plan(problem, budget_bytes)
        sequence = best_sequence(problem, budget_bytes)
        if plan is None:
            assert sequence is None
            best = float("inf")
        else:
            assert validate(problem, plan, budget_bytes) == []
            assert keeps_order(plan)
            best = simulate(problem, plan).time_ns
        alone = float("inf")
        if sequence is not None:
            alone = simulate(problem, plan_from_sequence(problem, sequence)).time_ns
        assert best <= alone
        faster += best < alone
        for seed in range(60):
            other = random_plan(problem, seed)
            line = simulate(problem, other)
            if line.peak_bytes <= budget_bytes and keeps_order(other):
                assert line.time_ns >= best
        free = best_moving_plan(problem, budget_bytes, order="free")
        assert (float("inf") if free is None else simulate(problem, free).time_ns) <= best
    assert faster > 3


def test_a_slower_link_never_helps() -> None:
    for problem, budget_bytes in constrained_linked_steps(53):
        link = problem.link
        assert link is not None
        times = []
        for halvings in range(3):
            rates = (link.to_host_bytes_per_s >> halvings, link.to_device_bytes_per_s >> halvings)
            times.append(
                time_of(
                    problem, budget_bytes, replace(link, to_host_bytes_per_s=rates[0], to_device_bytes_per_s=rates[1])
                )
            )
        assert times == sorted(times)
        sequence = best_sequence(problem, budget_bytes)
        if sequence is not None:
            alone = simulate(problem, plan_from_sequence(problem, sequence)).time_ns
            assert time_of(problem, budget_bytes, Link(1, 1)) == alone


def test_a_fast_link_costs_nothing_where_every_op_fits_beside_constants_and_results() -> None:
    """Times are in ms, so that the copies of 1 ns each are negligible."""
    compared = 0
    for original, _ in constrained_linked_steps(53):
        problem = replace(original, ops=tuple(replace(op, time_ns=op.time_ns * 10**6) for op in original.ops))
        size = [v.bytes for v in problem.values]
        kept = problem.static_bytes + sum(size[v] for v in problem.results)
        largest = max(sum(size[v] for v in {*op.inputs, *op.outputs}) + op.workspace_bytes for op in problem.ops)
        if kept + largest >= baseline(problem).peak_bytes:
            continue
        compared += 1
        assert time_of(problem, kept + largest, Link(10**18, 10**18)) < time_bound_ns(problem) + 1000
    assert compared > 3


def test_by_hand() -> None:
    """The chain has three layers. In 4 values, f2 is off the device from the loss to b2, which hides its two copies of
    3 ns. In 3, the device is full during b2 to b0: f1 and f0 arrive after the op before has freed memory, 3 ns each."""
    problem = poet_chain(3)
    assert time_of(problem, 12, Link(10**9, 10**9)) == 70
    assert time_of(problem, 9, Link(10**9, 10**9)) == 76
    assert time_of(problem, 8, Link(10**9, 10**9)) == float("inf")


def test_the_outcome_of_a_small_problem() -> None:
    problem = poet_chain(2)
    result = solve(problem, 9, solver=BruteForce())
    assert (result.status, result.order) == (Status.OPTIMAL, Order.GIVEN)
    assert result.bound_ns == result.time_ns
    result = solve(problem, 9, solver=BruteForce(max_moving_ops=4))
    assert (result.status, result.bound_ns) == (Status.FEASIBLE, None)
    assert result.time_ns == 60  # recomputing f0 takes twice the time of waiting for it


@pytest.mark.parametrize("order", ["given", "free"])
def test_very_long_copies_are_possible(order: str) -> None:
    """Values have 1 TiB at a byte per second, together above 2**63 ns: f0, offload v0, b1, fetch v0, b0."""
    problem = poet_chain(2)
    values = tuple(replace(v, bytes=2**40) for v in problem.values)
    fixed = tuple(replace(op, recomputable=False) for op in problem.ops)
    problem = replace(problem, ops=fixed, values=values, link=Link(1, 1))
    result = solve(problem, 3 * 2**40, solver=BruteForce(order=order))  # type: ignore[arg-type]
    assert result.status is Status.OPTIMAL
    assert result.time_ns == 10 + 2**40 * 10**9 + 10 + 2**40 * 10**9 + 10


@pytest.mark.parametrize("order", ["given", "free"])
def test_the_capacity_of_the_host_is_kept(order: str) -> None:
    problem = poet_chain(2)
    assert problem.link is not None
    full = replace(problem, link=replace(problem.link, host_bytes=2))
    sequence = best_sequence(problem, 9)
    assert sequence is not None
    plan = best_moving_plan(full, 9, order=order)  # type: ignore[arg-type]
    assert plan is not None
    assert simulate(full, plan).time_ns == 10 * len(sequence)
