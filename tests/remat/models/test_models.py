"""The table of models itself: every case is the same at each call, does not change the generator, and trains."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import remat
from examples.zoo import densenet, mobilenet, resnet
from remat.capture.exported import Exported
from remat_solvers.problem import Problem
from tests.remat.models.exports import exported, measured
from tests.remat.models.table import CASES, ZOO, Case, ModelCall, loss_of, step, tensors

FACTORIES = {case.factory.func.__name__: case.factory.func for case in ZOO if isinstance(case.factory, partial)}

PUBLISHED_PARAMETERS = {
    # The counts in torchvision's model tables, for 1000 classes.
    resnet.resnet18: 11_689_512,
    resnet.resnet50: 25_557_032,
    densenet.densenet121: 7_978_856,
    mobilenet.mobilenet: 3_504_872,
}


def state(call: ModelCall) -> dict[str, torch.Tensor]:
    model, args, kwargs = call
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    named = {f"input {position}": leaf for position, leaf in enumerate(leaves)}
    return {name: tensor.detach().clone() for name, tensor in (model.state_dict() | named).items()}


def gradients(call: ModelCall) -> dict[str, torch.Tensor]:
    model, args, kwargs = call
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    found = dict(model.named_parameters()) | {f"input {position}": leaf for position, leaf in enumerate(inputs)}
    return {name: tensor.grad for name, tensor in found.items() if tensor.grad is not None}


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_is_repeatable_and_trains(case: Case) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = case.make()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    second = case.make()
    assert_equal(state(first), state(second))

    outputs = step(case, first), step(case, second)
    assert_equal(*({str(i): t for i, t in enumerate(tensors(output))} for output in outputs))
    assert_equal(state(first), state(second))
    found = gradients(first)
    assert_equal(found, gradients(second))
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.any() for gradient in found.values())

    trained = {name for name, parameter in first[0].named_parameters() if parameter.requires_grad}
    missing = trained - found.keys()
    assert missing == ({"spare.weight", "spare.bias"} if case.name == "unused-parameter" else set())


@pytest.mark.parametrize(
    ("factory", "count"), PUBLISHED_PARAMETERS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_published_parameter_count(factory: Any, count: int) -> None:
    assert sum(parameter.numel() for parameter in factory()[0].parameters()) == count


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_zoo_defaults_seed_themselves(factory: Any) -> None:
    before = torch.get_rng_state()
    first, second, other = (state((*call, {})[:3]) for call in (factory(), factory(), factory(seed=1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(first, second)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_zoo_defaults_train(factory: Any) -> None:
    model, args, kwargs = (*factory(), {})[:3]
    torch.manual_seed(1)
    loss_of(model(*args, **kwargs)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["dropout", "attention-dropout"])
def test_a_shared_export_is_equal_to_a_new_one(name: str) -> None:
    """Only the source lines of ops of torch's own modules differ: they are those of the call of `export`."""

    def without_lines(export: Exported) -> Problem:
        return replace(export.problem, ops=tuple(replace(op, source="") for op in export.problem.ops))

    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    for shared, new in (
        (exported(case), remat.export(model, args, kwargs, costs="roofline")),
        (measured(case), remat.export(model, args, kwargs)),
    ):
        assert without_lines(shared) == without_lines(new)
