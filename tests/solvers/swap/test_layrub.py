"""Tests of Layrub: the times at which data moves, by counts and by hand, and a peak that is independent of depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remat_solvers.generate import chain, training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.result import Status
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.layrub import migrating_plan, migrations
from remat_solvers.swap.superneurons.pool_allocator import pool_use
from tests.solvers.makers import with_link


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6))
def test_shared_data_moves_after_its_last_forward_reader(n: int, seed: int) -> None:
    problem = with_link(training_graph(n, seed))
    computed: set[int] = set()
    for action in migrating_plan(problem):
        if isinstance(action, Compute):
            computed.add(action.op)
        elif isinstance(action, Offload):
            forward = [op for op in problem.consumers[action.value] if problem.ops[op].phase == "forward"]
            assert computed.issuperset(forward)
            assert not any(problem.ops[op].phase == "backward" for op in computed)


def test_counts_of_a_fork() -> None:
    """v0 is read by three layers and moves with the last; v1 and v2 move with their one reader; v3 moves with none."""
    reads = {"a": (), "b": (0,), "c": (0, 1), "d": (0, 2)}
    ops = [Op(name, "forward", inputs, (k,), 10) for k, (name, inputs) in enumerate(reads.items())]
    ops += [Op(f"g{k}", "backward", (3 - k, 3 + k) if k else (3,), (4 + k,), 10) for k in range(4)]
    values = [Value(f"v{k}", 10, "activation" if k < 4 else "gradient") for k in range(8)]
    problem = Problem("fork", tuple(ops), tuple(values), (7,), link=Link(10**9, 10**9))
    assert migrations(problem) == [(1, 2), (0, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("n", [8, 20, 100])
def test_the_peak_of_a_uniform_chain_is_the_same_at_any_depth(n: int) -> None:
    """In backward, a layer's data, the next layer's data, which is being fetched, and two gradients are resident."""
    problem = with_link(chain(n, size_bytes=10, forward_ns=10, backward_ns=10))
    assert baseline(problem).peak_bytes == 10 * (n + 1)
    assert simulate(problem, migrating_plan(problem)).peak_bytes == 40


def events(problem: Problem) -> str:
    words = {Offload: "out", Free: "free", Fetch: "in"}
    names = []
    for action in migrating_plan(problem):
        if isinstance(action, Compute):
            names.append(problem.ops[action.op].target)
        elif problem.ops[problem.producer[action.value]].phase == "forward":
            names.append(f"{words[type(action)]}{action.value}")
    return " ".join(names)


def test_copies_run_beside_the_neighbours() -> None:
    """v0 is read by F2, copied beside F3, and fetched beside B3, the backward before that of its layer."""
    problem = with_link(chain(5, size_bytes=10, forward_ns=10, backward_ns=10))
    assert events(problem) == (
        "F1 F2 out0 F3 out1 free0 F4 out2 free1 F5 free2 in2 B5 free3 free4 in1 B4 free2 in0 B3 free1 B2 free0 B1"
    )


@pytest.mark.parametrize(("copy_ns", "wait_ns"), [(10, 0), (15, 3 * 5 + 3 * 5), (30, 3 * 20 + 3 * 20)])
def test_compute_waits_for_copies_that_a_neighbour_cannot_hide(copy_ns: int, wait_ns: int) -> None:
    problem = chain(5, size_bytes=10, forward_ns=10, backward_ns=10)
    values = tuple(replace(v, bytes=copy_ns) for v in problem.values)
    problem = with_link(replace(problem, values=values))
    assert simulate(problem, migrating_plan(problem)).wait_ns == wait_ns


def test_a_plan_is_found_if_and_only_if_it_fits() -> None:
    problem = with_link(chain(20, size_bytes=10))
    assert (
        solve(problem, 40, solver="layrub").plan == solve(problem, 100, solver="layrub").plan == migrating_plan(problem)
    )
    result = solve(problem, 39, solver="layrub")
    assert (result.status, result.smallest_peak_bytes) == (Status.NOT_FOUND, 40)
    assert solve(chain(20), 7, solver="layrub").status is Status.NOT_APPLICABLE


def test_the_capacity_of_the_host_is_kept() -> None:
    problem = replace(chain(20, size_bytes=10), link=Link(10**9, 10**9, host_bytes=35))
    plan = migrating_plan(problem)
    assert [a.value for a in plan if isinstance(a, Offload)] == [0, 1, 2]


def test_a_gradient_reuses_the_space_of_data_after_its_last_backward_use() -> None:
    """Intra-layer reuse holds as far as no op overwrites its own input. If another backward op reads data of 1 KB
    before the op that computes its gradient, the gradient has the address of the data; if that op reads it, both are
    adjacent."""
    for reads_itself in (False, True):
        ops = (
            Op("layer", "forward", (), (0,), 1),
            Op("first", "backward", (0,), (1,), 1),
            Op("gradient", "backward", (0, 1) if reads_itself else (1,), (2,), 1),
        )
        values = (Value("data", 1024, "activation"), Value("inner", 1024, "gradient"), Value("diff", 1024, "gradient"))
        problem = with_link(Problem("intra-layer", ops, values, (2,)))
        use = pool_use(problem, migrating_plan(problem))
        place = dict(zip(migrating_plan(problem), use.addresses, strict=True))
        assert (place[Compute(2)] == place[Compute(0)]) is not reads_itself
        assert use.pool_bytes == (3 if reads_itself else 2) * 1024
