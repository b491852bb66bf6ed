"""Late gradients: the plan differentiates the loss only, and the user differentiates other outputs too."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import remat
from tests.remat.modules import (
    CASE,
    PLANS,
    WIDTH,
    Plans,
    batch,
    differences,
    gradients_of,
    loss_of,
    state_of,
    storing_all,
)


class LossAndLogits(nn.Module):
    """A model with dropout and batch norm that returns a loss and the tensors it comes from, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.body = nn.Sequential(
                *(
                    m
                    for _ in range(3)
                    for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.3))
                )
            )
            self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        logits = self.head(hidden)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits, "hidden": hidden}


def example_args() -> tuple[Tensor, Tensor]:
    return batch(), torch.arange(64) % 5


def run_use(net: nn.Module, args: Any, use: Any) -> dict[str, Any]:
    """Return gradients, state, and the generator after `use` of the outputs of one call."""
    torch.manual_seed(6)
    use(net(*args))
    return gradients_of(net) | state_of(net) | {"generator": torch.get_rng_state(), "draw": torch.rand(3)}


USES = {
    "loss": lambda out: out["loss"].backward(),
    "logits": lambda out: out["logits"].square().sum().backward(),
    "sum": lambda out: (out["loss"] + out["logits"].mean() + out["hidden"].square().sum()).backward(),
    "one after the other": lambda out: (out["loss"].backward(retain_graph=True), out["logits"].sum().backward()),
    "late first": lambda out: (out["logits"].sum().backward(retain_graph=True), out["loss"].backward()),
    "twice": lambda out: (out["hidden"].sum().backward(retain_graph=True), out["hidden"].sum().backward()),
}


@PLANS
@pytest.mark.parametrize("use", USES)
def test_late_gradients_equal_eager(plan: Plans, use: str) -> None:
    net = plan(LossAndLogits(), example_args())
    expected = run_use(LossAndLogits(), example_args(), USES[use])
    assert differences(run_use(net, example_args(), USES[use]), expected) == []


@PLANS
def test_late_gradients_of_an_earlier_forward(plan: Plans) -> None:
    """Between the forward and the backward the generator and the statistics change."""

    def use(net: nn.Module) -> dict[str, Any]:
        torch.manual_seed(6)
        first = net(*example_args())
        second = net(batch(1), example_args()[1])
        (first["loss"] + first["logits"].sum()).backward()
        second["hidden"].sum().backward()
        return gradients_of(net) | state_of(net) | {"generator": torch.get_rng_state()}

    assert differences(use(plan(LossAndLogits(), example_args())), use(LossAndLogits())) == []


@PLANS
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_transformers_loss_and_logits(name: str, plan: Plans) -> None:
    records = []
    for planned in (False, True):
        model, args, kwargs = CASE[name].make()
        net = plan(model, args, kwargs) if planned else model
        torch.manual_seed(1)
        loss_of(net(*args, **kwargs)).backward()
        records.append(gradients_of(model) | {"generator": torch.get_rng_state()})
    assert differences(*records) == []


def test_the_warning_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = storing_all(LossAndLogits(), example_args())
    with caplog.at_level(logging.WARNING, logger="remat"):
        for _ in range(3):
            net(*example_args())["logits"].sum().backward()
    (record,) = [r for r in caplog.records if r.name == "remat"]
    assert "differentiate='all'" in record.getMessage()


def test_planned_for_all_outputs_no_gradient_is_late(caplog: pytest.LogCaptureFixture) -> None:
    net = remat.solve(LossAndLogits(), "100%", example_args(), costs="roofline", differentiate="all")
    expected = run_use(LossAndLogits(), example_args(), USES["sum"])
    with caplog.at_level(logging.WARNING, logger="remat"):
        assert differences(run_use(net, example_args(), USES["sum"]), expected) == []
    assert [r for r in caplog.records if r.name == "remat"] == []


def test_a_late_gradient_after_a_change_in_place_raises() -> None:
    net = storing_all(LossAndLogits(), example_args())
    output = net(*example_args())
    with torch.no_grad():
        net.body[0].bias.add_(1.0)
    with pytest.raises(remat.ApplyError, match="changed in place"):
        output["logits"].sum().backward()


class Centred(nn.Module):
    """A model that reads a buffer and then updates it: a second forward would read the updated one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        y = torch.tanh(y - self.mean)
        self.mean.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return y.square().mean(), y


def test_a_late_gradient_that_cannot_be_computed_is_refused() -> None:
    net = storing_all(Centred(), (batch(),))
    loss, _ = net(batch())
    loss.backward()
    _, y = net(batch())
    with pytest.raises(remat.ApplyError, match="differentiate='all'"):
        y.sum().backward()
    net = remat.solve(Centred(), "100%", (batch(),), costs="roofline", differentiate="all")
    expected = Centred()
    expected.load_state_dict(net.state_dict())
    for module in (net, expected):
        module(batch())[1].sum().backward()
    assert differences(gradients_of(net), gradients_of(expected)) == []
