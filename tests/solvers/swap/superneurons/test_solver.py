"""Tests of SuperNeurons with a link: the ladder, the tensor pool and the tensor cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.result import Limits, Status
from remat_solvers.schedule import tangents_first
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.superneurons import SuperNeurons
from remat_solvers.swap.superneurons.tensor_pool import Ladder, ladder, pooled, prefetches
from remat_solvers.toolkit.transfers.demand_paging import (
    DemandPaging,
    PagedPlan,
    VictimOrder,
    movable_values,
    smallest_paging_budget,
)
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.validate import validate

NS_PER_BYTE = 10**9  # bytes per second at which a byte takes one ns


def net(layers: str, size_bytes: int = 4, rate: int = NS_PER_BYTE) -> Problem:
    """A chain of CONV (c) and cheap (r) layers of one size, 10 ns each. A layer's backward reads its input, its output
    and the gradient of its output (the last one reads none), and computes that of its input (0 bytes for the first
    one)."""
    n = len(layers)
    ops = [
        Op(f"f{i}", "forward", (i - 1,) if i else (), (i,), 10, target="convolution" if kind == "c" else "relu")
        for i, kind in enumerate(layers)
    ]
    for k, i in enumerate(range(n - 1, -1, -1)):
        reads = (*((i - 1,) if i else ()), i, *((n + k - 1,) if k else ()))
        ops.append(Op(f"b{i}", "backward", reads, (n + k,), 10, target="backward"))
    values = [Value(f"v{i}", size_bytes, "activation") for i in range(n)]
    values += [Value(f"g{i}", size_bytes if i else 0, "gradient") for i in range(n - 1, -1, -1)]
    return Problem(layers, tuple(ops), tuple(values), (2 * n - 1,), Link(rate, rate))


def steps(plan: Plan) -> list[str]:
    """The plan in short form: f2 and b2 compute a layer, +3 fetches, >3 copies to the host, -3 frees."""
    marks = {Compute: "op", Fetch: "+", Offload: ">", Free: "-"}
    return [marks[type(a)] + str(a.op if isinstance(a, Compute) else a.value) for a in plan]


def test_the_ladder_of_a_net_counted_by_hand() -> None:
    """The net has eight layers of 4 bytes, three of them CONV. baseline has 8 outputs and 7 gradients, and liveness 8
    outputs and one gradient. offload has the five cheap outputs and, at the last CONV's backward, its output and a
    gradient. recompute has the backward of one layer: its input, its output and two gradients."""
    problem = net("crrcrrrc")
    solver = SuperNeurons()
    recomputing = solver.sequence(problem, "cost-aware")
    rungs = ladder(problem, recomputing, solver.movable(problem, "conv"))
    assert rungs == Ladder(15 * 4, 9 * 4, 5 * 4 + 2 * 4, 4 * 4)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("rate", [NS_PER_BYTE // 1000, NS_PER_BYTE, NS_PER_BYTE * 1000])
def test_the_pool_reaches_the_rungs_in_the_replay(cache: bool, rate: int) -> None:
    problem = net("crrcrrrc", rate=rate)
    for strategy, rung in (("keep", 28), ("cost-aware", 16)):
        solver = SuperNeurons(strategy, offload="conv", cache=cache)  # type: ignore[arg-type]
        below = solver.solve(problem, rung - 1, limits=Limits(), on_progress=None, seed=0)
        assert (below.plan, below.smallest_peak_bytes) == (None, rung)
        result = solve(problem, rung, solver=solver)
        assert (result.status, result.peak_bytes) == (Status.FEASIBLE, rung)


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), cache=st.booleans(), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_pool_gives_a_plan_down_to_the_rung_exactly(n: int, seed: int, cache: bool, share: float) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    problem = replace(problem, link=replace(problem.link, host_bytes=None))
    solver = SuperNeurons()
    movable = solver.movable(problem, "checkpoints")
    for strategy in ("keep", "speed-centric", "memory-centric"):
        sequence = solver.sequence(problem, strategy)  # type: ignore[arg-type]
        rungs = ladder(problem, sequence, movable)
        assert (
            rungs.offload_bytes
            <= rungs.liveness_bytes
            <= rungs.baseline_bytes + sum(o.workspace_bytes for o in problem.ops)
        )
        profile = StepProfile.of(problem, sequence)
        least, most = rungs.recompute_bytes, int(profile.used_bytes.max())
        assert pooled(profile, movable, least - 1, cache=cache) is None
        budget_bytes = least + int(share * (most - least))
        plan = pooled(profile, movable, budget_bytes, cache=cache)
        assert plan is not None
        assert validate(problem, plan, budget_bytes) == []


def test_the_reason_describes_the_pool() -> None:
    """Values of 4 bytes take 1 KB each: four of them are resident at the peak, and equal sizes leave no holes."""
    result = solve(net("crrcrrrc"), 16, solver="superneurons")
    assert result.reason == "a pool of 4096 bytes holds it by first fit: 0 bytes to holes, 4080 to whole blocks"


def test_nothing_moves_where_memory_suffices() -> None:
    problem = net("crrcrrrc")
    profile = StepProfile.of(problem, range(len(problem.ops)))
    movable = SuperNeurons().movable(problem, "conv")
    peak_bytes = int(profile.used_bytes.max())
    plan = pooled(profile, movable, peak_bytes, cache=True)
    assert plan is not None
    assert not any(isinstance(a, Offload | Fetch) for a in plan)
    short = pooled(profile, movable, peak_bytes - 1, cache=True)
    assert short is not None
    assert [a for a in short if isinstance(a, Offload)] == [Offload(0)]  # the least recently used value is enough


def test_without_the_cache_convolutions_are_offloaded_during_the_forward_and_fetched_one_ahead() -> None:
    """A copy takes 4 ns and a layer 10, so each copy ends before the next layer. The last CONV's output is read at
    once, and its useless copy is omitted. In backward no op waits: each value is fetched one CONV ahead."""
    problem = net("crrcrrcrrc")
    profile = StepProfile.of(problem, range(len(problem.ops)))
    movable = SuperNeurons().movable(problem, "conv")
    assert movable == {0, 3, 6, 9}
    plan = pooled(profile, movable, 10**6, cache=False)
    assert plan is not None
    assert steps(plan)[:9] == ["op0", ">0", "op1", "-0", "op2", "op3", ">3", "op4", "-3"]
    assert Offload(9) not in plan
    timeline = simulate(problem, plan)
    assert timeline.wait_ns == 0
    first_read = {9: 10, 6: 12, 3: 15, 0: 18}  # value -> the backward op that reads it first
    assert prefetches(problem, profile.sequence, movable) == {10: 6, 12: 3, 15: 0}
    for value, ahead in ((9, 6), (6, 3), (3, 0)):
        assert plan[plan.index(Fetch(ahead)) + 1] == Compute(first_read[value])


def test_a_prefetch_needs_room_beside_the_layer() -> None:
    """In the smallest budget every tensor is fetched at the layer that reads it."""
    problem = net("crrcrrcrrc")
    profile = StepProfile.of(problem, range(len(problem.ops)))
    movable = SuperNeurons().movable(problem, "conv")
    budget_bytes = smallest_paging_budget(problem, profile.sequence, movable)
    plan = pooled(profile, movable, budget_bytes, cache=False)
    assert plan is not None
    assert plan[plan.index(Fetch(6)) + 1] == Compute(12)
    assert simulate(problem, plan).wait_ns > 0


def test_a_useless_copy_is_omitted() -> None:
    """At a byte per 1000 ns no copy ends within the step, so nothing is copied where memory suffices."""
    problem = net("crrcrrcrrc", rate=NS_PER_BYTE // 1000)
    profile = StepProfile.of(problem, range(len(problem.ops)))
    plan = pooled(profile, {0, 3, 6, 9}, 10**6, cache=False)
    assert plan is not None
    assert not any(isinstance(a, Offload) for a in plan)


def trace(*reads: tuple[int, ...], sizes: tuple[int, ...]) -> StepProfile:
    """Forward ops: op i reads reads[i] and computes value i of sizes[i] bytes; ops and copies of a byte take 1 ns."""
    ops = tuple(Op(f"op{i}", "forward", r, (i,), 1) for i, r in enumerate(reads))
    values = tuple(Value(f"v{i}", s, "activation") for i, s in enumerate(sizes))
    link = Link(NS_PER_BYTE, NS_PER_BYTE)
    return StepProfile.of(Problem("trace", ops, values, (len(reads) - 1,), link), range(len(reads)))


@pytest.mark.parametrize(
    ("victims", "expected"),
    [
        ("lru", [1, 2]),  # 0 was read after 1 and 2 were computed
        ("list", [0, 1]),  # in the order of their computation
        ("farthest", [2, 1]),  # the one that is read last is first
    ],
)
def test_the_order_of_victims(victims: VictimOrder, expected: list[int]) -> None:
    """Values 0, 1 and 2 have one byte. Op 3 reads 0. Op 4 computes two bytes, so three and its own 2 are one too many;
    op 5 needs one more. Then 0, 1 and 2 are read in turn."""
    profile = trace((), (), (), (0,), (), (4,), (0, 5), (1, 6), (2, 7), sizes=(1, 1, 1, 0, 2, 1, 0, 0, 0))
    paged = DemandPaging(profile, {0, 1, 2}, 4, victims).run()
    assert isinstance(paged, PagedPlan)
    victims_in_order = [a.value for a in paged.plan if isinstance(a, Offload)]
    assert victims_in_order == expected
    assert simulate(profile.problem, paged.plan).peak_bytes == 4


def test_the_values_of_a_layer_are_locked() -> None:
    profile = trace((), (), (0, 1), (0, 1), sizes=(2, 3, 2, 1))
    assert isinstance(DemandPaging(profile, {0, 1, 2}, 6, "lru").run(), Overflow)  # op 2 holds 0, 1 and 2
    assert isinstance(DemandPaging(profile, {0, 1, 2}, 7, "lru").run(), PagedPlan)


def test_a_second_eviction_needs_no_second_copy() -> None:
    """Value 0 is evicted for 1, fetched for op 2, and evicted again for 3: one Offload and two Fetches."""
    profile = trace((), (), (0,), (), (0,), sizes=(2, 3, 0, 3, 0))
    paged = DemandPaging(profile, {0}, 4, "lru").run()
    assert isinstance(paged, PagedPlan)
    assert steps(paged.plan) == [
        *("op0", ">0", "-0", "op1", "-1", "+0", "op2", "-2", "-0", "op3", "-3", "+0", "op4", "-0"),
    ]


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), victims=st.sampled_from(["lru", "list", "farthest"]))
@settings(max_examples=200, deadline=None)
def test_paging_keeps_the_limit_of_the_host_and_knows_the_time(n: int, seed: int, victims: VictimOrder) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    sequence = tangents_first(problem, range(len(problem.ops)))
    profile = StepProfile.of(problem, sequence)
    movable = movable_values(problem, sequence)
    least, most = smallest_paging_budget(problem, sequence, movable), int(profile.used_bytes.max())
    for budget_bytes in {least, (least + most) // 2, most}:
        paging = DemandPaging(profile, movable, budget_bytes, victims, eager=movable)
        paged = paging.run()
        if problem.link.host_bytes is None:
            assert isinstance(paged, PagedPlan)
        if isinstance(paged, PagedPlan):
            assert validate(problem, paged.plan, budget_bytes) == []
            arrived = [paging.fetch_end_ns.get(v, 0) for v in problem.results]
            assert simulate(problem, paged.plan).time_ns == max([paging.now_ns, *arrived])


def test_a_useless_link_gives_the_plan_without_a_link() -> None:
    """On a link on which a byte takes a second, the plan is that without a link."""
    problem = net("crrcrrrcrrc", rate=1)
    for budget_bytes in (28, 32, 40):
        without_link = solve(replace(problem, link=None), budget_bytes, solver="superneurons")
        assert without_link.plan is not None
        assert solve(problem, budget_bytes, solver="superneurons").time_ns == without_link.time_ns


@pytest.mark.parametrize("wrong", [{"offload": "all"}, {"strategy": "none"}])
def test_options_are_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError):
        SuperNeurons(**wrong)  # type: ignore[arg-type]
