"""moDNN: the lower bound, which values are offloaded and fetched when, and the choice among implementations."""

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


def ask(problem: Problem, budget_bytes: int) -> Outcome:
    return ModNN().solve(problem, budget_bytes, limits=Limits(), on_progress=None, seed=0)


def trace(*reads: tuple[int, ...], sizes: tuple[int, ...], time_ns: int = 10) -> Problem:
    """Backward ops: op i reads reads[i] and computes value i of sizes[i] bytes; the last one is the result."""
    ops = tuple(Op(f"op{i}", "backward", r, (i,), time_ns, target="conv") for i, r in enumerate(reads))
    values = tuple(Value(f"v{i}", s, "activation") for i, s in enumerate(sizes))
    return Problem("trace", ops, values, (len(reads) - 1,), LINK)


def largest_working_set(problem: Problem) -> int:
    """By its definition."""
    size = [v.bytes for v in problem.values]
    made = {v for op in problem.ops for v in op.outputs}
    pinned = {v for v in problem.results if v in made and problem.ops[problem.producer[v]].phase == "forward"}
    sets = [sum(size[v] for v in made.intersection(problem.results))]
    last_forward = problem.forward_ops[-1] if problem.forward_ops else -1
    for index, op in enumerate(problem.ops):
        works_on = made.intersection(op.inputs) | set(op.outputs)
        if op.phase == "backward" or index == last_forward:
            works_on |= pinned
        sets.append(sum(size[v] for v in works_on) + op.workspace_bytes)
    return problem.static_bytes + max(sets)


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_it_succeeds_exactly_down_to_the_largest_working_set(n: int, seed: int, share: float) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    problem = replace(problem, link=replace(problem.link, host_bytes=None))
    least = lower_bound_bytes(problem)
    assert least == largest_working_set(problem)
    below = ask(problem, least - 1)
    assert (below.status, below.smallest_peak_bytes) == (Status.NOT_FOUND, least)
    most = baseline(problem).peak_bytes
    for budget_bytes in {least, least + int(share * (most - least))}:
        outcome = ask(problem, budget_bytes)
        assert outcome.plan is not None
        assert validate(problem, outcome.plan, budget_bytes) == []
        assert len([a for a in outcome.plan if isinstance(a, Compute)]) == len(problem.ops)


def test_the_farthest_next_use_is_offloaded_and_fetched_as_soon_as_there_is_room() -> None:
    """4 bytes each of 0, 1 and 2, read by ops 5, 8 and 4. Op 3 makes 8, where 16 are 4 too few: 1 leaves, which is
    needed last. Its copy starts when it is made and takes 4 ns of the next op's 10, so nobody waits. After op 4 values
    2 and 3 go, and from then on there is room for 1: it is fetched before op 5, three ops before its use."""
    problem = trace((), (), (), (), (2, 3), (0,), (), (), (1,), sizes=(4, 4, 4, 8, 0, 0, 4, 0, 0))
    outcome = ask(problem, 16)
    assert outcome.plan is not None
    assert [a.value for a in outcome.plan if isinstance(a, Offload)] == [1]
    assert outcome.plan[outcome.plan.index(Offload(1)) - 1] == Compute(1)
    assert outcome.plan[outcome.plan.index(Free(1)) - 1] == Compute(2)
    assert outcome.plan[outcome.plan.index(Fetch(1)) + 1] == Compute(5)
    assert simulate(problem, outcome.plan).wait_ns == 0


def test_a_prefetch_that_would_not_fit_up_to_its_use_waits() -> None:
    """As above, but op 6 makes 14 bytes, which op 7 reads: 1 has room up to its use from op 8 on only."""
    problem = trace((), (), (), (), (2, 3), (0,), (), (6,), (1,), sizes=(4, 4, 4, 8, 0, 0, 14, 0, 0))
    outcome = ask(problem, 16)
    assert outcome.plan is not None
    assert outcome.plan[outcome.plan.index(Fetch(1)) + 1] == Compute(8)


def test_without_a_link_it_does_not_apply() -> None:
    problem = replace(trace((), (0,), sizes=(4, 4)), link=None)
    outcome = ask(problem, 5)
    assert outcome.status is Status.NOT_APPLICABLE
    assert "link" in outcome.reason


def test_the_reason_names_the_op_that_does_not_fit() -> None:
    outcome = ask(trace((), (), (0, 1), sizes=(4, 4, 4)), 10)
    assert outcome.status is Status.NOT_FOUND
    assert "op2 needs 2 bytes more" in outcome.reason


IMPLEMENTATIONS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6)


@given(implementations=IMPLEMENTATIONS, free=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_more_free_memory_never_makes_the_choice_slower(
    implementations: list[tuple[int, int]], free: tuple[int, int]
) -> None:
    less, more = sorted(free)
    fits = min(workspace_bytes for _, workspace_bytes in implementations) <= less
    small, large = fastest_within(implementations, less), fastest_within(implementations, more)
    if fits:
        assert small[1] <= less
        assert large[0] <= small[0]
        assert small[0] == min(t for t, w in implementations if w <= less)
    else:
        assert small[1] == min(w for _, w in implementations)


def test_implementations_by_hand() -> None:
    """Ops of 4 bytes read one after the other, all at the end. 0, 6 or 12 bytes of workspace make an op take 30, 20 or
    10 ns. With 18 bytes: op 0 has 14 free, op 1 has 10, op 2 has 6, op 3, which reads the three, 2."""
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
    assert ask(chosen, budget_bytes).plan is not None
    largest = choose_workspaces(problem, 10**9, workspaces)
    assert {largest.ops[i].time_ns for i in workspaces} == {1}


@pytest.mark.parametrize("wrong", [{"gelu": ((1, 0),)}, {99: ((1, 0),)}, {0: ()}, {0: ((1, -1),)}], ids=str)
def test_alternatives_are_checked(wrong: dict[str | int, tuple[tuple[int, int], ...]]) -> None:
    with pytest.raises(InputError, match="workspaces"):
        choose_workspaces(trace((), (0,), sizes=(4, 4)), 10, wrong)


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_beside_a_plan_the_fastest_that_fits_every_run(n: int, seed: int) -> None:
    """The plan stays within the budget, and nothing faster would have."""
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
