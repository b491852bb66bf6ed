"""A planned step is one trace of the model: the attributes that it read are compared at every call."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

import remat
from remat_solvers.schedule import plan_from_sequence, store_all
from tests.remat.modules import batch, layers, storing_all


def test_a_changed_attribute_is_another_call() -> None:
    model = layers()
    net = storing_all(model, (batch(),))
    net(batch())
    model[2][3].p = 0.9
    with pytest.raises(remat.ChangedError, match=r"2\.3\.p is 0\.9; the plan is for 0\.2"):
        net(batch())
    model[2][3].p = 0.2
    net(batch())


def test_a_changed_attribute_is_planned_again() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
    net = remat.solve(model, "100%", (batch(),), costs="roofline", on_change="replan")
    net(batch())
    model[1].p = 1.0
    assert (net(batch()) == 0).all()
    model[1].p = 0.1
    assert not (net(batch()) == 0).all()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_attributes_that_forward_sets_are_not_compared() -> None:
    model = Counting()
    net = storing_all(model, (batch(),))
    model(batch())
    assert model.calls == 1
    net(batch())


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.dropout(self.weight * x, 0.5))


def test_threads_replay_their_own_random_numbers() -> None:
    """y = tanh(m w x / (1-p)), so dy/dw = (1 - y^2) atanh(y) / w: the gradient must use the mask of its own y."""
    model, x = Masked(), torch.linspace(0.1, 1.0, 20_000)
    exported = remat.export(model, (x,), costs="roofline")
    forward = list(exported.problem.forward_ops)
    tangents, *backward = exported.problem.backward_ops
    net = remat.apply(exported, plan_from_sequence(exported.problem, [*forward, tangents, *forward, *backward]))
    errors: list[float] = []

    def work() -> None:
        for _ in range(60):
            y = net(x)
            (found,) = torch.autograd.grad(y.sum(), [model.weight])
            expected = ((1 - y**2) * torch.atanh(y) / model.weight).sum()
            if not torch.allclose(found, expected, rtol=1e-3):
                errors.append(float(found - expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_changed_between_export_and_apply() -> None:
    model = layers()
    exported = remat.export(model, (batch(),), costs="roofline")
    model[0][1].eps = 1.0
    net = remat.apply(exported, store_all(exported.problem))
    with pytest.raises(remat.ChangedError, match="eps"):
        net(batch())


def test_a_replaced_module_or_a_new_hook_is_another_call() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
    net = storing_all(model, (batch(),))
    model[1] = nn.Tanh()
    with pytest.raises(remat.ChangedError, match="1 is a Tanh with 0 hooks; the plan is for a Sigmoid"):
        net(batch())
    model[1] = nn.Sigmoid()
    net(batch())
    model[2].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(remat.ChangedError, match="1 hooks"):
        net(batch())
