"""Planned modules train common models as eager does: transformers, attention, parametrizations, unusual outputs."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

import remat
from tests.remat.modules import (
    CASE,
    PLANS,
    WIDTH,
    Plans,
    batch,
    differences,
    gradients_of,
    layers,
    loss_of,
    recomputing,
    state_of,
    storing_all,
    training_loss,
)


def assert_trains_as_eager(make: Any, plan: Plans, args: Any, steps: int = 2) -> Any:
    """Train two equal models, one of them planned; assert equal results, and return the planned module."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    net = plan(models[0], args)
    records = []
    for module in (net, models[1]):
        torch.manual_seed(1)
        for _ in range(steps):
            training_loss(module(*args)).backward()
        records.append(gradients_of(module) | state_of(module) | {"generator": torch.get_rng_state()})
    assert differences(*records) == []
    return net


# transformers


def gpt2(use_cache: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    model, _, kwargs = CASE["gpt2"].make()
    model.config.use_cache = use_cache
    return model, kwargs


@PLANS
def test_gpt2_with_its_cache(plan: Plans) -> None:
    """`use_cache=True` is the default; the cache is an object of its own class in a ModelOutput."""
    model, kwargs = gpt2()
    net = plan(model, (), kwargs)
    expected_model, _ = gpt2()
    torch.manual_seed(1)
    output = net(**kwargs)
    torch.manual_seed(1)
    expected = expected_model(**kwargs)
    assert type(output) is type(expected)
    assert list(output) == list(expected)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output["logits"], expected.logits)
    assert type(output.past_key_values) is type(expected.past_key_values)
    assert output.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 32
    for ours, theirs in zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    output.loss.backward()
    expected.loss.backward()
    assert differences(gradients_of(net), gradients_of(expected_model)) == []
    second = net(**kwargs)
    assert second.past_key_values is not output.past_key_values
    assert second.past_key_values.layers[0] is not output.past_key_values.layers[0]


def test_gpt2_generates_through_the_planned_module() -> None:
    model, kwargs = gpt2()
    net = storing_all(model, (), kwargs)
    net.eval()
    tokens = kwargs["input_ids"][:, :5]
    generated = net.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert generated.shape == (2, 8)
    assert torch.equal(generated, model.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=0))


def test_gpt2_as_a_tuple() -> None:
    model, kwargs = gpt2(use_cache=False)
    net = storing_all(model, (), kwargs | {"return_dict": False})
    torch.manual_seed(1)
    loss, logits = net(**kwargs, return_dict=False)
    loss.backward()
    torch.manual_seed(1)
    expected = model(**kwargs)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)


# torch's own modules


def attention(dropout: float = 0.0) -> nn.Module:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = self.attention(x, x, x)
            return y + x, weights

    return SelfAttention()


@PLANS
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_multi_head_attention(plan: Plans, dropout: float) -> None:
    assert_trains_as_eager(lambda: attention(dropout), plan, (batch().view(4, 16, WIDTH),))


@PLANS
def test_transformer_encoder_layer(plan: Plans) -> None:
    make = lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)  # noqa: E731
    assert_trains_as_eager(make, plan, (batch().view(4, 16, WIDTH),))


def reparametrized(norm: Any) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh(), norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh())


@PLANS
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrizations(plan: Plans, norm: Any) -> None:
    net = assert_trains_as_eager(lambda: reparametrized(norm), plan, (batch(),))
    assert is_parametrized(net[0])
    net.eval()  # in training mode, spectral_norm iterates whenever its weight is read
    with torch.no_grad():
        assert torch.equal(net[0].weight, net.original[0].weight)


@PLANS
def test_random_numbers_are_those_of_eager(plan: Plans) -> None:
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH), nn.Dropout1d(0.2), nn.RReLU(), nn.AlphaDropout(0.1), nn.Dropout(0.0)
    )
    assert_trains_as_eager(make, plan, (batch(),), steps=3)


@PLANS
@pytest.mark.parametrize("kind", [nn.Softplus, nn.SiLU, nn.Hardswish, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.GLU])
def test_activations(plan: Plans, kind: Any) -> None:
    assert_trains_as_eager(
        lambda: nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), kind(), nn.Flatten(), nn.Tanh()), plan, (batch(),)
    )


NORMS = {
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "instance, no statistics": lambda: nn.InstanceNorm2d(4),
    "batch": lambda: nn.BatchNorm2d(4, momentum=0.3),
    "batch, no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "local response": lambda: nn.LocalResponseNorm(2),
}


def images() -> tuple[Tensor]:
    return (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)


def with_norm(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@PLANS
@pytest.mark.parametrize("norm", NORMS)
def test_norms_over_images(plan: Plans, norm: str) -> None:
    assert_trains_as_eager(lambda: with_norm(NORMS[norm]()), plan, images())


def test_a_cumulative_average_is_refused() -> None:
    """`momentum=None` reads the number of batches as a Python number."""
    with pytest.raises(remat.ExportError, match="value of a tensor"):
        remat.export(with_norm(nn.BatchNorm2d(4, momentum=None)), images(), costs="roofline")


# Outputs

Pair = namedtuple("Pair", ["first", "second"])


class Named(NamedTuple):
    value: Tensor
    count: int


class Bag(dict[str, Any]):
    """A subclass of dict, which pytree does not know."""


OUTPUTS = {
    "namedtuple": lambda y: Pair(y, [y * 2]),
    "typed namedtuple": lambda y: Named(y, 3),
    "ordered": lambda y: OrderedDict([("b", y), ("a", y + 1)]),
    "nested": lambda y: {"x": [(y, None), {"deep": (y.detach(),)}], "text": "t"},
    "dict subclass": lambda y: Bag(out=y, n=1),
    "list": lambda y: [y, y.sum(), y.argmax(-1)],
    "empty parts": lambda y: (y, (), {}, []),
}


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = layers()

    def forward(self, x: Tensor) -> Any:
        return OUTPUTS[self.kind](self.body(x))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_keep_their_containers(kind: str) -> None:
    net, model = recomputing(Returns(kind), (batch(),)), Returns(kind)
    outputs = []
    for module in (net, model):
        torch.manual_seed(2)
        outputs.append(module(batch()))
    ours, theirs = outputs
    assert type(ours) is type(theirs)
    assert skeleton(ours) == skeleton(theirs)
    for output in outputs:
        loss_of(output).backward()
    assert differences(gradients_of(net), gradients_of(model)) == []
    assert net(batch()) is not ours


def skeleton(output: Any) -> Any:
    if isinstance(output, Tensor):
        return (tuple(output.shape), output.requires_grad, output.detach().tolist())
    if isinstance(output, dict):
        return (type(output), [(k, skeleton(v)) for k, v in output.items()])
    if isinstance(output, list | tuple):
        return (type(output), [skeleton(v) for v in output])
    return output
