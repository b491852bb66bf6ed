"""Tests of the state search of small problems, against exhaustive search and a closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import adversarial, chain, random_chain, random_layered, training_graph
from remat_solvers.optimal.auto import Auto
from remat_solvers.optimal.state_search import StateSearch
from remat_solvers.problem import Problem
from remat_solvers.recompute.brute_force.states import Search
from remat_solvers.result import Limits, Order, Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from tests.solvers.makers import budget_above_floor

STATES = 100_000
SHARES = (0.0, 0.1, 0.3, 0.6, 0.9)  # of the distance from the floor to the store-all peak
ONLY_STATES = Auto(chains=False, lagrangian=False, methods=False, search=False, program=False)


def budgets(problem: Problem) -> list[int]:
    """Budgets from the floor up that the store-all plan exceeds."""
    shares = [budget_above_floor(problem, share) for share in SHARES]
    return [budget for budget in shares if budget < baseline(problem).peak_bytes]


def constrained_problems(seeds: int) -> Iterator[tuple[Problem, int]]:
    for seed in range(seeds):
        small = (p for p in (adversarial(seed),) if len(p.ops) <= 9 and len(p.values) <= 20)
        for problem in (training_graph(1 + seed % 4, seed), random_layered(4 + seed % 4, seed), *small):
            for budget_bytes in budgets(problem):
                yield problem, budget_bytes


def time_of(problem: Problem, sequence: list[int]) -> int:
    return sum(problem.ops[op].time_ns for op in sequence)


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("tangents_first", [False, True])
def test_the_same_optimum_as_exhaustive_search(order: Order, tangents_first: bool) -> None:
    plans = proofs = repeating = 0
    for problem, budget_bytes in constrained_problems(80):
        search = StateSearch(problem, budget_bytes, order=order, tangents_first=tangents_first)
        search.run(STATES)
        assert search.done
        judge = Search(problem, budget_bytes, "free" if order is Order.FREE else "given", None)
        judge.tangents = judge.tangents if tangents_first else None
        best = judge.shortest(cheapest=True)
        assert (search.sequence is None) == (best is None)
        if search.sequence is None or best is None:
            proofs += 1
            continue
        assert time_of(problem, search.sequence) == time_of(problem, best) == search.bound_ns
        if tangents_first:
            assert simulate(problem, plan_from_sequence(problem, search.sequence)).peak_bytes <= budget_bytes
        plans += 1
        repeating += len(search.sequence) > len(problem.ops)
    assert plans > 100
    assert proofs > 100
    assert repeating > 50


def test_intermediate_bounds_rise_to_the_optimum() -> None:
    """The search expands one state at a time; the times of its plans fall to the optimum."""
    early = 0
    for seed in range(20):
        problem = training_graph(5, seed)
        for budget_bytes in budgets(problem):
            search = StateSearch(problem, budget_bytes, order=Order.FREE, tangents_first=False)
            bounds, times = [search.bound_ns], []
            while not search.done and search.met < STATES:
                search.run(1)
                bounds.append(search.bound_ns)
                if search.sequence is not None:
                    times.append(time_of(problem, search.sequence))
            assert search.done
            assert bounds == sorted(bounds)
            assert times == sorted(times, reverse=True)
            if times:
                assert bounds[-1] == times[-1]
                early += times[0] > times[-1]
    assert early


def test_several_slices_give_the_result_of_one_run() -> None:
    problem = random_chain(6, 3)
    for budget_bytes in budgets(problem):
        whole, sliced = (StateSearch(problem, budget_bytes, order=Order.FREE, tangents_first=False) for _ in range(2))
        whole.run(STATES)
        while not sliced.done:
            sliced.run(7)
        assert (whole.sequence, whole.bound_ns, whole.met) == (sliced.sequence, sliced.bound_ns, sliced.met)


@pytest.mark.parametrize("order", ["given", "any"])
def test_chains_reach_the_optimum_of_the_chain_solver(order: Literal["given", "any"]) -> None:
    """The closed form is the binomial schedule of Griewank and Walther (2000)."""
    tight = 0
    only_states = replace(ONLY_STATES, order=order)
    for n in range(2, 9):
        problem = chain(n)
        unmodified = baseline(problem).peak_bytes
        for budget_bytes in range(3, unmodified):
            reference = solve(problem, budget_bytes, solver="revolve")
            found = solve(problem, budget_bytes, solver=only_states, limits=Limits(None))
            assert found.status is (Status.OPTIMAL if reference.plan is not None else found.status)
            assert reference.time_ns is None or found.time_ns == reference.time_ns
            tight += reference.time_ns is not None
    assert tight > 10


def test_infeasible_budgets_are_proven_infeasible() -> None:
    """On these problems of a dozen ops and more, the coarse program and local search leave feasibility open."""
    proven = 0
    for seed in range(40):
        problem = training_graph(6, seed)
        for budget_bytes in budgets(problem):
            result = solve(problem, budget_bytes, solver=ONLY_STATES, limits=Limits(None))
            assert result.status in (Status.OPTIMAL, Status.FEASIBLE, Status.INFEASIBLE)
            proven += result.status is Status.INFEASIBLE and result.budget_bytes >= peak_bound_bytes(problem)
    assert proven > 20
