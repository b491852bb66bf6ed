"""Calls of a planned module: some follow the plan, some run the original, and some are refused."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import remat
from remat import api
from remat.execute.module import RematModule
from tests.remat.modules import (
    CASE,
    PLANS,
    WIDTH,
    Plans,
    batch,
    differences,
    gradients_of,
    layers,
    recomputing,
    run_and_record,
    solved,
    state_of,
    storing_all,
    training_loss,
)


class Counting(nn.Module):
    """A model that counts the calls of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers()
        self.calls: list[int] = []

    def forward(self, x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, mode: str = "sum") -> Tensor:
        self.calls.append(1)
        y = self.inner(x) * scale
        y = y if mask is None else y.masked_fill(mask, 0.0)
        return y.sum() if mode == "sum" else y.mean()


def planned(**options: Any) -> RematModule:
    net = solved(Counting(), (batch(),), "100%", kwargs={"scale": 2.0}, **options)
    assert net.calls == []
    return net


# Evaluation


def test_training_runs_the_plan_and_not_the_original() -> None:
    net = planned()
    net(batch(), scale=2.0).backward()
    assert net.calls == []


CONTEXTS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "eval": torch.enable_grad}


@pytest.mark.parametrize("name", CONTEXTS)
@PLANS
def test_evaluation_runs_the_original(plan: Plans, name: str) -> None:
    net, model = plan(layers(), (batch(),)), layers()
    if name == "eval":
        net.eval()
        model.eval()
    for x in (batch(), batch(rows=5)):  # of any shape
        torch.manual_seed(8)
        with CONTEXTS[name]():
            found = net(x)
        torch.manual_seed(8)
        with CONTEXTS[name]():
            expected = model(x)
        assert torch.equal(found, expected)
        assert found.requires_grad == expected.requires_grad
        assert found.is_inference() == expected.is_inference()
    assert differences(state_of(net), state_of(model)) == []


@pytest.mark.parametrize("name", CONTEXTS)
def test_evaluation_calls_the_original(name: str) -> None:
    net = planned()
    if name == "eval":
        net.eval()
    with CONTEXTS[name]():
        net(batch(), scale=2.0)
    assert net.calls == [1]


def test_gradients_in_evaluation_are_the_originals() -> None:
    net, model = recomputing(layers(), (batch(),)).eval(), layers().eval()
    assert differences(run_and_record(net, (batch(),)), run_and_record(model, (batch(),))) == []


def test_a_plan_for_evaluation_mode_is_followed_in_it() -> None:
    model = Counting()
    model.inner.eval()
    model.eval()
    net = solved(model, (batch(),), "100%")
    net(batch()).backward()
    assert net.calls == []
    expected = Counting().eval()
    expected(batch()).backward()
    assert differences(gradients_of(net), gradients_of(expected)) == []
    net.train()
    with pytest.raises(remat.ChangedError, match="training mode of the model and 31 more modules"):
        net(batch())


def test_train_and_eval_reach_both() -> None:
    model = layers()
    net = storing_all(model, (batch(),))
    for mode in (False, True):
        assert net.train(mode) is net
        assert {net.training, *(m.training for m in model.modules())} == {mode}
    assert net.eval() is net
    assert {net.training, *(m.training for m in model.modules())} == {False}
    model.train()
    assert net.training
    model.eval()  # the net has the training mode of its original
    assert torch.equal(net(batch()), model(batch()))


class Frozen(nn.Module):
    """A model whose own `train` keeps batch norm in evaluation mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_the_originals_own_train_is_called() -> None:
    net = recomputing(Frozen().train(), (batch(),))
    nn.Sequential(net).eval().train()
    assert not net.inner[0][1].training
    assert differences(run_and_record(net, (batch(),)), run_and_record(Frozen().train(), (batch(),))) == []


# Another call


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def in_autocast(net: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return net(batch(), scale=2.0)


def parameter_frozen(net: Any) -> Any:
    net.inner[0][0].weight.requires_grad_(False)
    return net(batch(), scale=2.0)


def dropout_off(net: Any) -> Any:
    net.inner[2][3].eval()
    return net(batch(), scale=2.0)


def module_added(net: Any) -> Any:
    net.inner.append(nn.Identity())
    return net(batch(), scale=2.0)


def parameter_resized(net: Any) -> Any:
    net.inner[0][0].weight = nn.Parameter(torch.ones(WIDTH, 2 * WIDTH))
    return net(batch(), scale=2.0)


DIFFERENCES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "shape": (
        lambda net: net(batch(rows=3), scale=2.0),
        r"argument leaf 0: shape is \(3, 8\); the plan is for \(64, 8\)",
    ),
    "dtype": (lambda net: net(batch().double(), scale=2.0), r"dtype is torch.float64; the plan is for torch.float32"),
    "stride": (lambda net: net(batch().T.contiguous().T, scale=2.0), r"stride is \(1, 64\); the plan is for \(8, 1\)"),
    "requires_grad": (
        lambda net: net(batch().requires_grad_(), scale=2.0),
        "requires_grad is True; the plan is for False",
    ),
    "value": (lambda net: net(batch(), scale=3.0), "leaf 1 is 3.0; the plan is for 2.0"),
    "type of a value": (lambda net: net(batch(), scale=2), "leaf 1 is 2; the plan is for 2.0"),
    "value to tensor": (
        lambda net: net(batch(), scale=torch.tensor(2.0)),
        r"leaf 1 is a tensor of shape \(\); the plan is for 2.0",
    ),
    "another keyword": (lambda net: net(batch(), scale=2.0, mode="mean"), "arguments are nested differently"),
    "a keyword less": (lambda net: net(batch()), "arguments are nested differently"),
    "parameter frozen": (parameter_frozen, "inner.0.0.weight: requires_grad is False; the plan is for True"),
    "parameter resized": (parameter_resized, r"inner.0.0.weight: shape is \(8, 16\); the plan is for \(8, 8\)"),
    "submodule in evaluation": (dropout_off, "training mode of inner.2.3 was changed"),
    "module added": (module_added, "the model has 33 modules; the plan is for 32"),
    "autocast": (in_autocast, "autocast is torch.bfloat16 on cpu; the plan is for autocast off"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_call_is_refused_and_the_difference_named(name: str) -> None:
    call, message = DIFFERENCES[name]
    net = planned()
    with pytest.raises(remat.ChangedError, match=message) as error:
        call(net)
    assert "on_change='replan'" in str(error.value)
    assert net.calls == []


@pytest.mark.parametrize("name", [name for name in DIFFERENCES if name not in ("dtype", "parameter resized")])
@pytest.mark.parametrize("on_change", ["replan", "original"])
def test_another_call_is_planned_or_runs_the_original(name: str, on_change: Any) -> None:
    call, _ = DIFFERENCES[name]
    net, model = planned(on_change=on_change), Counting()
    records = []
    for module in (net, model):
        torch.manual_seed(4)
        call(module).backward()
        records.append(gradients_of(module) | state_of(module) | {"generator": torch.get_rng_state()})
    assert differences(*records) == []
    assert len(net.calls) == {"replan": 0, "original": 1}[on_change]


def test_each_kind_of_call_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[int] = []
    export = api.export
    monkeypatch.setattr(
        api,
        "export",
        lambda model, args, *rest, **options: exported.append(len(args[0])) or export(model, args, *rest, **options),
    )
    net, model = solved(layers(), (batch(),), "100%", on_change="replan"), layers()
    for rows in (64, 10, 64, 10, 3, 10, 64):
        for module in (net, model):
            torch.manual_seed(rows)
            training_loss(module(batch(rows=rows))).backward()
    assert exported == [64, 10, 3]
    assert differences(gradients_of(net) | state_of(net), gradients_of(model) | state_of(model)) == []
    assert len(net.report().split("\n\n")) == 3


def test_replanning_keeps_the_request() -> None:
    net = solved(layers(), (batch(rows=1024),), "60MB", on_change="replan", reserve_bytes=11, unroll_rnn=True)
    training_loss(net(batch(rows=512))).backward()
    first, second = net._planned
    assert (first.problem.reserve_bytes, second.problem.reserve_bytes) == (11, 11)
    assert first.result.budget_bytes == second.result.budget_bytes == 60_000_000


def test_replanning_beyond_the_budget_is_an_error() -> None:
    net = solved(layers(), (batch(),), 300_000, on_change="replan")
    with pytest.raises(remat.InfeasibleError):
        net(batch(rows=100_000))


def test_applied_plans_do_not_replan() -> None:
    with pytest.raises(remat.ChangedError, match="shape"):
        storing_all(layers(), (batch(),))(batch(rows=2))


def test_on_change_is_checked_at_once() -> None:
    with pytest.raises(remat.InputError, match="on_change must be one of error, replan, original"):
        solved(layers(), (batch(),), "100%", on_change="Replan")


@dataclasses.dataclass
class Example:
    rows: Tensor
    color: Color
    weights: dict[str, Any]


class ExampleModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, example: Example) -> Tensor:
        y = torch.tanh(self.linear(example.rows)) * example.weights["scale"]
        return y * 2 if example.color is Color.BLUE else y


def example(color: Color = Color.RED, scale: Any = 0.5) -> Example:
    return Example(batch(), color, {"scale": scale})


def test_dataclass_and_enum_arguments() -> None:
    model = ExampleModel()
    net = storing_all(model, (example(),))
    assert torch.equal(net(example()), model(example()))
    with pytest.raises(remat.ChangedError, match="BLUE"):
        net(example(Color.BLUE))
    with pytest.raises(remat.ChangedError, match=r"0.75; the plan is for 0.5"):
        net(example(scale=0.75))


def test_the_same_tensor_twice_is_another_call() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a) * b

    net = storing_all(Two(), (batch(1), batch(2)))
    x = batch(3)
    with pytest.raises(remat.ChangedError, match="same tensor"):
        net(x, x)


# Autocast


def test_planned_inside_autocast() -> None:
    case = CASE["autocast-bf16"]
    model, args, _ = case.make()
    expected_model, _, _ = case.make()
    with case.precision():
        net = recomputing(model, args)
        output, expected = net(*args), expected_model(*args)
        assert output.dtype is expected.dtype is torch.bfloat16
    assert torch.equal(output, expected)
    training_loss(output).backward()
    training_loss(expected).backward()
    assert differences(gradients_of(net), gradients_of(expected_model)) == []
    with pytest.raises(remat.ChangedError, match=r"autocast is off; the plan is for autocast torch.bfloat16 on cpu"):
        net(*args)
    with torch.autocast("cpu", torch.float16), pytest.raises(remat.ChangedError, match=r"autocast is torch.float16"):
        net(*args)


def test_a_step_restores_autocast() -> None:
    case = CASE["autocast-bf16"]
    model, args, _ = case.make()
    with case.precision():
        net = recomputing(model, args)
        training_loss(net(*args)).backward()
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
