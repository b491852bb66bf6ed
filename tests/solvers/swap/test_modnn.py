"""Tests of moDNN: the lower bound, the times of offloads and fetches, and the choice of implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import random_plan, training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.result import Limits, Outcome, Status
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.swap.modnn import ModNN, lower_bound_bytes
from remat_solvers.toolkit.transfers.kernel_choice import (
    Workspaces,
    choose_workspaces,
    choose_workspaces_for_plan,
    fastest_within,
)
from remat_solvers.validate import validate

LINK = Link(10**9, 10**9)  # a byte takes one ns


def outcome_of(problem: Problem, budget_bytes: int) -> Outcome:
    return ModNN().solve(problem, budget_bytes, limits=Limits(), on_progress=None, seed=0)


def trace(*reads: tuple[int, ...], sizes: tuple[int, ...], time_ns: int = 10) -> Problem:
    """Backward ops: op i reads reads[i] and computes value i of sizes[i] bytes; the last one is the result."""
    ops = tuple(Op(f"op{i}", "backward", r, (i,), time_ns, target="conv") for i, r in enumerate(reads))
    values = tuple(Value(f"v{i}", s, "activation") for i, s in enumerate(sizes))
    return Problem("trace", ops, values, (len(reads) - 1,), LINK)


def largest_working_set(problem: Problem) -> int:
    """The largest working set by its definition."""
    size = [v.bytes for v in problem.values]
    computed = {v for op in problem.ops for v in op.outputs}
    pinned = {v for v in problem.results if v in computed and problem.ops[problem.producer[v]].phase == "forward"}
    sets = [sum(size[v] for v in computed.intersection(problem.results))]
    last_forward = problem.forward_ops[-1] if problem.forward_ops else -1
    for index, op in enumerate(problem.ops):
        working_set = computed.intersection(op.inputs) | set(op.outputs)
        if op.phase == "backward" or index == last_forward:
            working_set |= pinned
        sets.append(sum(size[v] for v in working_set) + op.workspace_bytes)
    return problem.static_bytes + max(sets)


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_plans_exist_exactly_down_to_the_largest_working_set(n: int, seed: int, share: float) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    problem = replace(problem, link=replace(problem.link, host_bytes=None))
    smallest_budget = lower_bound_bytes(problem)
    assert smallest_budget == largest_working_set(problem)
    below = outcome_of(problem, smallest_budget - 1)
    assert (below.status, below.smallest_peak_bytes) == (Status.NOT_FOUND, smallest_budget)
    store_all_bytes = baseline(problem).peak_bytes
    for budget_bytes in {smallest_budget, smallest_budget + int(share * (store_all_bytes - smallest_budget))}:
        outcome = outcome_of(problem, budget_bytes)
        assert outcome.plan is not None
        assert validate(problem, outcome.plan, budget_bytes) == []
        assert len([a for a in outcome.plan if isinstance(a, Compute)]) == len(problem.ops)


def test_the_farthest_next_use_is_offloaded_and_fetched_as_soon_as_there_is_room() -> None:
    """Values 0, 1 and 2 have 4 bytes each and are read by ops 5, 8 and 4. Op 3 computes 8 bytes, for which 16 are 4 too
    few: 1 is offloaded, since it is read last. Its copy starts when it is computed and takes 4 ns of the next op's 10,
    so no op waits. After op 4, values 2 and 3 are freed, so 1 fits again: it is fetched before op 5."""
    problem = trace((), (), (), (), (2, 3), (0,), (), (), (1,), sizes=(4, 4, 4, 8, 0, 0, 4, 0, 0))
    outcome = outcome_of(problem, 16)
    assert outcome.plan is not None
    assert [a.value for a in outcome.plan if isinstance(a, Offload)] == [1]
    assert outcome.plan[outcome.plan.index(Offload(1)) - 1] == Compute(1)
    assert outcome.plan[outcome.plan.index(Free(1)) - 1] == Compute(2)
    assert outcome.plan[outcome.plan.index(Fetch(1)) + 1] == Compute(5)
    assert simulate(problem, outcome.plan).wait_ns == 0


def test_a_prefetch_that_would_not_fit_up_to_its_use_waits() -> None:
    """As above, but op 6 computes 14 bytes, which op 7 reads: 1 fits until its use only from op 8 on."""
    problem = trace((), (), (), (), (2, 3), (0,), (), (6,), (1,), sizes=(4, 4, 4, 8, 0, 0, 14, 0, 0))
    outcome = outcome_of(problem, 16)
    assert outcome.plan is not None
    assert outcome.plan[outcome.plan.index(Fetch(1)) + 1] == Compute(8)


def test_modnn_is_not_applicable_without_a_link() -> None:
    problem = replace(trace((), (0,), sizes=(4, 4)), link=None)
    outcome = outcome_of(problem, 5)
    assert outcome.status is Status.NOT_APPLICABLE
    assert "link" in outcome.reason


def test_the_reason_names_the_op_that_does_not_fit() -> None:
    outcome = outcome_of(trace((), (), (0, 1), sizes=(4, 4, 4)), 10)
    assert outcome.status is Status.NOT_FOUND
    assert "op2 needs 2 bytes more" in outcome.reason


IMPLEMENTATIONS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6)


@given(implementations=IMPLEMENTATIONS, free=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_more_free_memory_never_makes_the_choice_slower(
    implementations: list[tuple[int, int]], free: tuple[int, int]
) -> None:
    small_bytes, large_bytes = sorted(free)
    fits = min(workspace_bytes for _, workspace_bytes in implementations) <= small_bytes
    small, large = fastest_within(implementations, small_bytes), fastest_within(implementations, large_bytes)
    if fits:
        assert small[1] <= small_bytes
        assert large[0] <= small[0]
        assert small[0] == min(t for t, w in implementations if w <= small_bytes)
    else:
        assert small[1] == min(w for _, w in implementations)


def test_implementations_by_hand() -> None:
    """Each op of 4 bytes reads the one before, and the last reads all. With 0, 6 or 12 bytes of workspace an op takes
    30, 20 or 10 ns. With 18 bytes, op 0 has 14 free, op 1 has 10, op 2 has 6, and op 3, which reads all, has 2."""
    problem = trace((), (0,), (1,), (0, 1, 2), sizes=(4, 4, 4, 4))
    workspaces = {"conv": ((30, 0), (20, 6), (10, 12))}
    chosen = choose_workspaces(problem, 18, workspaces)
    assert [op.time_ns for op in chosen.ops] == [10, 20, 20, 30]
    assert [op.workspace_bytes for op in chosen.ops] == [12, 6, 6, 0]
    alone = choose_workspaces(replace(problem, link=None), 18, workspaces)
    assert [op.time_ns for op in alone.ops] == [10, 20, 20, 30]
    assert choose_workspaces(problem, 28, workspaces).ops[3].workspace_bytes == 12
    by_index = choose_workspaces(problem, 18, {0: ((7, 1),), "conv": ((30, 0),)})
    assert [op.time_ns for op in by_index.ops] == [7, 30, 30, 30]


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_the_chosen_implementations_fit_the_budget(n: int, seed: int, share: float) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    problem = replace(problem, link=replace(problem.link, host_bytes=None))
    workspaces = dict.fromkeys(range(0, len(problem.ops), 2), ((9, 0), (5, 3), (2, 40), (1, 200)))
    smallest = replace(problem, ops=choose_workspaces(problem, 1, workspaces).ops)
    assert {smallest.ops[i].workspace_bytes for i in workspaces} == {0}
    least = lower_bound_bytes(smallest)
    most = baseline(problem).peak_bytes + 200
    budget_bytes = least + int(share * (max(least, most) - least))
    chosen = choose_workspaces(problem, budget_bytes, workspaces)
    assert outcome_of(chosen, budget_bytes).plan is not None
    largest = choose_workspaces(problem, 10**9, workspaces)
    assert {largest.ops[i].time_ns for i in workspaces} == {1}


@pytest.mark.parametrize("wrong", [{"gelu": ((1, 0),)}, {99: ((1, 0),)}, {0: ()}, {0: ((1, -1),)}], ids=str)
def test_alternatives_are_checked(wrong: dict[str | int, tuple[tuple[int, int], ...]]) -> None:
    with pytest.raises(InputError, match="workspaces"):
        choose_workspaces(trace((), (0,), sizes=(4, 4)), 10, wrong)


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_fastest_implementations_that_fit_a_plan(n: int, seed: int) -> None:
    """The plan stays within the budget, and no faster implementation would."""
    problem = training_graph(n, seed, link=True)
    plan = random_plan(problem, seed)
    ops = range(len(problem.ops))
    alternatives: Workspaces = dict.fromkeys(ops, ((30, 0), (20, 1 + seed % 7), (10, 5 + seed % 13)))
    smallest = choose_workspaces_for_plan(problem, plan, 0, alternatives)
    budget_bytes = simulate(smallest, plan).peak_bytes + seed % 9
    chosen = choose_workspaces_for_plan(problem, plan, budget_bytes, alternatives)
    assert simulate(chosen, plan).peak_bytes <= budget_bytes
    for op in ops:
        for time_ns, workspace_bytes in alternatives[op]:
            if time_ns < chosen.ops[op].time_ns:
                faster = list(chosen.ops)
                faster[op] = replace(faster[op], time_ns=time_ns, workspace_bytes=workspace_bytes)
                assert simulate(replace(chosen, ops=tuple(faster)), plan).peak_bytes > budget_bytes
