"""Trips to the host: plans made from them are valid, and the places found for them are those at which nobody waits."""

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
    Absence,
    Clock,
    Trip,
    absences,
    latest_fetches,
    leave_when_copied,
    plan_with_trips,
)
from remat_solvers.validate import validate
from tests.solvers.makers import with_link


def sequences(problem: Problem, random: Random) -> list[int]:
    """The problem's order, or one of Chen's with recomputation."""
    chen = [list(form.sequence(problem)) for form in Chen().forms(problem)] if problem.backward_ops else []
    return list(tangents_first(problem, random.choice([list(range(len(problem.ops))), *chen])))


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_any_trips_in_absences_give_a_valid_plan(n: int, seed: int) -> None:
    random = Random(seed)
    problem = with_link(training_graph(n, seed), 10**9)
    sequence = sequences(problem, random)
    trips = []
    for absence in absences(problem, sequence):
        if random.random() < 0.5:
            out = random.randrange(absence.last, absence.back - 1)
            leave = random.randrange(out, absence.back - 1)
            trips.append(Trip(absence.value, out, leave, random.randrange(leave + 1, absence.back + 1)))
    plan = plan_with_trips(problem, sequence, trips)
    assert validate(problem, plan) == []
    assert [a for a in plan if isinstance(a, Compute)] == [Compute(op) for op in sequence]
    assert sum(isinstance(a, Offload) for a in plan) == sum(isinstance(a, Fetch) for a in plan) == len(trips)
    kept = plan_from_sequence(problem, sequence)
    assert simulate(problem, plan).peak_bytes <= simulate(problem, kept).peak_bytes


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), rate=st.integers(1, 10**11), latency=st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_nobody_waits_at_the_places_found(n: int, seed: int, rate: int, latency: int) -> None:
    random = Random(seed)
    problem = with_link(training_graph(n, seed), rate, latency)
    sequence = sequences(problem, random)
    clock = Clock(problem, sequence)
    chosen = [a for a in absences(problem, sequence) if random.random() < 0.5]
    leaves = leave_when_copied(problem, clock, [(a.value, a.last) for a in chosen])
    fetches = latest_fetches(problem, clock, [(a.value, a.back) for a in chosen])
    trips = [Trip(a.value, a.last, leave, fetch) for a, leave, fetch in zip(chosen, leaves, fetches, strict=True)]
    if all(trip.leave < trip.fetch for trip in trips):
        assert simulate(problem, plan_with_trips(problem, sequence, trips)).wait_ns == 0


def test_places_by_hand() -> None:
    """A chain of ops of 10 ns and values of 10 bytes at one byte per ns: copies take as long as ops."""
    problem = replace(chain(4, size_bytes=10, forward_ns=10, backward_ns=10), link=Link(10**9, 10**9))
    sequence = list(tangents_first(problem, range(len(problem.ops))))
    clock = Clock(problem, sequence)
    first, second = absences(problem, sequence)[:2]
    assert (first, second) == (Absence(0, last=1, back=6), Absence(1, last=2, back=5))
    assert copy_ns(10, 10**9, 0) == 10
    # two copies one after the other: the second waits for the queue where both start at once
    assert leave_when_copied(problem, clock, [(first.value, 1), (second.value, 2)]) == [2, 3]
    assert leave_when_copied(problem, clock, [(first.value, 2), (second.value, 2)]) == [3, 4]
    # back just in time, one op before; and two before where another copy comes in between
    at = first.back
    assert latest_fetches(problem, clock, [(first.value, at)]) == [at - 1]
    assert latest_fetches(problem, clock, [(first.value, at), (second.value, at)]) == [at - 2, at - 1]


def test_what_cannot_be_is_refused() -> None:
    problem = with_link(chain(4), 10**9)
    sequence = range(len(problem.ops))
    value = problem.ops[0].outputs[0]
    for trips in ([Trip(value, 3, 2, 5)], [Trip(value, 1, 3, 3)], [Trip(value, 1, 1, 4), Trip(value, 3, 5, 6)]):
        with pytest.raises(PlanError, match="overlap"):
            plan_with_trips(problem, sequence, trips)


def test_a_later_trip_may_use_the_host_copy_of_an_earlier_one() -> None:
    problem = with_link(chain(3), 10**9)
    sequence = list(tangents_first(problem, range(len(problem.ops))))
    (absence, *_) = absences(problem, sequence)
    assert isinstance(absence, Absence)
    trips = [Trip(absence.value, absence.last, absence.last, absence.last + 1)]
    trips.append(Trip(absence.value, absence.last + 1, absence.last + 1, absence.back, copy=False))
    plan = plan_with_trips(problem, sequence, trips)
    assert validate(problem, plan) == []
    assert [type(a) for a in plan if getattr(a, "value", None) == absence.value] == [
        Offload,
        Free,
        Fetch,
        Free,
        Fetch,
        Free,
    ]
