"""Tests of swaps in idle intervals: they give valid plans, and at the positions found for them no op waits."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import PlanError
from remat_solvers.generate import chain, training_graph
from remat_solvers.plan import Compute, Fetch, Free, Offload
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.chen import Chen
from remat_solvers.schedule import plan_from_sequence, tangents_first
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.toolkit.transfers.intervals import (
    Clock,
    IdleInterval,
    Swap,
    free_when_copied,
    idle_intervals,
    latest_fetches,
    plan_with_swaps,
)
from remat_solvers.validate import validate
from tests.solvers.makers import with_link


def sequences(problem: Problem, random: Random) -> list[int]:
    """The order of the problem, or a random one of Chen's with recomputation."""
    chen = [list(form.sequence(problem)) for form in Chen().forms(problem)] if problem.backward_ops else []
    return list(tangents_first(problem, random.choice([list(range(len(problem.ops))), *chen])))


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_any_swaps_in_idle_intervals_give_a_valid_plan(n: int, seed: int) -> None:
    random = Random(seed)
    problem = with_link(training_graph(n, seed), 10**9)
    sequence = sequences(problem, random)
    swaps = []
    for interval in idle_intervals(problem, sequence):
        if random.random() < 0.5:
            offload = random.randrange(interval.last, interval.back - 1)
            free = random.randrange(offload, interval.back - 1)
            swaps.append(Swap(interval.value, offload, free, random.randrange(free + 1, interval.back + 1)))
    plan = plan_with_swaps(problem, sequence, swaps)
    assert validate(problem, plan) == []
    assert [a for a in plan if isinstance(a, Compute)] == [Compute(op) for op in sequence]
    assert sum(isinstance(a, Offload) for a in plan) == sum(isinstance(a, Fetch) for a in plan) == len(swaps)
    kept = plan_from_sequence(problem, sequence)
    assert simulate(problem, plan).peak_bytes <= simulate(problem, kept).peak_bytes


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), rate=st.integers(1, 10**11), latency=st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_no_op_waits_at_the_positions_found(n: int, seed: int, rate: int, latency: int) -> None:
    random = Random(seed)
    problem = with_link(training_graph(n, seed), rate, latency)
    sequence = sequences(problem, random)
    clock = Clock(problem, sequence)
    chosen = [a for a in idle_intervals(problem, sequence) if random.random() < 0.5]
    frees = free_when_copied(problem, clock, [(a.value, a.last) for a in chosen])
    fetches = latest_fetches(problem, clock, [(a.value, a.back) for a in chosen])
    swaps = [Swap(a.value, a.last, free, fetch) for a, free, fetch in zip(chosen, frees, fetches, strict=True)]
    if all(swap.free < swap.fetch for swap in swaps):
        assert simulate(problem, plan_with_swaps(problem, sequence, swaps)).wait_ns == 0


def test_positions_by_hand() -> None:
    """Ops take 10 ns and values have 10 bytes at one byte per ns, so copies take as long as ops."""
    problem = replace(chain(4, size_bytes=10, forward_ns=10, backward_ns=10), link=Link(10**9, 10**9))
    sequence = list(tangents_first(problem, range(len(problem.ops))))
    clock = Clock(problem, sequence)
    first, second = idle_intervals(problem, sequence)[:2]
    assert (first, second) == (IdleInterval(0, last=1, back=6), IdleInterval(1, last=2, back=5))
    assert copy_ns(10, 10**9, 0) == 10
    # the second of two copies waits for the first where both start at once
    assert free_when_copied(problem, clock, [(first.value, 1), (second.value, 2)]) == [2, 3]
    assert free_when_copied(problem, clock, [(first.value, 2), (second.value, 2)]) == [3, 4]
    # a fetch starts one op before the reader, or two where another copy is in between
    reader = first.back
    assert latest_fetches(problem, clock, [(first.value, reader)]) == [reader - 1]
    assert latest_fetches(problem, clock, [(first.value, reader), (second.value, reader)]) == [reader - 2, reader - 1]


def test_impossible_swaps_raise() -> None:
    problem = with_link(chain(4), 10**9)
    sequence = range(len(problem.ops))
    value = problem.ops[0].outputs[0]
    for swaps in ([Swap(value, 3, 2, 5)], [Swap(value, 1, 3, 3)], [Swap(value, 1, 1, 4), Swap(value, 3, 5, 6)]):
        with pytest.raises(PlanError, match="overlap"):
            plan_with_swaps(problem, sequence, swaps)


def test_a_later_swap_may_use_the_host_copy_of_an_earlier_one() -> None:
    problem = with_link(chain(3), 10**9)
    sequence = list(tangents_first(problem, range(len(problem.ops))))
    (interval, *_) = idle_intervals(problem, sequence)
    assert isinstance(interval, IdleInterval)
    swaps = [Swap(interval.value, interval.last, interval.last, interval.last + 1)]
    swaps.append(Swap(interval.value, interval.last + 1, interval.last + 1, interval.back, copy=False))
    plan = plan_with_swaps(problem, sequence, swaps)
    assert validate(problem, plan) == []
    assert [type(a) for a in plan if getattr(a, "value", None) == interval.value] == [
        Offload,
        Free,
        Fetch,
        Free,
        Fetch,
        Free,
    ]
