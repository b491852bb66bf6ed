"""Capture does not change the model, takes no memory for activations, and refuses with advice."""

from __future__ import annotations

import contextlib
import copy
import random
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import remat
from remat.allocator import peak_of, recording
from remat_solvers.schedule import store_all
from tests.remat.modules import (
    CASE,
    WIDTH,
    batch,
    differences,
    gradients_of,
    layers,
    recomputing,
    run_and_record,
    state_of,
    storing_all,
    training_loss,
)


class ChangesState(nn.Module):
    """A model whose forward draws random numbers and changes every kind of state that it can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.steps = 0
        self.history: list[int] = []
        self.seen: dict[str, Any] = {"first": 1}
        self.names: set[str] = {"a"}

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.late = "set by forward"
        self.history.append(self.steps)
        self.seen["x"] = x
        self.seen.pop("first", None)
        self.names.add("b")
        self.calls = self.calls + 1
        return self.inner(x) + torch.randn(WIDTH)


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "parameters": [(n, id(p), p._version, p.requires_grad, p.grad) for n, p in model.named_parameters()],
        "buffers": [(n, id(b), b._version) for n, b in model.named_buffers()],
        "contents": {n: t.tolist() for n, t in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [(n, id(v)) for m in model.modules() for n, v in m.__dict__.items()],
        "held": [repr(getattr(model, n, None)) for n in ("steps", "history", "seen", "names")],
        "generators": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "grad": torch.is_grad_enabled(),
    }


EXPORTS: dict[str, Callable[[nn.Module], Any]] = {
    "roofline": lambda model: remat.export(model, (batch(),), costs="roofline"),
    "measure": lambda model: remat.export(model, (batch(),), costs="measure"),
    "solve": lambda model: remat.solve(model, "100%", (batch(),), costs="roofline"),
    "apply": lambda model: storing_all(model, (batch(),)),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_model_is_untouched(name: str) -> None:
    model = ChangesState()
    model.inner[1].eval()
    model.inner[2].requires_grad_(False)
    model.inner[0].register_forward_hook(lambda module, args, output: output * 1.5)
    model.inner[3][0].weight.grad = torch.ones(WIDTH, WIDTH)
    before = snapshot(model)
    EXPORTS[name](model)
    assert snapshot(model) == before


def test_generators_of_python_and_numpy_are_untouched() -> None:
    class Draws(ChangesState):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + random.random() + float(np.random.rand()))

    model = Draws()
    before = snapshot(model)
    with contextlib.suppress(remat.ExportError):  # the export may be refused, but it changes nothing
        remat.export(model, (batch(),), costs="roofline")
    assert snapshot(model) == before


def test_an_export_that_fails_leaves_the_model_untouched() -> None:
    class Fails(ChangesState):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ValueError("not today")

    model = Fails()
    before = snapshot(model)
    with pytest.raises(remat.ExportError, match=r"test_exported.py:\d+: .*ValueError: not today"):
        remat.export(model, (batch(),), costs="roofline")
    assert snapshot(model) == before


def test_deepcopy_does_not_copy_an_export() -> None:
    exported = remat.export(layers(), (batch(),), costs="roofline")
    assert copy.deepcopy([exported]) == [exported]


def test_inputs_are_untouched() -> None:
    x = batch().requires_grad_()
    x.grad = torch.ones_like(x)
    before = (x.clone(), x._version, x.grad)
    storing_all(layers(), (x,))
    assert torch.equal(x, before[0])
    assert (x._version, x.grad, x.is_leaf) == (before[1], before[2], True)


def test_verify_leaves_the_model_untouched() -> None:
    model = ChangesState()
    exported = remat.export(model, (batch(),), costs="roofline")
    before = snapshot(model)
    remat.verify(model, store_all(exported.problem), (batch(),))
    after = snapshot(model)
    for entries in ("parameters", "buffers"):  # versions change, identities do not
        assert [entry[:2] for entry in after.pop(entries)] == [entry[:2] for entry in before.pop(entries)]
    assert after == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_export_under_no_grad(context: Any) -> None:
    model, args = layers(), (batch(),)
    with context():
        exported = remat.export(model, args, costs="roofline")
        net = remat.apply(exported, store_all(exported.problem))
    assert exported.problem.fingerprint == remat.export(layers(), args, costs="roofline").problem.fingerprint
    assert differences(run_and_record(net, args), run_and_record(layers(), args)) == []


class Wide(nn.Module):
    """A model with gigabytes of activations and kilobytes of inputs and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) * torch.ones(1, 200_000, 1)
        for layer in self.layers:
            x = torch.dropout(torch.tanh(layer(x)), 0.1, True)
        return x.mean()


def test_export_needs_no_memory_for_activations() -> None:
    model, x = Wide(), torch.randn(64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with recording() as record:
        exported = remat.export(model, (x,), costs="roofline")
        net = remat.apply(exported, store_all(exported.problem))
    assert sum(v.bytes for v in net.problem.values) > 20 * 2**30
    assert peak_of(record.changes) < 2**20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200 * 2**20


# Models that cannot be captured


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.sum() > 0:
            return y * 2
        return y


class Loops(Branches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        for _ in range(int(y.abs().max().item())):
            y = y * 2
        return y


class Picks(Branches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y[y > 0].sum()


@pytest.mark.parametrize("kind", [Branches, Loops, Picks])
def test_control_flow_on_data_is_located(kind: type[nn.Module]) -> None:
    line = kind.forward.__code__.co_firstlineno + 2
    with pytest.raises(remat.ExportError, match=rf"test_exported.py:{line}: .*torch.where") as error:
        remat.export(kind(), (batch(),), costs="roofline")
    assert "value of a tensor" in str(error.value)


def test_a_model_with_nothing_to_train() -> None:
    model = layers().requires_grad_(False)
    with pytest.raises(remat.ExportError, match=r"nothing to train.*requires_grad"):
        remat.export(model, (batch(),), costs="roofline")
    with pytest.raises(remat.ExportError, match="nothing to train"):
        remat.export(nn.ReLU(), (batch(),), costs="roofline")


def test_a_model_without_parameters_but_with_a_gradient_of_its_input() -> None:
    records = []
    for planned in (False, True):
        x = batch().requires_grad_()
        model: nn.Module = nn.Sequential(nn.Tanh(), nn.Softmax(-1), nn.Dropout(0.2))
        net = recomputing(model, (x,)) if planned else model
        torch.manual_seed(2)
        training_loss(net(x)).backward()
        records.append({"x": x.grad})
    assert differences(*records) == []


def test_arguments_that_do_not_fit_the_model(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(remat.ExportError, match="takes 2 positional arguments but 3 were given"):
        remat.export(layers(), (batch(), batch()), costs="roofline")
    with pytest.raises(remat.ExportError, match=r"the model cannot be captured: RuntimeError: .*\[3, 5\]"):
        remat.export(layers(), (torch.ones(3, 5),), costs="roofline")
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_unknown_options_are_named() -> None:
    with pytest.raises(remat.InputError, match="differentiate must be 'loss' or 'all', not 'some'"):
        remat.export(layers(), (batch(),), differentiate="some")  # type: ignore[arg-type]
    with pytest.raises(remat.InputError, match="costs must be"):
        remat.export(layers(), (batch(),), costs="guess")


class ReplacesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("queue", torch.zeros(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.queue = torch.cat([self.queue, x.detach()])
        return self.linear(x)


def test_a_buffer_that_grows_is_refused() -> None:
    model = ReplacesBuffer()
    with pytest.raises(remat.ExportError, match="replaces its buffer queue by one of another shape"):
        remat.export(model, (batch(),), costs="roofline")
    assert model.queue.shape == (1, WIDTH)


def test_export_does_not_advance_the_generator() -> None:
    for name in ("dropout", "batch-norm", "noise", "moving-average-buffer"):
        model, args, kwargs = CASE[name].make()
        before = (torch.get_rng_state(), state_of(model), gradients_of(model))
        remat.export(model, args, kwargs, costs="measure")
        assert torch.equal(torch.get_rng_state(), before[0])
        assert differences(state_of(model), before[1]) == []
