"""Uniform chains, and nothing else, are recognised in any order of values; they are solved exactly at every budget."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import chain, random_chain, training_graph
from remat_solvers.optimal.uniform_chain import recognise_uniform_chain, solve_uniform_chain
from remat_solvers.problem import Link, Op, Phase, Problem, Value
from remat_solvers.recompute.brute_force.solver import best_sequence
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.result import Limits, Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import Timeline, simulate
from remat_solvers.validate import validate


def variant(n: int, seed: int, *, plain: bool) -> Problem:
    """A random uniform chain: which state the backward reads, whether tangents exist and which values are results vary.

    In a plain chain, gradients have the size of states, forward ops need no more workspace than backward ops, and the
    last layer equals the others."""
    rng = random.Random(seed)
    reads_own_state, with_tangents = rng.random() < 0.5, rng.random() < 0.5
    size, gradient = rng.choice(((1, 1), (2, 2)) if plain else ((2, 1), (1, 3), (3, 3)))
    step_ns, last_ns = rng.choice(((1, 1), (3, 3)) if plain else ((1, 2), (3, 1)))
    last_bytes = size if plain else rng.choice((0, size, 4))
    larger_bytes, smaller_bytes = rng.choice(((0, 0), (1, 0), (5, 1), (5, 5)))
    workspace = (
        {"backward": larger_bytes, "forward": smaller_bytes}
        if plain
        else {"backward": smaller_bytes, "forward": larger_bytes}
    )
    values = [Value("weight", 7, "constant")]
    ops: list[Op] = []

    def add_op(phase: Phase, reads: list[int], size_bytes: int, time_ns: int) -> int:
        values.append(Value("", size_bytes, "activation" if phase == "forward" else "gradient"))
        reads = [*reads, *rng.choice(([], [0]))]
        ops.append(Op(phase, phase, tuple(reads), (len(values) - 1,), time_ns, workspace[phase]))
        return len(values) - 1

    states: list[int] = []
    for _ in range(n - 1):
        states.append(add_op("forward", states[-1:], size, step_ns))
    states.append(add_op("forward", states[-1:], last_bytes, last_ns))
    carried = states[-1]
    if with_tangents:
        values.append(Value("", gradient, "gradient"))
        ops.append(Op("tangents", "backward", (), (len(values) - 1,), 0, recomputable=False))
        carried = len(values) - 1
    for i in range(n, 0, -1):
        read = states[i - 1 : i] if reads_own_state else states[max(0, i - 2) : i - 1]
        carried = add_op("backward", list(dict.fromkeys([carried, *read])), gradient, rng.randint(0, 4))
    results = {carried, *rng.choice(([], [states[-1]], [0]))}
    return permuted(Problem("variant", tuple(ops), tuple(values), tuple(results)), rng)


def permuted(problem: Problem, rng: random.Random) -> Problem:
    """The same problem with its values in another order."""
    order = list(range(len(problem.values)))
    rng.shuffle(order)
    place = {value: k for k, value in enumerate(order)}

    def mapped(indices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(place[v] for v in indices)

    ops = [replace(op, inputs=mapped(op.inputs), outputs=mapped(op.outputs)) for op in problem.ops]
    values = tuple(problem.values[v] for v in order)
    return replace(problem, ops=tuple(ops), values=values, results=mapped(problem.results))


def replayed(problem: Problem, sequence: list[int], budget_bytes: int) -> Timeline:
    plan = plan_from_sequence(problem, sequence)
    assert validate(problem, plan, budget_bytes) == []
    return simulate(problem, plan)


def optimum_ns(problem: Problem, budget_bytes: int) -> int | None:
    sequence = best_sequence(problem, budget_bytes)
    return None if sequence is None else sum(problem.ops[op].time_ns for op in sequence)


@pytest.mark.parametrize(
    ("n", "slots", "extra"),
    [
        *(
            (50, 20, 31),
            (50, 12, 39),
            (50, 8, 65),
            (50, 6, 95),
            (100, 40, 61),
            (100, 20, 81),
            (100, 15, 86),
            (100, 8, 181),
        ),
        *((250, 10, 531), (500, 16, 865), (500, 24, 701), (1000, 32, 1473), (1000, 64, 937)),
    ],
)
def test_published_optima_of_uniform_chains(n: int, slots: int, extra: int) -> None:
    """`extra` is the number of recomputed forward ops that an independent dynamic program found."""
    problem = chain(n, size_bytes=10, forward_ns=7, backward_ns=5)
    solved = solve_uniform_chain(problem, 10 * slots + 9)
    assert solved is not None
    sequence, bound_ns = solved
    timeline = replayed(problem, sequence, 10 * slots + 9)
    assert timeline.time_ns == bound_ns == n * (7 + 5) + extra * 7


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_solution_is_exact_at_every_budget(n: int) -> None:
    problem = permuted(chain(n), random.Random(n))
    for budget_bytes in range(1, n + 3):
        solved = solve_uniform_chain(problem, budget_bytes)
        best = optimum_ns(problem, budget_bytes)
        if solved is None:
            assert best is None
        else:
            assert replayed(problem, solved[0], budget_bytes).time_ns == solved[1] == best


@pytest.mark.parametrize("plain", [True, False])
def test_bound_and_plan_enclose_the_optimum(plain: bool) -> None:
    """Bound <= optimum <= plan, with equality at every budget where the chain is plain."""
    exact = budgets = 0
    for seed in range(60):
        problem = variant(2 + seed % 5, seed, plain=plain)
        assert recognise_uniform_chain(problem) is not None
        unmodified = baseline(problem).peak_bytes
        for budget_bytes in range(peak_bound_bytes(problem), unmodified):
            solved = solve_uniform_chain(problem, budget_bytes)
            best = optimum_ns(problem, budget_bytes)
            budgets += 1
            if best is None:
                assert solved is None
                exact += 1
            elif solved is not None:
                time_ns = replayed(problem, solved[0], budget_bytes).time_ns
                assert solved[1] <= best <= time_ns
                exact += solved[1] == time_ns
    assert budgets > 100
    assert exact == budgets if plain else exact > budgets // 3


def test_checkmate_proves_the_same_optimum() -> None:
    for n, budget_bytes in ((10, 5), (12, 6)):
        problem = chain(n)
        solved = solve_uniform_chain(problem, budget_bytes)
        outcome = Checkmate().solve(problem, budget_bytes, limits=Limits(None), on_progress=None, seed=0)
        assert outcome.status is Status.OPTIMAL
        assert solved is not None
        assert outcome.bound_ns == solved[1]


def deviations(problem: Problem) -> list[Problem]:
    """Chains with one change that the theorem does not cover."""
    ops, values = problem.ops, problem.values
    n = len(problem.forward_ops)

    def with_op(index: int, **changes: object) -> Problem:
        return replace(problem, ops=tuple(replace(op, **changes) if i == index else op for i, op in enumerate(ops)))

    two_states = with_op(n + 1, inputs=(*ops[n + 1].inputs, n - 2))  # reads the states before and after its layer
    state_is_result = replace(problem, results=(*problem.results, 1))
    larger_state = replace(problem, values=tuple(replace(v, bytes=2) if i == 1 else v for i, v in enumerate(values)))
    zero_bytes = replace(problem, values=tuple(replace(v, bytes=0) for v in values))
    extra_op = replace(problem, ops=(*ops, Op("norm", "backward", (2 * n - 1,), (), 1)))
    return [
        *(with_op(2, time_ns=5), with_op(2, recomputable=False), with_op(2, inputs=(0, 1))),
        *(two_states, state_is_result, larger_state, zero_bytes, extra_op, replace(problem, link=Link(1, 1))),
    ]


@pytest.mark.parametrize("problem", [*deviations(chain(6)), random_chain(6, 1), training_graph(5, 1), chain(1)])
def test_deviating_chains_are_not_recognised(problem: Problem) -> None:
    assert recognise_uniform_chain(problem) is None
    assert solve_uniform_chain(problem, 4) is None


def test_a_thousand_layers_are_solved_within_a_second() -> None:
    problem = chain(1000)
    started = time.process_time()
    for slots in (8, 100, 1000):
        solve_uniform_chain(problem, slots)
    assert time.process_time() - started < 1
