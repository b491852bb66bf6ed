"""Tests of local search: its running totals are compared with the replay, and its plans with brute force."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import pytest

from remat_solvers import generate
from remat_solvers.bounds import time_bound_ns
from remat_solvers.optimal.local_search.annealing import FoundSequence, SearchError, SequenceSearch
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.brute_force.solver import best_sequence
from tests.solvers.checks import check_found
from tests.solvers.makers import budget_above_static


def random_problems(seed: int) -> list[Problem]:
    return [
        generate.training_graph(3 + seed % 40, seed),
        generate.adversarial(seed),
        generate.random_layered(5 + 3 * seed % 200, seed),
        generate.random_chain(3 + seed % 10, seed),
    ]


@pytest.mark.parametrize("free_order", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_running_totals_equal_the_replay(seed: int, free_order: bool) -> None:
    for problem in random_problems(seed):
        search = SequenceSearch(problem, budget_above_static(problem, 0.6), free_order=free_order, seed=seed)
        check_found(problem, search.current)
        for moves in (1, 7, 60, 400, 1000):
            search.run(moves=moves)
            check_found(problem, search.current)
        check_found(problem, search.smallest)
        if search.best is not None:
            check_found(problem, search.best)
            assert search.best.peak_bytes <= budget_above_static(problem, 0.6)


@pytest.mark.parametrize("seed", range(10))
def test_first_computations_keep_their_order_unless_they_may_move(seed: int) -> None:
    problem = generate.random_layered(60, seed)
    orders = {}
    for free_order in (False, True):
        search = SequenceSearch(problem, budget_above_static(problem, 0.8), free_order=free_order, seed=seed)
        search.run(moves=2000)
        assert search.current is not None
        orders[free_order] = list(dict.fromkeys(search.current.sequence))
    assert orders[False] == list(range(60))
    assert orders[True] != orders[False]


@pytest.mark.parametrize("order", ["given", "free"])
def test_search_reaches_the_optimum_of_tiny_problems(order: str) -> None:
    solvable = missed = 0
    for seed in range(40):
        problem = generate.random_chain(3 + seed % 4, seed)
        for share in (0.7, 0.8, 0.9):
            budget = budget_above_static(problem, share)
            best = best_sequence(problem, budget, order=order)
            search = SequenceSearch(problem, budget, free_order=order == "free", seed=seed)
            search.run(moves=6000)
            if best is None:
                assert search.best is None
                continue
            optimum = sum(problem.ops[op].time_ns for op in best)
            solvable += 1
            if search.best is None or search.best.time_ns > optimum:
                missed += 1
            else:
                assert search.best.time_ns == optimum
    assert solvable >= 70
    assert missed <= solvable // 10


@pytest.mark.parametrize(("n", "slots", "extra"), [(50, 8, 65), (50, 12, 39), (50, 20, 31), (100, 15, 86)])
def test_uniform_chains_come_near_the_optimum(n: int, slots: int, extra: int) -> None:
    """The smallest number of extra forward computations is known from the dynamic program of binomial checkpointing."""
    search = SequenceSearch(generate.chain(n), slots, free_order=False, seed=0)
    search.run(moves=400_000)
    optimum = 3 * n + extra
    assert search.best is not None
    assert optimum <= search.best.time_ns <= 1.02 * optimum


def test_splitting_the_moves_does_not_change_the_sequence() -> None:
    problem = generate.training_graph(40, 3)
    found = []
    for split in ([5000], [1, 63, 64, 1000, 3872], [2500, 2500]):
        search = SequenceSearch(problem, budget_above_static(problem, 0.6), free_order=True, seed=5)
        assert sum(search.run(moves=moves) for moves in split) == 5000
        found.append((search.current, search.best, search.smallest))
    assert found[0] == found[1] == found[2]


def test_search_continues_from_an_offered_sequence() -> None:
    problem = generate.chain(30)
    budget = 10
    other = SequenceSearch(problem, budget, free_order=False, seed=1)
    other.run(moves=100_000)
    assert other.best is not None
    search = SequenceSearch(problem, budget, free_order=False, seed=2)
    assert search.best is None
    search.offer(other.best.sequence)
    assert search.best == other.best
    search.run(moves=1000)
    assert search.best.time_ns <= other.best.time_ns


def test_another_budget() -> None:
    problem = generate.chain(30)
    search = SequenceSearch(problem, 10, free_order=False, seed=1)
    search.run(moves=50_000)
    tight = search.best
    assert tight is not None
    search.set_budget(20)
    search.run(moves=50_000)
    loose = search.best
    assert loose is not None
    assert loose.peak_bytes <= 20
    assert loose.time_ns < tight.time_ns
    search.set_budget(31)
    search.run(moves=50_000)
    assert search.done
    assert search.best is not None
    assert search.best.time_ns == time_bound_ns(problem)
    assert search.run(moves=1000) == 0


def test_stop_ends_a_run_in_another_thread() -> None:
    search = SequenceSearch(generate.chain(100), 10, free_order=False, seed=1)
    thread = threading.Thread(target=search.run)
    thread.start()
    time.sleep(0.1)
    search.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_ctrl_c_keeps_the_best_sequence_so_far() -> None:
    problem = generate.chain(100)
    search = SequenceSearch(problem, 20, free_order=False, seed=1)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        search.run(seconds=60)
    check_found(problem, search.best)


def test_seconds_are_a_limit() -> None:
    search = SequenceSearch(generate.chain(100), 10, free_order=False, seed=1)
    start = time.perf_counter()
    assert search.run(seconds=0.1) > 0
    assert time.perf_counter() - start < 5


def test_huge_values_are_exact_and_larger_ones_are_refused() -> None:
    problem = generate.chain(7, size_bytes=2**59)  # 14 values: 7 * 2**60 in all
    search = SequenceSearch(problem, 5 * 2**59, free_order=False, seed=0)
    search.run(moves=3000)
    check_found(problem, search.best)
    with pytest.raises(SearchError, match="2\\*\\*63"):
        SequenceSearch(generate.chain(8, size_bytes=2**59), 5 * 2**59, free_order=False, seed=0)


def test_nothing_to_search() -> None:
    op = Op("only", "forward", (), (0,), 1, 5)
    problem = Problem("one op", (op,), (Value("v", 3, "activation"),), (0,))
    search = SequenceSearch(problem, 8, free_order=True, seed=0)
    assert search.run(moves=10) == 0
    assert search.best == FoundSequence([0], 1, 8)
    tight = SequenceSearch(problem, 7, free_order=True, seed=0)
    tight.run(moves=100)
    assert tight.best is None
    assert tight.smallest == FoundSequence([0], 1, 8)
    empty = SequenceSearch(
        replace(problem, ops=(), values=(), results=(), reserve_bytes=4), 5, free_order=False, seed=0
    )
    assert empty.run(moves=10) == 0
    assert empty.best == FoundSequence([], 0, 4)
