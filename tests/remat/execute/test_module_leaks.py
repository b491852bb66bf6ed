"""A step holds memory as long as its graph exists, and no longer. Memory is counted in bytes of torch's allocator."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from remat.allocator import recording
from tests.remat.modules import (
    CASE,
    PLANS,
    WIDTH,
    Plans,
    batch,
    layers,
    loss_of,
    recomputing,
    storing_all,
    training_loss,
)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disable the garbage collector, so that a tensor is freed only with its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@PLANS
def test_a_thousand_forwards_without_a_backward_hold_nothing(plan: Plans) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Tanh())
    net = plan(model, (batch(),))
    net(batch())
    with recording() as record:
        for _ in range(1000):
            net(batch())
    assert len(record.changes) > 10_000
    assert sum(record.changes) == 0


@pytest.mark.usefixtures("no_collector")
@PLANS
@pytest.mark.parametrize("name", ["lstm-bidirectional-dropout", "returns-loss", "dataclass-output", "aliasing-outputs"])
def test_forwards_of_other_models_hold_nothing(name: str, plan: Plans) -> None:
    model, args, kwargs = CASE[name].make()
    net = plan(model, args, kwargs)
    net(*args, **kwargs)
    with recording() as record:
        for _ in range(20):
            net(*args, **kwargs)
    assert record.changes
    assert sum(record.changes) == 0


@PLANS
def test_steps_hold_nothing_outside_the_allocator(plan: Plans) -> None:
    """Saved generator states have 5,056 bytes each, and torch's allocator does not count them."""
    net = plan(layers(), (batch(),))

    def steps(count: int) -> None:
        for number in range(count):
            loss = training_loss(net(batch()))
            if number % 2:
                loss.backward()
        gc.collect()

    steps(5)
    tracemalloc.start()
    try:
        steps(20)
        before, _ = tracemalloc.get_traced_memory()
        steps(30)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


@pytest.mark.usefixtures("no_collector")
@PLANS
def test_after_its_backward_a_kept_loss_holds_no_more_than_in_eager(plan: Plans) -> None:
    def held(net: nn.Module) -> int:
        training_loss(net(batch())).backward()
        kept = []
        with recording() as record:
            for seed in range(4):
                loss = net(batch(seed)).square().mean()
                loss.backward()
                kept.append(loss)
                del loss
        return sum(record.changes)

    eager = held(layers())
    assert eager == 4 * 4
    assert held(plan(layers(), (batch(),))) == eager


@pytest.mark.usefixtures("no_collector")
def test_a_late_gradient_holds_nothing_after_its_backward(caplog: pytest.LogCaptureFixture) -> None:
    model, args, kwargs = CASE["gpt2"].make()
    net = recomputing(model, args, kwargs)
    loss_of(net(*args, **kwargs)).backward()
    kept = []
    with recording() as record:
        for _ in range(3):
            output = net(*args, **kwargs)
            loss = output.loss + output.logits.mean()
            del output
            loss.backward()
            kept.append(loss)
            del loss
    assert sum(record.changes) == 3 * 4


@PLANS
def test_the_model_is_freed_with_its_planned_module(plan: Plans) -> None:
    model = layers()
    net = plan(model, (batch(),))
    training_loss(net(batch())).backward()
    reference = weakref.ref(model[0][0].weight)
    del model, net
    gc.collect()
    assert reference() is None


def test_a_call_recorded_for_another_capture_holds_no_inputs() -> None:
    x = torch.randn(64, 8)
    reference = weakref.ref(x.untyped_storage())
    net = storing_all(layers(), (x,))
    del x
    gc.collect()
    assert reference() is None
    assert net.training
