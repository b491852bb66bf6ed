"""Tests of the device model of swapping methods: it has the clock and the memory of the replay."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import training_graph
from remat_solvers.plan import Compute, Free, Offload, Plan
from remat_solvers.problem import Link
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.transfers.device import Device, Overflow
from remat_solvers.toolkit.transfers.intervals import idle_intervals
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import schedule_copies


def executed(profile: StepProfile, plan: Plan) -> tuple[Device, list[int]]:
    """A device after the plan, with the resident bytes after each action."""
    device, resident_bytes, position = Device(profile, 0), [], 0
    for action in plan:
        if isinstance(action, Compute):
            device.compute(position, profile.problem.ops[action.op].time_ns)
            position += 1
        elif isinstance(action, Free):
            device.free(action.value)
        elif isinstance(action, Offload):
            device.offload(action.value)
        else:
            device.fetch(action.value)
        resident_bytes.append(device.held_bytes)
    return device, resident_bytes


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6))
@settings(max_examples=100)
def test_time_and_memory_are_those_of_the_replay(n: int, seed: int) -> None:
    random = Random(seed)
    rate = 10 ** random.randint(7, 11)
    problem = replace(training_graph(n, seed), link=Link(rate, rate, random.choice((0, 3))))
    profile = StepProfile.of(problem, range(len(problem.ops)))
    peak_bytes = int(profile.used_bytes.max())
    chosen = [a for a in idle_intervals(problem, profile.sequence) if random.random() < 0.5]
    for budget_bytes in (peak_bytes, peak_bytes - random.randint(0, peak_bytes // 3)):
        plan = schedule_copies(profile, chosen, budget_bytes)
        if not isinstance(plan, Overflow):
            device, resident_bytes = executed(profile, plan)
            timeline = simulate(problem, plan)
            assert device.actions == list(plan)
            assert resident_bytes == timeline.memory_bytes.tolist()
            assert max([device.now_ns, *(device.fetch_end_ns.get(v, 0) for v in problem.results)]) == timeline.time_ns


@pytest.mark.parametrize(("host_bytes", "fits"), [(None, True), (10**9, True), (0, False)])
def test_the_capacity_of_the_host_is_that_of_the_link(host_bytes: int | None, fits: bool) -> None:
    problem = replace(training_graph(6, 0), link=Link(1, 1, host_bytes=host_bytes))
    device = Device(StepProfile.of(problem, range(len(problem.ops))), 10**9)
    value = next(v for v, p in enumerate(problem.producer) if p >= 0 and problem.values[v].bytes)
    assert device.host_has_room(value) is fits


def test_a_second_copy_of_a_value_needs_no_host_memory() -> None:
    problem = training_graph(6, 0)
    value = next(v for v, p in enumerate(problem.producer) if p >= 0 and problem.values[v].bytes)
    problem = replace(problem, link=Link(1, 1, host_bytes=problem.values[value].bytes))
    device = Device(StepProfile.of(problem, range(len(problem.ops))), 10**9)
    device.offload(value)
    assert device.host_left_bytes == 0
    assert device.host_has_room(value)
    device.offload(value)
    assert device.host_left_bytes == 0
