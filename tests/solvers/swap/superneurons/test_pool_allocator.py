"""Tests of SuperNeurons' pool: first-fit addresses on a scripted trace, its laws, and whole plans placed in it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import chain, random_plan, training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.swap.superneurons.pool_allocator import BLOCK_BYTES, PoolAllocator, pool_use

KB = 1024


def test_addresses_of_a_scripted_trace() -> None:
    """In a pool of 10 KB, a takes 3, b 2 (for 1025 bytes) and c 4, 1 is empty. First fit puts d in a's place."""
    heap = PoolAllocator(10 * KB)
    a, b, c = (heap.allocate(size) for size in (3 * KB, 1025, 4 * KB))
    assert a is not None
    assert b is not None
    assert c is not None
    assert [heap.address(node) // KB for node in (a, b, c)] == [0, 3, 5]
    assert heap.empty() == [(9 * KB, KB)]
    assert heap.allocate(2 * KB) is None
    heap.free(a)
    d = heap.allocate(1)
    assert d is not None
    assert heap.address(d) == 0  # best fit would take the last block
    assert heap.empty() == [(KB, 2 * KB), (9 * KB, KB)]
    assert heap.allocate(3 * KB) is None  # three blocks are empty, but not adjacent
    heap.free(c)
    assert heap.empty() == [(KB, 2 * KB), (5 * KB, 5 * KB)]  # joined with the following block
    heap.free(b)
    assert heap.empty() == [(KB, 9 * KB)]  # joined with both neighbours
    heap.free(d)
    assert heap.empty() == [(0, 10 * KB)]
    assert (heap.used_bytes, heap.high_bytes) == (0, 9 * KB)
    with pytest.raises(KeyError):
        heap.free(d)


def test_an_empty_request_has_an_id_and_no_blocks() -> None:
    heap = PoolAllocator(KB)
    full, empty = heap.allocate(KB), heap.allocate(0)
    assert full is not None
    assert empty is not None
    heap.free(empty)
    assert heap.empty() == []


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_laws_of_the_heap(seed: int) -> None:
    """Nodes do not overlap, every address is the lowest possible one, and empty nodes are never adjacent. A pool of the
    final size of the unlimited one behaves identically, and a smaller one fails."""
    rng = random.Random(seed)
    heap, size = PoolAllocator(), {}
    script: list[tuple[str, int]] = []
    for _ in range(60):
        if size and rng.random() < 0.45:
            node = rng.choice(sorted(size))
            heap.free(node)
            del size[node]
            script.append(("free", node))
            continue
        requested = rng.randint(1, 9 * KB)
        taken = sorted((heap.address(n), -(-b // KB) * KB) for n, b in size.items())
        gaps, end_of_last = [], 0
        for start, block_bytes in taken:
            gaps.append((end_of_last, start - end_of_last))
            end_of_last = start + block_bytes
        lowest = next((start for start, gap in gaps if gap >= -(-requested // KB) * KB), end_of_last)
        node = heap.allocate(requested)
        assert node is not None
        assert heap.address(node) == lowest
        size[node] = requested
        script.append(("allocate", requested))
        ends = [start + block_bytes for start, block_bytes in heap.empty()]
        assert all(end < start for end, (start, _) in zip(ends, heap.empty()[1:], strict=False))
    for pool, succeeds in ((heap.high_bytes, True), (heap.high_bytes - KB, False)):
        assert all_requests_fit(PoolAllocator(pool), script) is succeeds


def all_requests_fit(heap: PoolAllocator, script: list[tuple[str, int]]) -> bool:
    """Whether every request of `script` fits."""
    return all(heap.allocate(n) is not None if request == "allocate" else heap.free(n) is None for request, n in script)


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_a_pool_holds_the_bytes_that_the_replay_counts(n: int, seed: int) -> None:
    problem = training_graph(n, seed, link=True)
    for plan in (store_all(problem), random_plan(problem, seed)):
        use = pool_use(problem, plan)
        assert use.peak_bytes == simulate(problem, plan).peak_bytes
        assert use.peak_bytes <= use.blocks_bytes <= use.pool_bytes
        assert use.rounding_bytes + use.fragmentation_bytes == use.pool_bytes - use.peak_bytes


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_two_live_values_share_bytes(seed: int) -> None:
    problem = training_graph(10, seed, link=True)
    plan = random_plan(problem, seed)
    live: dict[int, tuple[int, int]] = {}
    for action, address in zip(plan, pool_use(problem, plan).addresses, strict=True):
        placed = problem.ops[action.op].outputs[:1] if isinstance(action, Compute) else ()
        if isinstance(action, Fetch):
            placed = (action.value,)
        elif isinstance(action, Free):
            live.pop(action.value, None)
        for value in placed:
            if value not in live and problem.values[value].bytes:
                live[value] = address, address + problem.values[value].bytes
        spans = sorted(live.values())
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_fragmentation_by_hand() -> None:
    """Values of 2, 1 and 2 KB are adjacent. The outer ones are freed and 4 KB are requested: these are placed above the
    middle one, and the 2 KB below it are lost."""
    sizes = (2, 1, 2, 4)
    ops = tuple(Op(f"op{i}", "forward", (), (i,), 1) for i in range(3))
    ops += (Op("last", "forward", (1,), (3,), 1),)
    values = tuple(Value(f"v{i}", size * KB, "activation") for i, size in enumerate(sizes))
    problem = Problem("holes", ops, values, (3,), Link(1, 1))
    plan = Plan([Compute(0), Compute(1), Compute(2), Free(0), Free(2), Compute(3), Free(1)])
    use = pool_use(problem, plan)
    assert use.addresses == (0, 2 * KB, 3 * KB, -1, -1, 3 * KB, -1)
    assert (use.peak_bytes, use.pool_bytes, use.fragmentation_bytes, use.rounding_bytes) == (5 * KB, 7 * KB, 2 * KB, 0)


def test_a_chain_of_whole_blocks_has_no_fragmentation() -> None:
    """Values of one size fit into each other's places; a fetched one fits into any of them."""
    problem = chain(12, size_bytes=4 * BLOCK_BYTES)
    use = pool_use(problem, store_all(problem))
    assert use.pool_bytes == use.blocks_bytes == use.peak_bytes
    odd = chain(12, size_bytes=4 * BLOCK_BYTES + 1)
    use = pool_use(odd, store_all(odd))
    assert use.fragmentation_bytes == 0
    assert use.rounding_bytes == use.peak_bytes // (4 * BLOCK_BYTES + 1) * (BLOCK_BYTES - 1)


def test_a_fetched_value_may_lie_at_another_address() -> None:
    values = tuple(Value(f"v{i}", 2 * KB, "activation") for i in range(3))
    ops = (Op("a", "forward", (), (0,), 1), Op("b", "forward", (), (1,), 1), Op("c", "forward", (0, 1), (2,), 1))
    problem = Problem("moves", ops, values, (2,), Link(10**9, 10**9))
    plan = Plan([Compute(0), Offload(0), Free(0), Compute(1), Fetch(0), Compute(2), Free(0), Free(1)])
    assert pool_use(problem, plan).addresses == (0, -1, -1, 0, 2 * KB, 4 * KB, -1, -1)
