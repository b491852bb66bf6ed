"""Tests of the replay: traces by hand, and a naive second implementation of the memory model on random plans."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import PlanError
from remat_solvers.generate import adversarial, chain, random_plan, training_graph
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate


def two_ops(link: Link | None = None) -> Problem:
    """A constant of 100 bytes; op a computes 10 bytes in 5 ns with workspace 3; op b computes 20 in 7 ns."""
    return Problem(
        name="two",
        ops=(
            Op("a", "forward", (0,), (1,), 5, workspace_bytes=3),
            Op("b", "backward", (1,), (2,), 7),
        ),
        values=(Value("w", 100, "constant"), Value("x", 10, "activation"), Value("y", 20, "gradient")),
        results=(2,),
        link=link,
        reserve_bytes=1000,
    )


def test_memory_and_time_of_a_plain_plan() -> None:
    line = simulate(two_ops(), Plan([Compute(0), Compute(1), Free(1)]))
    assert line.memory_bytes.tolist() == [1110, 1130, 1120]
    assert (line.peak_bytes, line.peak_action, line.boundary) == (1130, 1, 1)
    assert (line.time_ns, line.wait_ns, line.host_bytes) == (12, 0, 0)


def test_a_resident_output_counts_while_its_op_is_recomputed() -> None:
    line = simulate(two_ops(), Plan([Compute(0), Compute(0), Compute(1)]))
    assert line.memory_bytes.tolist() == [1110, 1110, 1130]
    assert line.peak_bytes == 1130
    line = simulate(two_ops(), Plan([Compute(0), Compute(0), Compute(1), Free(1), Compute(0)]))
    assert line.peak_bytes == 1133  # result 20, new output 10, workspace 3
    assert line.peak_action == 4


def test_copies_wait_for_each_other_and_compute_waits_for_copies() -> None:
    # One byte takes 10 ns to the host and 20 ns back, with 1 ns latency: 10 bytes take 101 and 201 ns.
    link = Link(10**8, 5 * 10**7, 1)
    plan = Plan([Compute(0), Offload(1), Free(1), Fetch(1), Compute(1)])
    line = simulate(two_ops(link), plan)
    # Free waits from 5 to 106; the fetch runs from 106 to 307; b from 307 to 314.
    assert line.time_ns == 314
    assert line.wait_ns == 302
    assert line.memory_bytes.tolist() == [1110, 1110, 1100, 1110, 1130]
    assert (line.boundary, line.host_bytes) == (3, 10)


def test_an_offload_without_a_waiter_costs_no_time_but_a_fetched_result_does() -> None:
    link = Link(10**9, 10**9)
    assert simulate(two_ops(link), Plan([Compute(0), Compute(1), Offload(1)])).time_ns == 12
    plan = Plan([Compute(0), Compute(1), Offload(2), Free(2), Fetch(2)])
    assert simulate(two_ops(link), plan).time_ns == 12 + 20 + 20


def test_an_offload_waits_for_the_arrival_of_a_value_being_fetched() -> None:
    link = Link(10**9, 10**8)
    plan = Plan([Compute(0), Offload(1), Free(1), Fetch(1), Offload(1), Free(1), Fetch(1), Compute(1)])
    # a ends at 5; offload 5-15; fetch 15-115; offload 115-125, which Free awaits; fetch 125-225; b ends at 232
    assert simulate(two_ops(link), plan).time_ns == 232


def test_copy_times_round_up() -> None:
    link = Link(3_000_000_000, 10**9)
    plan = Plan([Compute(0), Offload(1), Free(1), Compute(0), Compute(1)])
    assert simulate(two_ops(link), plan).time_ns == 5 + 4 + 5 + 7  # ceil(10 / 3) = 4


LINK = Link(10**9, 10**9)


@pytest.mark.parametrize(
    ("link", "actions", "action"),
    [
        (None, [Compute(1)], 0),
        (None, [Compute(2)], 0),
        (None, [Compute(-1)], 0),
        (None, [Compute(0), Free(2)], 1),
        (None, [Compute(0), Free(0)], 1),
        (None, [Compute(0), Free(9)], 1),
        (None, [Compute(0), Free(1), Free(1)], 2),
        (None, [Compute(0), Offload(1)], 1),
        (LINK, [Offload(0)], 0),
        (LINK, [Offload(1)], 0),
        (LINK, [Compute(0), Fetch(1)], 1),
        (LINK, [Compute(0), Offload(1), Fetch(1)], 2),
        (None, [Compute(0)], None),
        (None, ["compute"], 0),
        (None, [Compute(True)], 0),
    ],
)
def test_an_invalid_action_is_refused_at_its_index(
    link: Link | None, actions: list[Action], action: int | None
) -> None:
    with pytest.raises(PlanError) as error:
        simulate(two_ops(link), Plan(actions))
    assert error.value.action == action


def test_bytes_beyond_64_bits_are_refused() -> None:
    huge = Problem("huge", (Op("a", "forward", (), (0, 1), 0),), (Value("x", 2**63 - 1, "activation"),) * 2, ())
    with pytest.raises(PlanError):
        simulate(huge, Plan([Compute(0)]))


def test_an_empty_plan_of_an_empty_problem() -> None:
    line = simulate(Problem("empty", (), (), (), reserve_bytes=5), Plan())
    assert (line.peak_bytes, line.time_ns, line.peak_action, line.boundary) == (5, 0, -1, 0)


def reference(problem: Problem, plan: Plan) -> tuple[int, int, list[int], int]:
    """Peak, time, memory after every action, and host bytes, by a literal reading of the rules, not incrementally."""
    sizes = {v: value.bytes for v, value in enumerate(problem.values)}
    constants = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
    resident = set(constants)
    copies: list[tuple[str, int, int, int]] = []  # direction, value, start, end
    clock = 0
    moments = [sum(sizes[v] for v in resident) + problem.reserve_bytes]
    memory_after: list[int] = []

    def resident_bytes() -> int:
        return sum(sizes[v] for v in resident) + problem.reserve_bytes

    def ends_of(direction: str, value: int | None = None) -> list[int]:
        return [end for d, v, _, end in copies if d == direction and value in (None, v)]

    def copy(direction: str, value: int, rate: int, ready: int) -> None:
        assert problem.link is not None
        start = max([clock, ready, *ends_of(direction)])
        quotient, remainder = divmod(sizes[value] * 10**9, rate)
        copies.append((direction, value, start, start + problem.link.latency_ns + quotient + (remainder > 0)))

    for action in plan:
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            clock = max([clock, *(end for v in op.inputs for end in ends_of("in", v))]) + op.time_ns
            moments.append(resident_bytes() + sum(sizes[v] for v in op.outputs) + op.workspace_bytes)
            resident |= set(op.outputs)
        elif isinstance(action, Free):
            clock = max([clock, *ends_of("in", action.value), *ends_of("out", action.value)])
            resident.remove(action.value)
        elif isinstance(action, Offload):
            assert problem.link is not None
            copy("out", action.value, problem.link.to_host_bytes_per_s, max([0, *ends_of("in", action.value)]))
        else:
            assert problem.link is not None
            copy("in", action.value, problem.link.to_device_bytes_per_s, ends_of("out", action.value)[0])
            resident.add(action.value)
        moments.append(resident_bytes())
        memory_after.append(resident_bytes())
    clock = max([clock, *(end for v in problem.results for end in ends_of("in", v))])
    return max(moments), clock, memory_after, sum(sizes[v] for v in {v for d, v, _, _ in copies if d == "out"})


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), link=st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_replay_of_random_plans_equals_the_reference(n: int, seed: int, link: bool) -> None:
    problem = training_graph(n, seed, link=link)
    plan = random_plan(problem, seed)
    line = simulate(problem, plan)
    assert (line.peak_bytes, line.time_ns, line.memory_bytes.tolist(), line.host_bytes) == reference(problem, plan)
    computed = sum(problem.ops[a.op].time_ns for a in plan if isinstance(a, Compute))
    assert line.time_ns == computed + line.wait_ns


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_the_replay_of_adversarial_problems_equals_the_reference(seed: int) -> None:
    problem = adversarial(seed)
    plan = random_plan(problem, seed)
    line = simulate(problem, plan)
    assert (line.peak_bytes, line.time_ns, line.memory_bytes.tolist(), line.host_bytes) == reference(problem, plan)


def test_ten_thousand_actions_replay_in_well_under_a_second() -> None:
    problem = chain(2600)
    plan = store_all(problem)
    assert len(plan) > 10_000
    start = time.perf_counter()
    simulate(problem, plan)
    assert time.perf_counter() - start < 0.5
