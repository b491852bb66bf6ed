"""The device model that swapping methods share agrees with the clock and the memory of the replay."""

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
    """A device after the plan, with the bytes it held after each action."""
    device, held, position = Device(profile, 0), [], 0
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
        held.append(device.held_bytes)
    return device, held


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6))
@settings(max_examples=100)
def test_time_and_memory_are_those_of_the_replay(n: int, seed: int) -> None:
    random = Random(seed)
    rate = 10 ** random.randint(7, 11)
    problem = replace(training_graph(n, seed), link=Link(rate, rate, random.choice((0, 3))))
    profile = StepProfile.of(problem, range(len(problem.ops)))
    most = int(profile.used_bytes.max())
    chosen = [a for a in idle_intervals(problem, profile.sequence) if random.random() < 0.5]
    for budget_bytes in (most, most - random.randint(0, most // 3)):
        plan = schedule_copies(profile, chosen, budget_bytes)
        if not isinstance(plan, Overflow):
            device, held = executed(profile, plan)
            timeline = simulate(problem, plan)
            assert device.actions == list(plan)
            assert held == timeline.memory_bytes.tolist()
            assert max([device.now_ns, *(device.fetch_end_ns.get(v, 0) for v in problem.results)]) == timeline.time_ns


@pytest.mark.parametrize(("host_bytes", "room"), [(None, True), (10**9, True), (0, False)])
def test_the_host_has_as_much_room_as_the_link_says(host_bytes: int | None, room: bool) -> None:
    problem = replace(training_graph(6, 0), link=Link(1, 1, host_bytes=host_bytes))
    device = Device(StepProfile.of(problem, range(len(problem.ops))), 10**9)
    value = next(v for v, p in enumerate(problem.producer) if p >= 0 and problem.values[v].bytes)
    assert device.host_has_room(value) is room


def test_a_second_copy_of_a_value_needs_no_more_room() -> None:
    problem = training_graph(6, 0)
    value = next(v for v, p in enumerate(problem.producer) if p >= 0 and problem.values[v].bytes)
    problem = replace(problem, link=Link(1, 1, host_bytes=problem.values[value].bytes))
    device = Device(StepProfile.of(problem, range(len(problem.ops))), 10**9)
    device.offload(value)
    assert device.host_left_bytes == 0
    assert device.host_has_room(value)
    device.offload(value)
    assert device.host_left_bytes == 0
