"""Models with state outside their parameters: they are captured exactly, or refused with the line and advice."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import remat
from remat_solvers.schedule import store_all
from tests.remat.models.building import WIDTH, Lambda, mlp, rows, seeded
from tests.remat.modules import PLANS, differences, gradients_of, recomputing, roofline, storing_all


def step(net: nn.Module, *args: Any) -> dict[str, Any]:
    torch.manual_seed(2)
    output = net(*args)
    output.sum().backward()
    return {"output": output.detach(), "generator": torch.get_rng_state()} | gradients_of(net)


# Tensors that forward reads beside parameters, buffers and inputs


class Constants(nn.Module):
    """A model that reads a tensor created in forward, plain attributes and one in a list, whole and through views."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.scale = torch.linspace(1.0, 2.0, 2 * WIDTH)
        self.shifts = [torch.arange(float(WIDTH))]

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x * torch.tensor([2.0])) * self.scale[:WIDTH]
        return torch.tanh(y + self.shifts[0]) * self.scale.view(2, WIDTH)[1]


@PLANS
def test_constants_read_by_forward(plan: Callable[..., nn.Module]) -> None:
    args = (seeded(rows),)
    assert differences(step(plan(seeded(Constants), args), *args), step(seeded(Constants), *args)) == []


def test_constants_are_counted_once_and_their_views_are_free() -> None:
    problem = roofline(seeded(Constants), rows()).problem
    lifted = sorted(v.bytes for v in problem.values if v.kind == "constant" and v.name.startswith("_tensor_constant"))
    assert lifted == [4, 4 * WIDTH, 4 * 2 * WIDTH]
    found = {op.target for op in problem.ops}
    assert not found & {"aten.slice.Tensor", "aten.select.int", "aten.view.default", "aten.lift_fresh_copy.default"}


def test_a_constant_that_is_returned_is_the_callers_own() -> None:
    net = storing_all(Lambda(lambda self, x: (self.body(x), torch.tensor([1.0, 2.0])), body=mlp()), (rows(),))
    net(rows())[1].zero_()
    assert net(rows())[1].tolist() == [1.0, 2.0]


def test_a_constant_changed_by_the_user_between_steps_is_read_at_each_step() -> None:
    model = seeded(Constants)
    net = storing_all(model, (seeded(rows),))
    model.scale.fill_(0.0)
    assert net(seeded(rows)).abs().max() == 0.0


# State in Python


class KeepsState(nn.Module):
    """A model that counts its calls, stores its last output, and fills caches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.calls = 0
        self.history: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.body(x)
        self.last = y
        self.history.append(y)
        if "positions" not in self.cache:
            self.cache["positions"] = torch.arange(float(WIDTH))
        if not hasattr(self, "scale"):
            self.scale = torch.full((WIDTH,), 0.5)
        return torch.tanh(y + self.cache["positions"]) * self.scale


def test_export_does_not_change_what_forward_stores(caplog: pytest.LogCaptureFixture) -> None:
    model = seeded(KeepsState)
    with caplog.at_level(logging.WARNING, logger="remat"):
        net = storing_all(model, (seeded(rows),))
    assert (model.calls, model.history, model.cache) == (0, [], {})
    assert not hasattr(model, "last")
    assert not hasattr(model, "scale")
    (record,) = caplog.records  # logged once
    assert "calls, last, scale" in record.getMessage()
    assert differences(step(net, seeded(rows)), step(seeded(KeepsState), seeded(rows))) == []


def test_export_after_eager_steps_keeps_their_caches() -> None:
    model = seeded(KeepsState)
    model(seeded(rows))
    last, scale, history = model.last, model.scale, list(model.history)
    net = storing_all(model, (seeded(rows),))
    assert model.last is last
    assert model.scale is scale
    assert model.calls == 1
    assert len(model.history) == 1
    assert model.history[0] is history[0]
    assert differences(step(net, seeded(rows)), step(seeded(KeepsState), seeded(rows))) == []


def test_nothing_is_logged_where_forward_sets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        roofline(mlp(), rows())
    assert caplog.records == []


def average_of_plain_tensor(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    self.mean.mul_(0.9).add_(y.detach().mean(0))
    return y - self.mean


def counter_in_place(self: Any, x: Tensor) -> Tensor:
    self.mean += 1.0
    return self.body(x) * self.mean


def item_assigned(self: Any, x: Tensor) -> Tensor:
    self.mean[0] = 2.0
    return self.body(x) * self.mean


def replaced(self: Any, x: Tensor) -> Tensor:
    self.mean = self.mean * 0.5
    return self.body(x) * self.mean


@pytest.mark.parametrize("forward", [average_of_plain_tensor, counter_in_place, item_assigned, replaced])
def test_a_plain_tensor_that_forward_updates_must_be_a_buffer(forward: Callable[..., Tensor]) -> None:
    model = Lambda(forward, body=mlp())
    model.mean = torch.ones(WIDTH)
    with pytest.raises(remat.ExportError, match=r"mean.*register_buffer"):
        roofline(model, rows())
    assert model.mean.tolist() == [1.0] * WIDTH


def test_a_trained_tensor_that_is_not_registered_is_refused() -> None:
    model = Lambda(lambda self, x: self.body(x) * self.scales[0], body=mlp())
    model.scales = [nn.Parameter(torch.ones(WIDTH))]
    with pytest.raises(remat.ExportError, match=r"scales.*nn\.ParameterList"):
        roofline(model, rows())


# Generators


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
def test_draws_outside_torch_are_refused(draw: Callable[[], float]) -> None:
    model = Lambda(lambda self, x: self.body(x) * (draw() < 2.0), body=mlp())
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(remat.ExportError, match="Draw with torch"):
        roofline(model, rows())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_draws_of_a_generator_that_forward_seeds_are_allowed() -> None:
    """A generator created and seeded in forward draws the same numbers at every call, planned or not."""
    model = Lambda(lambda self, x: self.body(x) * random.Random(1).random(), body=seeded(mlp))
    expected = step(model, seeded(rows))
    model.zero_grad()
    assert differences(step(storing_all(model, (rows(),)), seeded(rows)), expected) == []


def test_seeding_in_forward_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return self.body(x) + torch.randn(x.shape)

    model, x = Lambda(forward, body=mlp()), rows()
    before = torch.get_rng_state()
    with pytest.raises(remat.ExportError, match=r"torch\.manual_seed\(3\)"):
        roofline(model, x)
    assert torch.equal(torch.get_rng_state(), before)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.generator = mlp(), torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x) * torch.randn(x.shape, generator=self.generator))


@pytest.mark.parametrize("costs", ["measure", "roofline"])
def test_a_generator_of_the_models_own(costs: str) -> None:
    """Planned draws use it too. Only states of default generators are replayed, so the op is not recomputable."""
    model = seeded(OwnGenerator)
    exported = remat.export(model, (seeded(rows),), costs=costs)
    assert torch.equal(model.generator.get_state(), torch.Generator().manual_seed(5).get_state())
    (draw,) = (op for op in exported.problem.ops if "random" in op.effects)
    assert not draw.recomputable
    net, expected = remat.apply(exported, store_all(exported.problem)), seeded(OwnGenerator)
    for _ in range(2):
        assert differences(step(net, seeded(rows)), step(expected, seeded(rows))) == []


# Values of tensors, and shapes that depend on them


def branches(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    if y.sum() > 0:  # the line
        return y
    return -y


def loops(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    for _ in range(int(x[0, 0])):  # the line
        y = y + 1
    return y


def selects(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    return y[y > 0]  # the line


def nonzero(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    return y.flatten()[x.flatten().nonzero()]  # the line


def unique(self: Any, x: Tensor) -> Tensor:
    return self.body(x.unique().expand(2, WIDTH))  # the line


def numpy(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * float(x.numpy().sum())  # the line


@pytest.mark.parametrize("forward", [branches, loops, selects, nonzero, unique, numpy])
def test_contents_of_tensors_are_not_known_while_capturing(forward: Callable[..., Tensor]) -> None:
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = forward.__code__.co_firstlineno
    line = next(i for i, text in enumerate(lines[start:], start + 1) if text.endswith("# the line"))
    with pytest.raises(remat.ExportError) as caught:
        roofline(Lambda(forward, body=mlp()), rows())
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{line}: ")
    assert "Replace the Python branch" in message or "Compute with torch" in message


@PLANS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, from Dynamo
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_torch_cond_chooses_at_every_step(sign: float, plan: Callable[..., nn.Module]) -> None:
    def make() -> nn.Module:
        def forward(self: Any, x: Tensor) -> Tensor:
            return self.last(torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (self.body(x),)))

        return seeded(lambda: Lambda(forward, body=mlp(), last=nn.Linear(WIDTH, WIDTH)))

    net = plan(make(), (rows(),))
    x = sign * torch.ones(4, WIDTH)
    model = make()
    y = model.body(x)
    model.last(y.sin() if sign > 0 else y.cos()).sum().backward()
    found = step(net, x)
    assert differences({n: found[n] for n in gradients_of(model)}, gradients_of(model)) == []


# Models that cannot be planned


def test_a_leaf_that_requires_a_gradient_changed_in_place() -> None:
    model = Lambda(lambda self, x: self.body(x.add_(1.0)), body=mlp())
    with pytest.raises(remat.ExportError, match=r"argument 0.*Clone it first"):
        roofline(model, rows().requires_grad_())


def test_a_parameter_changed_in_place() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-1.0, 1.0)
        return self.linear(x)

    model = Lambda(forward, linear=nn.Linear(WIDTH, WIDTH))
    before = model.linear.weight.detach().fill_(2.0).clone()
    with pytest.raises(remat.ExportError, match=r"linear\.weight.*between steps"):
        roofline(model, rows())
    assert torch.equal(model.linear.weight, before)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("sparse_coo", lambda: torch.eye(WIDTH).to_sparse()),
        ("nested", lambda: torch.nested.as_nested_tensor([torch.ones(2, WIDTH), torch.ones(3, WIDTH)])),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_only_dense_tensors_are_planned(kind: str, make: Callable[[], Tensor]) -> None:
    model = Lambda(lambda self, x: self.body(x.to_dense()), body=mlp())
    with pytest.raises(remat.ExportError, match=f"{kind} tensor.*to_dense"):
        roofline(model, make())


def test_complex_numbers() -> None:
    def make() -> nn.Module:
        return seeded(lambda: Lambda(lambda self, x: torch.fft.rfft(self.body(x)).abs() ** 2, body=mlp()))

    args = (seeded(rows),)
    assert differences(step(recomputing(make(), args), *args), step(make(), *args)) == []


def test_mixed_devices() -> None:
    with pytest.raises(remat.ExportError, match=r"same device.*cpu and meta"):
        roofline(nn.Linear(WIDTH, WIDTH, device="meta"), rows())


def test_a_model_without_memory_can_be_estimated_not_measured() -> None:
    model, x = nn.Linear(WIDTH, WIDTH, device="meta"), torch.empty(4, WIDTH, device="meta")
    problem = remat.export(model, (x,), costs="roofline:a100").problem
    assert problem.constant_bytes == 4 * (WIDTH * WIDTH + WIDTH + 4 * WIDTH)
    with pytest.raises(remat.InputError, match="roofline:a100"):
        remat.export(model, (x,))


@pytest.mark.parametrize("model", [mlp().requires_grad_(False), nn.Identity()], ids=["frozen", "without parameters"])
def test_nothing_to_train(model: nn.Module) -> None:
    with pytest.raises(remat.ExportError, match="requires_grad"):
        roofline(model, rows())


def test_an_error_of_the_models_own_names_its_line() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        raise KeyError("mode")  # the line

    with pytest.raises(remat.ExportError, match=r"test_python_state\.py:\d+: .*KeyError: 'mode'"):
        roofline(Lambda(forward, body=mlp()), rows())


# Arguments that are no tensors


def plain_values(self: Any, x: Tensor, *, times: int, wide: bool, mode: str | None) -> Tensor:
    for _ in range(times):
        x = self.body(x)
    x = x * (2.0 if wide else 1.0)
    return x.sin() if mode == "sine" else x


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"times": 3}, "3; the plan is for 2"),
        ({"wide": False}, "False; the plan is for True"),
        ({"mode": None}, "None; the plan is for 'sine'"),
    ],
)
def test_plain_arguments_are_fixed_in_the_graph_and_compared(changed: dict[str, Any], message: str) -> None:
    model = seeded(lambda: Lambda(plain_values, body=mlp()))
    kwargs = {"times": 2, "wide": True, "mode": "sine"}
    exported = roofline(model, rows(), **kwargs)
    assert [op.target for op in exported.problem.ops].count("aten.addmm.default") == 4  # two linears, twice
    net = remat.apply(exported, store_all(exported.problem))
    x = rows()
    assert torch.equal(net(x, **kwargs), model(x, **kwargs))
    with pytest.raises(remat.ChangedError, match=message):
        net(x, **kwargs | changed)


# Autograd inside forward


def double(self: Any, x: Tensor) -> Tensor:
    """The squared norm of an inner gradient, as in a gradient penalty."""
    (inner,) = torch.autograd.grad(self.body(x).sin().sum(), x, create_graph=True)
    return inner.square().sum()


def hooked(self: Any, x: Tensor) -> Tensor:
    y = self.body(x)
    y.register_hook(lambda gradient: gradient * 2.0)
    return y.sin()


def partly_detached(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = self.body(x)
    return (self.body(x) - target.detach() * 2.0).square()


def nested_checkpoints(self: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda a: checkpoint(self.body, a, use_reentrant=False).sin(), x, use_reentrant=False)


@PLANS
@pytest.mark.parametrize("forward", [double, hooked, partly_detached, nested_checkpoints])
def test_autograd_inside_forward(forward: Callable[..., Tensor], plan: Callable[..., nn.Module]) -> None:
    def make() -> nn.Module:
        return seeded(lambda: Lambda(forward, body=mlp()))

    args = (seeded(rows).requires_grad_(),)
    assert differences(step(plan(make(), args), *args), step(make(), *args)) == []
