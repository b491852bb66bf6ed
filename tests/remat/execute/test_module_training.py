"""Training loops: every use of a planned module gives the gradients, state and random numbers of the original."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import remat
from remat_solvers.generate import random_plan
from remat_solvers.schedule import store_all
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

MODELS = pytest.mark.parametrize(
    "name", ["sequential", "dropout", "batch-norm", "lstm-bidirectional-dropout", "resnet18", "gpt2"]
)


def run_three(loop: Callable[[nn.Module], Any]) -> list[dict[str, Any]]:
    """Return the state after `loop`: eager, with the store-all plan, and with a plan that recomputes."""
    records = []
    for plan in (None, storing_all, recomputing):
        model = layers()
        net = model if plan is None else plan(model, (batch(),))
        torch.manual_seed(3)
        loop(net)
        records.append(gradients_of(net) | state_of(net) | {"generator": torch.get_rng_state()})
    return records


def assert_three_equal(loop: Callable[[nn.Module], Any]) -> None:
    eager, stored, recomputed = run_three(loop)
    assert differences(stored, eager) == []
    assert differences(recomputed, eager) == []
    assert any(tensor.any() for name, tensor in eager.items() if name.endswith("weight"))


@MODELS
@PLANS
def test_one_step_equals_eager(name: str, plan: Plans) -> None:
    model, args, kwargs = CASE[name].make()
    expected = run_and_record(model, args, kwargs)
    model, args, kwargs = CASE[name].make()
    found = run_and_record(plan(model, args, kwargs), args, kwargs)
    assert differences(found, expected) == []


def test_two_forwards_before_backwards_in_order() -> None:
    def loop(net: nn.Module) -> None:
        losses = [training_loss(net(batch(seed))) for seed in (1, 2)]
        for loss in losses:
            loss.backward()

    assert_three_equal(loop)


def test_two_forwards_before_backwards_in_reverse() -> None:
    def loop(net: nn.Module) -> None:
        losses = [training_loss(net(batch(seed))) for seed in (1, 2)]
        for loss in reversed(losses):
            loss.backward()

    assert_three_equal(loop)


def test_interleaved_steps() -> None:
    def loop(net: nn.Module) -> None:
        first = training_loss(net(batch(1)))
        second = training_loss(net(batch(2)))
        first.backward()
        third = training_loss(net(batch(3)))
        second.backward()
        third.backward()

    assert_three_equal(loop)


def test_one_backward_through_two_forwards() -> None:
    records = []
    for planned in (False, True):
        model, x = layers(), batch().requires_grad_()
        net = recomputing(model, (x,)) if planned else model
        torch.manual_seed(4)
        training_loss(net(net(x))).backward()
        records.append({"input": x.grad} | gradients_of(net) | state_of(net))
    assert differences(*records) == []


def test_accumulation_over_four_micro_batches() -> None:
    def loop(net: nn.Module) -> None:
        for seed in range(4):
            (training_loss(net(batch(seed))) / 4).backward()

    assert_three_equal(loop)


def test_backward_twice_through_a_retained_graph() -> None:
    def loop(net: nn.Module) -> None:
        loss = training_loss(net(batch()))
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()

    assert_three_equal(loop)


def test_the_tape_of_a_recurrent_layer_is_retained() -> None:
    model, args, kwargs = CASE["lstm-bidirectional-dropout"].make()
    net = recomputing(model, args, kwargs)
    loss, parameters = training_loss(net(*args, **kwargs)), list(model.parameters())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_retained_graph_survives_another_step() -> None:
    def loop(net: nn.Module) -> None:
        kept = training_loss(net(batch(1)))
        kept.backward(retain_graph=True)
        training_loss(net(batch(2))).backward()
        kept.backward()

    assert_three_equal(loop)


def test_gradients_by_autograd_grad() -> None:
    def loop(net: nn.Module) -> None:
        parameters = list(net.parameters())
        found = torch.autograd.grad(training_loss(net(batch())), parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient * 2

    assert_three_equal(loop)


def test_gradients_of_some_parameters_only() -> None:
    def loop(net: nn.Module) -> None:
        wanted = list(net.parameters())[:3]
        training_loss(net(batch())).backward(inputs=wanted)
        assert [p.grad is not None for p in net.parameters()] == [True] * 3 + [False] * (
            len(list(net.parameters())) - 3
        )

    assert_three_equal(loop)


def test_gradient_clipping() -> None:
    def loop(net: nn.Module) -> None:
        training_loss(net(batch())).backward()
        assert torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5) > 0.5

    assert_three_equal(loop)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["sequential", "batch-norm", "gpt2"])
def test_twenty_steps(name: str, optimizer: str) -> None:
    def train(plan: Plans | None) -> dict[str, Tensor]:
        model, args, kwargs = CASE[name].make()
        net = model if plan is None else plan(model, args, kwargs)
        instance = OPTIMIZERS[optimizer](net.parameters())
        torch.manual_seed(2)
        for _ in range(20):
            instance.zero_grad()
            training_loss(net(*args, **kwargs)).backward()
            instance.step()
        return state_of(net)

    eager, stored, recomputed = train(None), train(storing_all), train(recomputing)
    assert differences(recomputed, stored) == []
    torch.testing.assert_close(recomputed, eager)
    before = CASE[name].make()[0].state_dict()
    assert set(differences(eager, before)) >= {n for n, p in CASE[name].make()[0].named_parameters() if p.requires_grad}


@PLANS
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_optimizer_created_before_or_after_the_plan(plan: Plans, before: bool) -> None:
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if before else None
    net = plan(model, (batch(),))
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    expected = layers()
    for trained, instance in ((net, optimizer), (expected, torch.optim.SGD(expected.parameters(), lr=0.1))):
        torch.manual_seed(5)
        training_loss(trained(batch())).backward()
        instance.step()
    assert differences(state_of(net), state_of(expected)) == []


def test_hooks_on_parameters_change_gradients() -> None:
    def loop(net: nn.Module) -> None:
        for position, parameter in enumerate(net.parameters()):
            parameter.register_hook(lambda gradient, scale=position + 2: gradient * scale)
        training_loss(net(batch())).backward()

    assert_three_equal(loop)


def test_hooks_after_accumulation_run_once_per_backward() -> None:
    def loop(net: nn.Module) -> None:
        calls: list[int] = []

        def update(parameter: Tensor) -> None:
            calls.append(id(parameter))
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad
            parameter.grad = None

        handles = [p.register_post_accumulate_grad_hook(update) for p in net.parameters()]
        for seed in (1, 2):
            training_loss(net(batch(seed))).backward()
        assert sorted(calls) == sorted(2 * [id(p) for p in net.parameters()])
        for handle in handles:
            handle.remove()
        training_loss(net(batch(3))).backward()

    assert_three_equal(loop)


def test_module_hooks_on_the_planned_module() -> None:
    def loop(net: nn.Module) -> None:
        seen: list[str] = []
        net.register_forward_pre_hook(lambda module, args: seen.append("before"))
        net.register_forward_hook(lambda module, args, output: output * 2)
        net.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("gradient"))
        training_loss(net(batch().requires_grad_())).backward()
        assert seen == ["before", "gradient"]

    eager = layers()
    torch.manual_seed(3)
    loop(eager)
    net = recomputing(layers(), (batch().requires_grad_(),))
    torch.manual_seed(3)
    loop(net)
    assert differences(gradients_of(net), gradients_of(eager)) == []


@PLANS
def test_gradient_reaches_an_input_with_a_history(plan: Plans) -> None:
    records = []
    for planned in (False, True):
        model, source = layers(), batch(1).requires_grad_()
        net = plan(model, (source * 2,)) if planned else model
        torch.manual_seed(4)
        training_loss(net(source * 2)).backward()
        records.append({"source": source.grad} | gradients_of(net))
    assert differences(*records) == []


@PLANS
def test_a_parameter_replaced_later_is_used(plan: Plans) -> None:
    net = plan(layers(), (batch(),))
    expected = layers()
    for model in (net, expected):
        model[2][0].weight = nn.Parameter(torch.full((WIDTH, WIDTH), 0.25).tril())
    assert differences(run_and_record(net, (batch(),)), run_and_record(expected, (batch(),))) == []
    assert net[2][0].weight.grad is not None
    assert dict(net.named_parameters())["2.0.weight"] is net.original[2][0].weight


@PLANS
def test_contents_changed_through_data_are_used(plan: Plans) -> None:
    net = plan(layers(), (batch(),))
    expected = layers()
    for model in (net, expected):
        model[0][0].weight.data = model[0][0].weight.data * 3
        model[1][1].running_mean = torch.ones(WIDTH)
    assert differences(run_and_record(net, (batch(),)), run_and_record(expected, (batch(),))) == []


class Squashed(nn.Module):
    """A model that ends in tanh, whose backward reads the output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.relu(self.linear(x))))


@pytest.mark.parametrize("change", ["output", "parameter", "input"])
@pytest.mark.parametrize("plan", [None, storing_all], ids=["eager", "store-all"])
def test_in_place_changes_before_the_backward_raise(change: str, plan: Plans | None) -> None:
    model, x = Squashed(), batch()
    net = model if plan is None else plan(model, (x,))
    y = net(x)
    with torch.no_grad():
        {"output": y, "parameter": model.out.weight, "input": x}[change].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inputs_of_recomputations_must_not_change() -> None:
    """Eager's backward does not read a bias, but a recomputation does, and would give other activations."""
    model = Squashed()
    exported = remat.export(model, (batch(),), costs="roofline")
    equal_runs = 0
    plans = [store_all(exported.problem), *(random_plan(exported.problem, seed) for seed in range(5))]
    for plan in plans:
        net = remat.apply(exported, plan)
        expected = torch.autograd.grad(net(batch()).sum(), list(model.parameters()))
        y = net(batch())
        with torch.no_grad():
            model.linear.bias.add_(1.0)
        with contextlib.suppress(RuntimeError):  # the backward raises, or its gradients are right
            found = torch.autograd.grad(y.sum(), list(model.parameters()))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            equal_runs += 1
    assert 0 < equal_runs < len(plans)


@PLANS
def test_an_output_changed_in_place_where_eager_allows_it(plan: Plans) -> None:
    records = []
    for planned in (False, True):
        model = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)
        )
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        net = plan(model, (batch(),)) if planned else model
        y = net(batch())
        y.mul_(2.0)
        y.sum().backward()
        records.append(gradients_of(model))
    assert differences(*records) == []


@PLANS
def test_a_second_derivative_is_refused(plan: Plans) -> None:
    x = batch().requires_grad_()
    net = plan(layers(), (x,))
    with pytest.raises(remat.ApplyError, match="create_graph"):
        torch.autograd.grad(training_loss(net(x)), x, create_graph=True)


@PLANS
def test_two_threads(plan: Plans) -> None:
    """The model has no dropout, because all threads share one generator, in eager too."""
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())))
    net = plan(model, (batch(),))
    parameters = list(model.parameters())
    expected = [torch.autograd.grad(training_loss(model(batch(seed))), parameters) for seed in range(2)]
    errors: list[Any] = []

    def work(seed: int) -> None:
        for _ in range(30):
            try:
                found = torch.autograd.grad(training_loss(net(batch(seed))), parameters)
            except Exception as error:
                errors.append(error)
            else:
                errors.extend(1 for a, b in zip(found, expected[seed], strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_backward_in_another_thread() -> None:
    def loop(net: nn.Module) -> None:
        loss = training_loss(net(batch()))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    assert_three_equal(loop)


def test_a_solved_plan_trains_as_eager_does() -> None:
    net = solved(layers(), (batch(rows=4096),), "70%")
    assert net.result.peak_bytes <= net.result.budget_bytes < net.result.store_all_peak_bytes
    expected = run_and_record(layers(), (batch(rows=4096),))
    assert differences(run_and_record(net, (batch(rows=4096),)), expected) == []


@PLANS
def test_inside_the_users_checkpoint(plan: Plans) -> None:
    records = []
    for planned in (False, True):
        model, x = layers(), batch().requires_grad_()
        net = plan(model, (x,)) if planned else model
        torch.manual_seed(4)
        training_loss(checkpoint(net, x, use_reentrant=False) if planned else net(x)).backward()
        records.append({"input": x.grad} | gradients_of(net))
    assert differences(*records) == []


@PLANS
def test_functional_call_replaces_the_parameters(plan: Plans) -> None:
    """`torch.func.functional_call` replaces them for one call."""
    model = layers()
    net = plan(model, (batch(),))
    replacements = {name: (2 * p).detach().requires_grad_() for name, p in net.named_parameters()}
    torch.manual_seed(4)
    ours = torch.autograd.grad(
        training_loss(torch.func.functional_call(net, replacements, (batch(),))), list(replacements.values())
    )
    expected = layers()
    expected.load_state_dict(dict(replacements), strict=False)
    torch.manual_seed(4)
    training_loss(expected(batch())).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, expected.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
