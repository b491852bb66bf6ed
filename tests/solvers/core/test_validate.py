"""Tests of the validator, rule by rule: hand-written plans with exact action indices, mutations, and laws."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remat_solvers.errors import PlanError
from remat_solvers.generate import random_plan, training_graph
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.simulate import simulate
from remat_solvers.validate import Rule, Violation, validate

X, A, B, LOSS, TANGENT, GB, GX = range(7)
FA, FB, STATS, FLOSS, TANGENTS, BB, BX = range(7)

# x -> a -> b -> loss and their backward; `stats` updates a buffer from b, so it has no output and is computed once.
PROBLEM = Problem(
    name="small",
    values=(
        Value("x", 1000, "constant"),
        Value("a", 100, "activation"),
        Value("b", 200, "activation"),
        Value("loss", 4, "activation"),
        Value("tangent", 4, "gradient"),
        Value("gb", 200, "gradient"),
        Value("gx", 50, "gradient"),
    ),
    ops=(
        Op("fa", "forward", (X,), (A,), 10, workspace_bytes=7),
        Op("fb", "forward", (A,), (B,), 10, effects=("random",)),
        Op("stats", "forward", (B,), (), 1, recomputable=False, effects=("buffer",)),
        Op("floss", "forward", (B,), (LOSS,), 10),
        Op("tangents", "backward", (), (TANGENT,), 0, recomputable=False),
        Op("bb", "backward", (B, TANGENT), (GB,), 20, workspace_bytes=30),
        Op("bx", "backward", (A, GB), (GX,), 20),
    ),
    results=(LOSS, GX),
    link=Link(10**9, 10**9, host_bytes=250),
    reserve_bytes=500,
)
KEEP: tuple[Action, ...] = (
    Compute(FA),  # 0
    Compute(FB),  # 1
    Compute(STATS),  # 2
    Compute(FLOSS),  # 3
    Compute(TANGENTS),  # 4
    Compute(BB),  # 5: 1500 + a 100 + b 200 + loss 4 + tangent 4 + gb 200 + workspace 30 = 2038, the peak
    Free(B),  # 6
    Free(TANGENT),  # 7
    Compute(BX),  # 8
    Free(A),  # 9
    Free(GB),  # 10
)
KEEP_PEAK = 2038


def found(*actions: Action, problem: Problem = PROBLEM, budget: int | None = None) -> list[tuple[int | None, Rule]]:
    return [(v.action, v.rule) for v in validate(problem, Plan(actions), budget)]


def changed(at: int, *actions: Action, drop: int = 0) -> tuple[Action, ...]:
    """KEEP with `drop` actions from index `at` on replaced by `actions`."""
    return KEEP[:at] + actions + KEEP[at + drop :]


def test_a_plan_that_keeps_everything_is_valid() -> None:
    assert validate(PROBLEM, Plan(KEEP), KEEP_PEAK) == []


def test_recompute_and_swap_are_valid() -> None:
    recomputed = (*KEEP[:2], Free(A), *KEEP[2:7], Compute(FA), *KEEP[7:])
    swapped = (*KEEP[:4], Offload(A), Free(A), *KEEP[4:6], Fetch(A), *KEEP[6:])
    swapped_twice = (*KEEP[:4], Offload(A), Offload(A), Free(A), Fetch(A), Free(A), *KEEP[4:6], Fetch(A), *KEEP[6:])
    recomputed_resident = (*KEEP[:3], Compute(FA), *KEEP[3:])  # a is resident: a second copy for a while
    for plan in (recomputed, swapped, swapped_twice, recomputed_resident):
        assert found(*plan) == []


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (changed(4, Compute(7)), [(4, "index")]),
        (changed(4, Compute(-1)), [(4, "index")]),
        (changed(4, Free(7), Offload(-1), Fetch(99)), [(4, "index"), (5, "index"), (6, "index")]),
        (changed(4, Compute(True)), [(4, "index")]),
        (changed(4, Compute("fa")), [(4, "index")]),  # type: ignore[arg-type]
        (changed(4, ("compute", 0)), [(4, "action")]),  # type: ignore[arg-type]
        (changed(0, drop=1), [(0, "input"), (None, "never")]),  # a is reported at fb and not again at bx
        (changed(1, Free(A), drop=0), [(2, "input")]),
        (changed(3, Compute(STATS)), [(3, "twice")]),
        (changed(5, Compute(TANGENTS), Compute(TANGENTS)), [(5, "twice"), (6, "twice")]),
        (changed(2, drop=1), [(None, "never")]),
        (changed(3, drop=1), [(None, "never")]),  # its result is not reported again as absent or missing
        (changed(3, Compute(TANGENTS), KEEP[3], drop=2), [(3, "phase")]),
        (changed(1, KEEP[1], Compute(TANGENTS), Compute(BB), KEEP[2], KEEP[3], drop=5), [(2, "phase"), (3, "phase")]),
        (changed(1, Compute(STATS), Compute(FB), drop=2), [(1, "input"), (2, "order")]),
        (changed(2, Free(X)), [(2, "constant")]),
        (changed(2, Offload(X), Fetch(X)), [(2, "constant"), (3, "constant")]),
        (changed(0, Free(A)), [(0, "free")]),
        (changed(7, Free(B)), [(7, "free")]),
        (changed(4, Free(LOSS)), [(4, "boundary")]),
        (changed(5, Free(LOSS)), [(5, "boundary")]),
        (changed(4, Free(LOSS), Compute(FLOSS)), [(4, "boundary")]),  # recomputed, but too late
        (changed(4, Offload(LOSS), Free(LOSS), Compute(TANGENTS), Fetch(LOSS), drop=1), [(5, "boundary")]),
        ((*KEEP, Free(GX)), [(None, "result")]),
        (changed(0, Offload(A)), [(0, "offload")]),
        (changed(4, Offload(A), Offload(B)), [(5, "host")]),
        (changed(5, Fetch(A)), [(5, "fetch")]),
        (changed(4, Free(A), Compute(TANGENTS), Fetch(A), drop=1), [(6, "fetch")]),
        (changed(4, Offload(A), Free(A), Fetch(A), Fetch(A)), [(7, "fetch")]),
        ((), [(None, "never")] * 7),
    ],
)
def test_each_rule(plan: tuple[Action, ...], expected: list[tuple[int | None, Rule]]) -> None:
    assert found(*plan) == expected


def test_no_offload_without_a_link() -> None:
    plan = (*KEEP[:4], Offload(A), Free(A), Fetch(A), *KEEP[4:])
    assert found(*plan, problem=replace(PROBLEM, link=None)) == [(4, "link")]
    assert found(*plan, problem=replace(PROBLEM, link=Link(1, 1))) == []


def test_host_bytes_count_each_value_once() -> None:
    def plan(capacity: int) -> list[tuple[int | None, Rule]]:
        problem = replace(PROBLEM, link=Link(1, 1, host_bytes=capacity))
        return found(*KEEP[:4], Offload(A), Offload(A), Offload(B), *KEEP[4:], problem=problem)

    assert plan(300) == []
    assert plan(299) == [(6, "host")]
    assert plan(99) == [(4, "host"), (6, "host")]


def test_peak_names_the_action_and_the_excess() -> None:
    (violation,) = validate(PROBLEM, Plan(KEEP), KEEP_PEAK - 11)
    assert (violation.action, violation.rule) == (5, "peak")
    assert "op 5 'bb'" in violation.message
    assert "2038 bytes, 11 over" in violation.message
    assert found(budget=1499) == [*[(None, "never")] * 7, (None, "peak")]


@pytest.mark.parametrize(
    ("plan", "action", "peak"),
    [
        (changed(5, Compute(FA), Compute(FA)), 7, 2038),  # a second copy of a: 1808 + 100 + workspace 7 = 1915
        (changed(5, Compute(FB), drop=1), 5, 2008),  # 1808 + a second copy of b 200
        (changed(5, Free(A), KEEP[5], Compute(FA), drop=1), 7, 2008 + 7),  # 1938 - 30 + a 100 + workspace 7
        ((*KEEP[:4], Offload(A), Free(A), *KEEP[4:6], Fetch(A), *KEEP[6:]), 8, 2008),  # bytes count from the Fetch on
    ],
)
def test_peaks_computed_by_hand(plan: tuple[Action, ...], action: int, peak: int) -> None:
    at_peak = [v for v in validate(PROBLEM, Plan(plan), peak - 1) if v.rule == "peak"]
    assert [(v.action, f"{peak} bytes, 1 over" in v.message) for v in at_peak] == [(action, True)]
    assert "peak" not in [v.rule for v in validate(PROBLEM, Plan(plan), peak)]


def test_all_violations_are_reported() -> None:
    plan = (Free(X), Compute(99), Free(LOSS), *KEEP[:3], Compute(STATS), *KEEP[3:], Free(GX), Fetch(B))
    expected = [(0, "constant"), (1, "index"), (2, "free"), (6, "twice"), (16, "fetch"), (None, "result")]
    assert found(*plan) == expected


def test_messages_name_ops_and_values() -> None:
    assert validate(PROBLEM, Plan(changed(1, Free(A)))) == [
        Violation(2, "input", "op 1 'fb' reads value 1 'a', which is not on the device.")
    ]
    assert str(validate(PROBLEM, Plan(changed(0, Free(A))))[0]).startswith("action 0: free: ")
    assert str(validate(PROBLEM, Plan((*KEEP, Free(GX))))[0]).startswith("plan: result: ")


def test_effects_keep_the_order_of_the_problem() -> None:
    values = (Value("x", 1, "constant"),)
    ops = tuple(Op(f"draw{i}", "forward", (0,), (), 1, effects=("random",)) for i in range(4))
    problem = Problem("draws", ops, values, ())

    def order(*indices: int) -> list[tuple[int | None, Rule]]:
        return found(*map(Compute, indices), problem=problem)

    assert order(0, 1, 2, 3) == []
    assert order(0, 1, 0, 2, 1, 3) == []  # only first computations count
    assert order(0, 2, 1, 3) == [(2, "order")]
    assert order(3, 0, 1, 2) == [(1, "order")]
    assert order(3, 2, 1, 0) == [(1, "order"), (2, "order"), (3, "order")]


def test_a_step_without_a_forward() -> None:
    problem = Problem("b", (Op("t", "backward", (), (0,), 0),), (Value("g", 3, "gradient"),), (0,))
    assert found(Compute(0), problem=problem, budget=3) == []
    assert found(problem=problem) == [(None, "never")]


# Laws


@given(st.integers(0, len(KEEP) - 1))
def test_a_missing_action_is_found_unless_it_is_a_free(at: int) -> None:
    rules = [v.rule for v in validate(PROBLEM, Plan(changed(at, drop=1)))]
    assert ("never" in rules) == isinstance(KEEP[at], Compute)
    assert rules == [] or isinstance(KEEP[at], Compute)


@given(st.integers(0, len(KEEP) - 1))
def test_a_repeated_action_is_found_unless_its_op_is_recomputable(at: int) -> None:
    violations = found(*changed(at, KEEP[at]))
    match KEEP[at]:
        case Compute(op):
            # bb may be recomputed; so may the forward ops, since all of them are before the boundary
            assert violations == ([] if PROBLEM.ops[op].recomputable else [(at + 1, "twice")])
        case _:
            assert violations == [(at + 1, "free")]


@given(st.permutations(range(len(KEEP))))
def test_an_order_is_valid_if_and_only_if_the_dependencies_hold(order: list[int]) -> None:
    position = {KEEP[k]: p for p, k in enumerate(order)}
    before = [
        (Compute(FA), Compute(FB)),
        (Compute(FB), Compute(STATS)),
        (Compute(FB), Compute(FLOSS)),
        (Compute(STATS), Compute(TANGENTS)),
        (Compute(FLOSS), Compute(TANGENTS)),
        (Compute(TANGENTS), Compute(BB)),
        (Compute(STATS), Compute(BB)),
        (Compute(FLOSS), Compute(BB)),
        (Compute(BB), Compute(BX)),
        (Compute(BB), Free(B)),
        (Compute(BB), Free(TANGENT)),
        (Compute(BX), Free(A)),
        (Compute(BX), Free(GB)),
    ]
    holds = all(position[a] < position[b] for a, b in before)
    assert (found(*(KEEP[k] for k in order)) == []) == holds


ACTIONS = st.one_of(*(st.builds(kind, st.integers(-1, 7)) for kind in (Compute, Free, Offload, Fetch)))


@given(st.lists(ACTIONS, max_size=30), st.integers(1, 3000))
def test_any_sequence_is_checked_to_its_end(actions: list[Action], budget: int) -> None:
    violations = validate(PROBLEM, Plan(actions), budget)
    positions = [len(actions) if v.action is None else v.action for v in violations]
    assert positions == sorted(positions)
    assert all(0 <= p <= len(actions) for p in positions)
    computed = {a.op for a in actions if isinstance(a, Compute)}
    assert sum(v.rule == "never" for v in violations) == len(set(range(7)) - computed)
    bad_indices = sum(not 0 <= (a.op if isinstance(a, Compute) else a.value) < 7 for a in actions)
    assert sum(v.rule == "index" for v in violations) == bad_indices


@given(st.lists(ACTIONS, max_size=30), st.integers(0, 30), ACTIONS)
def test_later_actions_do_not_change_earlier_violations(actions: list[Action], cut: int, extra: Action) -> None:
    """Rules that depend only on earlier actions report the same for a prefix."""
    backward_looking = {"index", "input", "twice", "order", "constant", "free", "offload", "fetch", "host"}
    cut = min(cut, len(actions))
    prefix = [v for v in found(*actions[:cut]) if v[1] in backward_looking]
    whole = [v for v in found(*actions[:cut], extra) if v[1] in backward_looking and v[0] != cut]
    frees = [(i, "free") for i, a in enumerate(actions[:cut]) if a == Free(LOSS)]
    assert set(prefix) ^ set(whole) <= set(frees)  # whether a result may be freed depends on where the forward ends


@given(st.integers(0, 10**6), st.booleans())
def test_validator_and_replay_have_the_same_peak(seed: int, over_a_link: bool) -> None:
    problem = training_graph(1 + seed % 9, seed, link=over_a_link)
    plan = random_plan(problem, seed)
    replayed = simulate(problem, plan)
    assert validate(problem, plan, replayed.peak_bytes) == []
    (violation,) = validate(problem, plan, replayed.peak_bytes - 1)
    assert (violation.rule, violation.action) == ("peak", replayed.peak_action)


@given(st.integers(0, 10**6), st.data())
def test_the_first_action_that_the_replay_refuses_is_that_of_the_validator(seed: int, data: st.DataObject) -> None:
    problem = training_graph(1 + seed % 9, seed, link=True)
    plan = list(random_plan(problem, seed))
    action = plan.pop(data.draw(st.integers(0, len(plan) - 1)))
    plan.insert(data.draw(st.integers(0, len(plan))), action)
    violations = [(v.action, v.rule) for v in validate(problem, Plan(plan))]
    # The validator keeps a result that is freed after the boundary, the replay does not: later actions are ignored.
    compared_until = min((a for a, rule in violations if rule == "boundary" and a is not None), default=len(plan))
    common_rules: set[Rule] = {"action", "index", "input", "constant", "free", "link", "offload", "fetch"}
    refused = refused_at(problem, Plan(plan))
    if refused is None or refused < compared_until:
        assert (
            next((a for a, rule in violations if rule in common_rules and a is not None and a < compared_until), None)
            == refused
        )


def refused_at(problem: Problem, plan: Plan) -> int | None:
    """The action that the replay refuses; None if it refuses none, or only the end of the plan."""
    try:
        simulate(problem, plan)
    except PlanError as error:
        return error.action
    return None


def test_ten_thousand_actions_are_checked_quickly() -> None:
    n = 2500
    values = [Value("x", 1, "constant")] + [Value(f"a{i}", i, "activation") for i in range(n)]
    ops = [Op(f"f{i}", "forward", (i,), (i + 1,), 1) for i in range(n)]
    problem = Problem("chain", tuple(ops), tuple(values), (), Link(1, 1, host_bytes=0))
    plan = Plan(a for i in range(n) for a in (Compute(i), Offload(i + 1), Free(i), Fetch(i)))
    start = time.process_time()
    violations = validate(problem, plan, 1)
    assert time.process_time() - start < 0.5
    # Every offload except that of a0, which has no bytes, exceeds the capacity; x is freed and fetched; one peak.
    assert len(violations) == (n - 1) + 2 + 1
