"""Copies, files and names: a planned module has the names of its original, and its copies train on their own."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import remat
from remat.execute.module import RematModule
from tests.remat.modules import (
    CASE,
    WIDTH,
    batch,
    differences,
    layers,
    recomputing,
    run_and_record,
    solved,
    state_of,
    training_loss,
)


def through_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def through_torch(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
Copy = Callable[[nn.Module], nn.Module]


def train(net: nn.Module, steps: int, seed: int = 0) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    torch.manual_seed(seed)
    for number in range(steps):
        optimizer.zero_grad()
        training_loss(net(batch(number))).backward()
        optimizer.step()


@COPIES
@pytest.mark.parametrize("before", [0, 3], ids=["untrained", "trained"])
def test_a_copy_trains_on_by_itself(copied: Copy, before: int) -> None:
    net, expected = recomputing(layers(), (batch(),)), layers()
    for module in (net, expected):
        train(module, before)
    twin = copied(net)
    assert isinstance(twin, RematModule)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}
    before_training = state_of(net)
    train(twin, 3, seed=1)
    assert differences(state_of(net), before_training) == []
    train(net, 3, seed=1)
    train(expected, 3, seed=1)
    assert differences(state_of(twin), state_of(net)) == []
    assert differences(state_of(net), state_of(expected)) == []


@COPIES
def test_a_copy_keeps_its_plan(copied: Copy) -> None:
    net = solved(layers(), (batch(rows=1024),), "70%", reserve_bytes=7)
    twin: Any = copied(net)
    assert (twin.plan, twin.problem, twin.result, twin.report()) == (net.plan, net.problem, net.result, net.report())
    training_loss(twin(batch(rows=1024))).backward()
    assert (twin.plan, twin.problem, twin.result, twin.report()) == (net.plan, net.problem, net.result, net.report())


@COPIES
def test_a_copy_keeps_hooks_and_mode(copied: Copy) -> None:
    net = recomputing(layers(), (batch(),))
    net.register_forward_hook(_twice)
    assert differences(run_and_record(copied(net), (batch(),)), run_and_record(net, (batch(),))) == []
    net.eval()
    assert copied(net).training is False
    assert torch.equal(copied(net)(batch()), net.original(batch()) * 2)


def _twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


@COPIES
def test_a_copy_of_a_copy(copied: Copy) -> None:
    net = recomputing(layers(), (batch(),))
    twin = copied(copied(net))
    assert differences(run_and_record(twin, (batch(),)), run_and_record(net, (batch(),))) == []


@COPIES
def test_a_copy_inside_another_module(copied: Copy) -> None:
    outer = nn.Sequential(recomputing(layers(), (batch(),)), nn.Linear(WIDTH, 3))
    twin = copied(outer)
    assert list(twin.state_dict()) == list(outer.state_dict())
    assert differences(run_and_record(twin, (batch(),)), run_and_record(outer, (batch(),))) == []


@COPIES
def test_a_copy_of_a_transformer(copied: Copy) -> None:
    model, args, kwargs = CASE["gpt2"].make()
    net = recomputing(model, args, kwargs)
    twin = copied(net)
    assert twin.lm_head.weight is twin.transformer.wte.weight  # still tied
    assert differences(run_and_record(twin, args, kwargs), run_and_record(net, args, kwargs)) == []


def test_a_loaded_module_refuses_another_call() -> None:
    loaded = through_pickle(recomputing(layers(), (batch(),)))
    with pytest.raises(remat.ChangedError, match="shape"):
        loaded(batch(rows=3))
    assert loaded(batch()).shape == batch().shape


def test_a_loaded_module_whose_graph_has_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of torch or of the model's code has the same effect."""
    net = recomputing(_Named(), (batch(),))
    stored = pickle.dumps(net)
    monkeypatch.setattr(_Named, "forward", lambda self, x: torch.sigmoid(self.linear(x)) * 2)
    with pytest.raises(remat.InputError, match="the plan was made for graph"):
        pickle.loads(stored)(batch())


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * 2


def test_a_loaded_module_replans() -> None:
    net = solved(layers(), (batch(),), "100%", on_change="replan", on_progress=print)
    loaded = through_pickle(net)
    training_loss(loaded(batch(rows=7))).backward()
    training_loss(loaded(batch())).backward()
    assert loaded.report().count("store-all") == 2 * net.report().count("store-all")


def test_shallow_copy_shares_parameters() -> None:
    net = recomputing(layers(), (batch(),))
    twin = copy.copy(net)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in net.parameters()]
    assert differences(run_and_record(twin, (batch(),)), run_and_record(layers(), (batch(),))) == []


# Names


def test_names_are_the_originals() -> None:
    model = layers()
    names = {
        "parameters": [(n, id(p)) for n, p in model.named_parameters()],
        "buffers": [(n, id(b)) for n, b in model.named_buffers()],
        "modules": [n for n, _ in model.named_modules()],
        "children": [(n, id(m)) for n, m in model.named_children()],
        "state": list(model.state_dict()),
    }
    net = recomputing(model, (batch(),))
    assert names == {
        "parameters": [(n, id(p)) for n, p in net.named_parameters()],
        "buffers": [(n, id(b)) for n, b in net.named_buffers()],
        "modules": [n for n, _ in net.named_modules()],
        "children": [(n, id(m)) for n, m in net.named_children()],
        "state": list(net.state_dict()),
    }
    assert net.original is model
    assert net.get_parameter("0.0.weight") is model[0][0].weight


def test_state_dict_both_ways(tmp_path: Path) -> None:
    net, other = recomputing(layers(), (batch(),)), layers()
    train(net, 2)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    assert str(other.load_state_dict(torch.load(tmp_path / "state.pt"))) == "<All keys matched successfully>"
    assert differences(state_of(other), state_of(net)) == []
    train(other, 2)
    assert str(net.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert differences(state_of(net), state_of(other)) == []
    train(net, 2, seed=1)
    train(other, 2, seed=1)
    assert differences(state_of(net), state_of(other)) == []
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({})


def test_an_assigned_state_dict_is_used() -> None:
    net, other = recomputing(layers(), (batch(),)), layers()
    train(other, 2)
    net.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    other.zero_grad()
    assert differences(run_and_record(net, (batch(),)), run_and_record(other, (batch(),))) == []


class _Extra(nn.Module):
    """A module with state that is no tensor, and with a hook that renames an old key."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.epoch = 0
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def get_extra_state(self) -> int:
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        self.epoch = state


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    for name in ("weight", "bias"):
        if prefix + "old." + name in state:
            state[prefix + "linear." + name] = state.pop(prefix + "old." + name)


@pytest.mark.parametrize("nested", [False, True])
def test_extra_state_and_loading_hooks(nested: bool) -> None:
    def wrapped(module: nn.Module) -> nn.Module:
        return nn.ModuleDict({"inner": module}) if nested else module

    model = _Extra()
    net = wrapped(recomputing(model, (batch(),)))
    model.epoch = 5
    state = {key.replace("linear", "old"): value for key, value in net.state_dict().items()}
    assert len(state) == 3
    target = _Extra()
    assert str(wrapped(recomputing(target, (batch(),))).load_state_dict(state)) == "<All keys matched successfully>"
    assert target.epoch == 5
    assert torch.equal(target.linear.weight, model.linear.weight)


# Attributes


def test_attributes_and_items_are_the_originals() -> None:
    model = layers()
    model.note = "mine"
    net: Any = recomputing(model, (batch(),))
    assert net.note == "mine"
    net.note = "changed"
    assert model.note == "changed"
    del net.note
    assert not hasattr(model, "note")
    assert net[0] is model[0]
    assert len(net) == len(model) == len(list(net)) == 6
    assert model[3] in net
    net.extra = nn.Linear(2, 2)
    assert model.extra is net.extra
    with pytest.raises(AttributeError, match="nothing"):
        _ = net.nothing


def test_a_model_that_is_no_container() -> None:
    net: Any = solved(nn.Linear(WIDTH, WIDTH), (batch(),), "100%")
    assert net
    for use in (len, iter, lambda m: m[0]):
        with pytest.raises(TypeError):
            use(net)


def test_to_another_dtype_changes_the_model_and_the_next_call_is_refused() -> None:
    model = nn.LSTM(WIDTH, WIDTH)
    net = solved(model, (batch().unsqueeze(1),), "100%")
    assert net.to(torch.float64) is net
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with pytest.raises(
        remat.ChangedError, match=r"weight_ih_l0: dtype is torch.float64; the plan is for torch.float32"
    ):
        net(batch().unsqueeze(1).double())
    with torch.no_grad():
        assert net(batch().unsqueeze(1).double())[0].dtype is torch.float64
    net.to(torch.float32)
    net(batch().unsqueeze(1))[0].sum().backward()


def test_zero_grad_requires_grad_and_apply_reach_the_model() -> None:
    net = recomputing(layers(), (batch(),))
    run_and_record(net, (batch(),))
    net.zero_grad()
    assert all(p.grad is None for p in net.original.parameters())
    seen: list[nn.Module] = []
    net.apply(seen.append)
    assert net.original[0][0] in seen
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.original.parameters())


# As part of another module


def test_as_part_of_a_larger_module() -> None:
    def outer(inner: nn.Module) -> nn.Module:
        torch.manual_seed(9)
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ModuleList([inner])[0], nn.Linear(WIDTH, 2))

    x = batch().requires_grad_()
    planned, expected = outer(recomputing(layers(), (x,))), outer(layers())
    assert list(planned.state_dict()) == list(expected.state_dict())
    for module in (planned, expected):
        train(module, 3)
    assert differences(state_of(planned), state_of(expected)) == []
    for module in (planned, expected):
        module.eval()
    assert torch.equal(planned(x), expected(x))
    planned.train()
    assert planned[1].original.training


def test_a_module_that_holds_a_planned_one_is_planned_itself() -> None:
    """The capture sees the original of the part, and not its plan."""
    x = batch().requires_grad_()
    inner = recomputing(layers(), (x,))
    outer = nn.Sequential(inner, nn.Linear(WIDTH, WIDTH))
    expected = copy.deepcopy(nn.Sequential(inner.original, outer[1]))
    net = recomputing(outer, (x,))
    assert net.problem.name == "Sequential"
    assert differences(run_and_record(net, (x,)), run_and_record(expected, (x,))) == []


def test_a_planned_module_that_is_solved_again_keeps_its_original() -> None:
    net = recomputing(layers(), (batch(),))
    second = solved(net, (batch(rows=9),), "100%")
    assert second.original is net.original
    assert second.problem.name == "Sequential"
    expected = run_and_record(layers(), (batch(rows=9),))
    assert differences(run_and_record(second, (batch(rows=9),)), expected) == []
    exported = remat.export(net, (batch(),), costs="roofline")
    assert exported.problem.fingerprint == net.problem.fingerprint
