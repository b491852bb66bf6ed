"""Tests of Capuchin with a link: free times, the hybrid policy, in-triggers and feedback."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import random_chain, training_graph
from remat_solvers.plan import Compute, Fetch, Offload
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.schedule import baseline, tangents_first
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.capuchin.guided import GuidedSwaps, late_fetches
from remat_solvers.swap.capuchin.policy import Candidate, EvictionPolicy, Lanes, candidates_of
from remat_solvers.swap.capuchin.solver import Capuchin, passive
from remat_solvers.toolkit.transfers.demand_paging import PagedPlan, movable_values, smallest_paging_budget
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.validate import validate

LINK = Link(10**9, 10**9)  # a byte takes one ns


def mirror(sizes: list[int], times: list[int], link: Link | None = LINK, backward_ns: int | None = None) -> Problem:
    """Layers that read nothing (ops 0 to n - 1), a loss in no time (n), and a backward per layer in reverse, which
    reads its output: that of layer i is op 2 n - i. There are no gradients."""
    n = len(sizes)
    ops = [Op(f"f{i}", "forward", (), (i,), times[i]) for i in range(n)]
    ops.append(Op("loss", "forward", (), (), 0))
    ops += [
        Op(f"b{i}", "backward", (i,), (), times[i] if backward_ns is None else backward_ns) for i in reversed(range(n))
    ]
    return Problem("mirror", tuple(ops), tuple(Value(f"v{i}", s, "activation") for i, s in enumerate(sizes)), (), link)


def test_free_time_by_hand() -> None:
    """Layers end at 10, 30, 60; their backwards start at 110 (layer 0), 90 and 60. 25 bytes take 25 ns each way: layer
    0 has 110 - 25 - (10 + 25) = 50 free, layer 1 has 90 - 25 - (30 + 25) = 10, layer 2 has 60 - 25 - (60 + 25) = -50,
    all of it exposed. With a link that is twice as fast inwards, 12.5 ns rounded up, 62, 22 and -38."""
    problem = mirror([25, 25, 25], [10, 20, 30])
    candidates = [Candidate(i, 25, i, 6 - i, set(), 1) for i in range(3)]
    assert [Lanes(problem).free_ns(c) for c in candidates] == [50, 10, -50]
    faster = replace(problem, link=Link(10**9, 2 * 10**9, latency_ns=7))  # latency is no part of SwapTime
    assert [Lanes(faster).free_ns(c) for c in candidates] == [62, 22, -38]


@given(
    swaps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 60)), min_size=1, max_size=6),
    times=st.lists(st.integers(0, 50), min_size=6, max_size=6),
)
@settings(max_examples=1000, deadline=None)
def test_lanes_serve_one_transfer_at_a_time(swaps: list[tuple[int, int, int]], times: list[int]) -> None:
    """The reference orders offloads by evicted-access, and fetches backwards from the last back-access."""
    problem = mirror([1] * 6, times)
    lanes = Lanes(problem)
    candidates = [Candidate(i, s, e, 7 + b, set(), 1) for i, (e, b, s) in enumerate(swaps)]
    out_end: dict[int, int] = {}
    in_start: dict[int, int] = {}
    free = 0
    for c in sorted(candidates, key=lambda c: lanes.clock.ends[c.evicted_access]):
        free = out_end[c.value] = max(free, lanes.clock.ends[c.evicted_access]) + c.size_bytes
    busy = 10**6
    for c in sorted(candidates, key=lambda c: -lanes.clock.starts[c.back_access]):
        busy = in_start[c.value] = min(busy, lanes.clock.starts[c.back_access]) - c.size_bytes
    for c in candidates[:-1]:
        lanes.add(c)
    exposed = lanes.exposed_with(candidates[-1])
    assert exposed == max(0, *(out_end[v] - in_start[v] for v in out_end))
    assert exposed >= max(0, *(-lanes.free_ns(c) for c in candidates))


def policy(problem: Problem, budget_bytes: int, recompute_ns: dict[int, int] | None = None) -> list[tuple[int, str]]:
    """The evicted values in order, each with its kind of eviction."""
    candidates = candidates_of(problem, budget_bytes)
    for c in candidates:
        c.time_ns = (recompute_ns or {}).get(c.value, c.time_ns)
    choice = EvictionPolicy(candidates, Lanes(problem))
    found = []
    while (target := choice.take()) is not None:
        found.append((target.value, "swap" if target.value in choice.swapped else "recompute"))
    return found


def test_swaps_come_first_by_free_time_even_if_recomputation_is_cheaper() -> None:
    """Layers take 100 ns. Value 0 is evicted at 100 and read at 700, so its FT is 600 - 2 * bytes; that of 1 is
    400 - 2 * bytes, and so on. The FT of value 2 is negative: a swap costs 2 * 150 - 200 ns, a recomputation 1 ns."""
    problem = mirror([10, 10, 150, 10], [100] * 4)
    cheap = dict.fromkeys(range(4), 1)
    assert policy(problem, 20, cheap) == [(0, "swap"), (1, "swap"), (2, "recompute"), (3, "recompute")]
    # Where value 1 is small and 0 large, the order is reversed: FT 398 against 600 - 2 * 150 = 300.
    assert policy(mirror([150, 1, 1, 1], [100] * 4), 20, cheap)[:2] == [(1, "swap"), (0, "swap")]


def test_exposed_tensors_are_swapped_or_recomputed_by_the_smaller_overhead() -> None:
    """The last layer's output is read at once: the swap exposes 2 * 10 ns, the alternative is its recomputation."""
    problem = mirror([10, 10], [100] * 2)
    for recompute_ns, eviction in ((19, "recompute"), (20, "swap"), (21, "swap")):
        assert policy(problem, 0, {1: recompute_ns})[-1] == (1, eviction)


def test_exposed_times_are_not_added_up() -> None:
    """0 alone is offloaded until 50 and fetched from -10: 60 are exposed. With 1 behind it on both lanes, offloads end
    at 55 and fetches start at -15: 70 are exposed. So after 0, the swap of 1 costs 10, its recomputation 20."""
    problem = mirror([40, 5], [10, 10])
    choice = EvictionPolicy([Candidate(0, 40, 0, 4, set(), 1000), Candidate(1, 5, 1, 3, set(), 20)], Lanes(problem))
    assert choice.lanes is not None
    for exposed_ns in (60, 70):
        choice.take()
        assert choice.lanes.exposed_ns == exposed_ns
    assert list(choice.swapped) == [0, 1]


def test_tensors_that_cannot_be_recomputed_are_only_swapped() -> None:
    problem = mirror([10, 10], [100] * 2)
    fixed = replace(problem, ops=tuple(replace(op, recomputable=False) for op in problem.ops))
    assert policy(fixed, 0) == [(0, "swap"), (1, "swap")]
    assert candidates_of(replace(fixed, link=None), 0) == []
    choice = EvictionPolicy(candidates_of(fixed, 0), Lanes(fixed), most_swaps=1)
    assert choice.take() is not None
    assert choice.take() is None


def test_a_swap_changes_no_lineage_and_a_recomputation_does() -> None:
    """Three values are in memory, each computed from the one before. The swap of 0 is free, and 0 stays the source of
    1. Then 1 is recomputed (its swap would be exposed by 1000), so 2 is computed from 0, in 5 + 7 ns."""
    problem = mirror([10, 1000, 10], [500, 100, 100])
    chain_of = [
        Candidate(0, 10, 0, 6, set(), 3),
        Candidate(1, 1000, 1, 5, {0}, 5),
        Candidate(2, 10, 2, 4, {1}, 7),
    ]
    choice = EvictionPolicy(chain_of, Lanes(problem))
    first, second = choice.take(), choice.take()
    assert (first, second) == (chain_of[0], chain_of[1])
    assert list(choice.swapped) == [0]
    assert list(choice.taken) == [1]
    assert (chain_of[1].sources, chain_of[1].time_ns) == ({0}, 5)
    assert (chain_of[2].sources, chain_of[2].time_ns) == ({0}, 12)


def test_on_demand_recomputation_has_no_prefetch_and_no_copy() -> None:
    """Two of four must be evicted. The swap of one is free, the other is recomputed in 10 ns: only the first moves, and
    the op of the other is computed right before its back-access."""
    problem = mirror([10] * 4, [10] * 4)
    result = solve(problem, 20, solver=Capuchin(most_swaps=1))
    assert result.plan is not None
    assert result.time_ns == 80 + 10
    moved = {a.value for a in result.plan if isinstance(a, Offload | Fetch)}
    computed_ops = [a.op for a in result.plan if isinstance(a, Compute)]
    recomputed = {op for op in computed_ops if computed_ops.count(op) > 1}
    assert (moved, recomputed) == ({0}, {1})
    last = len(computed_ops) - 1 - computed_ops[::-1].index(1)
    assert computed_ops[last + 1] == 8 - 1  # its backward


def swaps_of(problem: Problem, budget_bytes: int, values: tuple[int, ...]) -> GuidedSwaps:
    swapped = {c.value: c for c in candidates_of(problem, budget_bytes) if c.value in values}
    return GuidedSwaps(problem, list(range(len(problem.ops))), swapped, budget_bytes)


def test_in_triggers_by_hand() -> None:
    """Layers of 10 ns: backwards b3 to b0 are positions 5 to 8, from 40, 50, 60 and 70 ns. 15 bytes for b0 must start
    at 55 or before: position 6, from 50. 15 bytes for b1 at 45, and the lane is free until 55: position 5, from 40."""
    problem = mirror([15, 15, 15, 15], [10] * 4)
    swaps = swaps_of(problem, 59, (0, 1))
    assert swaps.in_peak[:9] == [False] * 3 + [True] * 3 + [False] * 3
    by_value = {a.value: at for a, at in swaps.triggers().items()}
    assert by_value == {0: 6, 1: 6}  # position 5 for 1 is in the peak period, so its trigger is the end of that
    late = swaps_of(problem, 59, (0, 1))
    late.lead_ns = {a: a.value for a in late.intervals}  # 1 was late, so feedback starts it 1 ns earlier, at 39
    assert {a.value: at for a, at in late.triggers().items()} == {0: 6, 1: 3}
    calm = swaps_of(problem, 59, (0, 1))
    calm.in_peak = [False] * 10
    assert {a.value: at for a, at in calm.triggers().items()} == {0: 6, 1: 5}


def test_of_two_transfers_that_collide_the_earlier_is_shifted() -> None:
    """With 25 bytes each, b0's transfer starts at 45, so b1's must end by then and starts at 20, not at 35."""
    swaps = swaps_of(mirror([25, 25, 1, 1], [10] * 4), 1, (0, 1))
    swaps.in_peak = [False] * 10
    assert {a.value: at for a, at in swaps.triggers().items()} == {0: 5, 1: 2}


def test_feedback_converges() -> None:
    """SwapTime is 100 ns, a copy takes 30 more, and ops of 5 ns precede the back-access: the copy is 30 late at first,
    then starts 5 ns earlier in each round."""
    problem = mirror([100] * 4, [200] * 4, Link(10**9, 10**9, latency_ns=30), backward_ns=5)
    before = tuple(Op(f"x{i}", "backward", (), (), 5) for i in range(60))
    problem = replace(problem, ops=(*problem.ops[:-1], *before, problem.ops[-1]))
    swaps = swaps_of(problem, 399, (0,))
    plans = [plan for plan in swaps.iterations() if not isinstance(plan, Overflow)]
    assert [simulate(problem, plan).wait_ns for plan in plans] == [30, 25, 20, 15, 10, 5, 0]
    assert late_fetches(problem, plans[0]) == {(0, len(problem.ops) - 1)}
    assert late_fetches(problem, plans[-1]) == set()
    result = solve(problem, 399, solver=Capuchin(most_swaps=1))
    assert result.time_ns == sum(op.time_ns for op in problem.ops)


def test_feedback_ends_without_improvement() -> None:
    """A copy takes 1000 ns and the step 80: swapped tensors are late in every iteration, and a plan is returned."""
    problem = mirror([100] * 4, [10] * 4, Link(10**8, 10**8))
    iterations = list(islice(swaps_of(problem, 300, (0,)).iterations(), 50))
    assert len(iterations) == 50
    assert all(late_fetches(problem, plan) == {(0, 8)} for plan in iterations if not isinstance(plan, Overflow))
    result = solve(problem, 300, solver=Capuchin(most_swaps=1))
    assert result.plan is not None
    assert result.seconds < 5


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_the_passive_iteration_fits_down_to_the_largest_op(n: int, seed: int, share: float) -> None:
    problem = training_graph(n, seed, link=True)
    assert problem.link is not None
    problem = replace(problem, link=replace(problem.link, host_bytes=None))
    sequence = tangents_first(problem, range(len(problem.ops)))
    least = smallest_paging_budget(problem, sequence, movable_values(problem, sequence))
    most = baseline(problem).peak_bytes
    assert isinstance(passive(problem, least - 1), Overflow)
    budget_bytes = least + int(share * (most - least))
    paged = passive(problem, budget_bytes)
    assert isinstance(paged, PagedPlan)
    assert validate(problem, paged.plan, budget_bytes) == []
    for interval in paged.intervals:  # from the start of the list of accesses
        assert interval.last < interval.back


def test_passive_evicts_from_the_start_of_the_access_list() -> None:
    """Value 0 is read in between, so it is not the least recently used one; but its computation is the first access."""
    reads = ((), (), (0,), (), (1, 3), (0,))
    ops = tuple(Op(f"op{i}", "forward", r, (i,), 1) for i, r in enumerate(reads))
    values = tuple(Value(f"v{i}", size, "activation") for i, size in enumerate((10, 10, 0, 10, 0, 0)))
    paged = passive(Problem("trace", ops, values, (), LINK), 20)
    assert isinstance(paged, PagedPlan)
    assert [a.value for a in paged.plan if isinstance(a, Offload)] == [0]


def test_infinite_bandwidth_costs_nothing_wherever_every_op_fits() -> None:
    """Only 1 ns per copy is added, while ops take a ms or more."""
    for seed in range(25):
        problem = random_chain(2 + seed % 7, seed)
        slow = tuple(replace(op, time_ns=op.time_ns * 10**6) for op in problem.ops)
        problem = replace(problem, ops=slow, link=Link(2**62, 2**62))
        order = range(len(slow))
        smallest_budget = smallest_paging_budget(problem, order, movable_values(problem, order))
        unmodified = baseline(problem)
        for budget_bytes in range(smallest_budget, unmodified.peak_bytes):
            result = solve(problem, budget_bytes, solver="capuchin")
            assert result.time_ns is not None
            assert result.time_ns - unmodified.time_ns < 1000


@pytest.mark.parametrize("seed", range(20))
def test_a_faster_link_never_makes_the_plan_slower_than_recomputation(seed: int) -> None:
    problem = random_chain(8, seed)
    unmodified = baseline(problem)
    for budget_bytes in range(unmodified.peak_bytes // 2, unmodified.peak_bytes):
        alone = solve(problem, budget_bytes, solver="capuchin").time_ns
        linked = solve(replace(problem, link=LINK), budget_bytes, solver="capuchin").time_ns
        if alone is not None:
            assert linked is not None
            assert linked <= alone
