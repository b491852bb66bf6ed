"""The models that everything in `remat` is tried on: one table, `CASES`.

First the zoo (`examples/zoo`), then small models that hold one feature each. To add a case, write a factory that
returns (model, args) or (model, args, kwargs) and add one line to the table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from examples.zoo import densenet, encoder, huggingface, inception, mobilenet, recurrent, resnet, unet

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""model, args, kwargs"""

BATCH, WIDTH, HIDDEN = 4, 16, 32


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[[], tuple[Any, ...]]
    autocast: bool = False
    """Run the forward inside torch.autocast("cpu", torch.bfloat16)."""
    eager_bit_equal: bool = True
    """The captured graph, run as it was captured, gives eager's gradients bit for bit."""
    why_not: str = ""
    """If it does not: the cause, in a sentence."""

    def make(self) -> Made:
        """The same model and inputs at every call; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            made = self.factory()
        model, args, kwargs = made if len(made) == 3 else (*made, {})
        return model, args, kwargs

    def precision(self) -> AbstractContextManager[Any]:
        """The context to run the forward in."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()


def tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor in a model's output, in order, also inside a dataclass that pytree does not know."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name))


def loss_of(output: Any) -> Tensor:
    """A scalar that every differentiable output takes part in, each element with a weight of its own."""
    total = torch.zeros(())
    for position, tensor in enumerate(tensors(output)):
        if tensor.requires_grad:
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
            total = total + (weights * tensor).sum().float() / (1 + position)
    return total


def step(case: Case, made: Made, seed: int = 1) -> Any:
    """One forward and one backward with the global generator at `seed`; returns the output."""
    model, args, kwargs = made
    torch.manual_seed(seed)
    with case.precision():
        output = model(*args, **kwargs)
    loss_of(output).backward()
    return output


def rows() -> Tensor:
    return torch.randn(BATCH, WIDTH)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), *between, nn.Linear(HIDDEN, WIDTH))


class Lambda(nn.Module):
    """A module from a forward function and named parts, so that a feature is read on one screen."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


# Weights and state


class TiedLanguageModel(nn.Module):
    """The head's weight is the embedding's: one parameter, two names, one summed gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.body = mlp()
        self.head = nn.Linear(WIDTH, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)))


def tied_weights() -> tuple[Any, ...]:
    return TiedLanguageModel(), (torch.randint(50, (BATCH, 6)),)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(x)))


def parameter_used_twice() -> tuple[Any, ...]:
    return UsedTwice(), (rows(),)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.spare = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def unused_parameter() -> tuple[Any, ...]:
    return Unused(), (rows(),)


def frozen_parameters() -> tuple[Any, ...]:
    model = nn.Sequential(mlp(), mlp(), mlp())
    model[0].requires_grad_(False)
    model[1][0].weight.requires_grad_(False)
    return model, (rows(),)


class Adapted(nn.Module):
    """A frozen linear layer and a trained low-rank update (Hu et al.: LoRA, 2022)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(0.1 * torch.randn(base.out_features, rank))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + functional.linear(functional.linear(self.dropout(x), self.down), self.up)


def lora() -> tuple[Any, ...]:
    layers = [layer for _ in range(3) for layer in (Adapted(nn.Linear(WIDTH, WIDTH)), nn.ReLU())]
    return nn.Sequential(*layers), (rows(),)


class GradientLayouts(nn.Module):
    """Gradients that are expanded, transposed, shared by two parameters, or a slice of something larger."""

    def __init__(self) -> None:
        super().__init__()
        self.expanded = nn.Parameter(torch.randn(BATCH, WIDTH))
        self.transposed = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.left, self.right = nn.Parameter(torch.randn(BATCH, WIDTH)), nn.Parameter(torch.randn(BATCH, WIDTH))
        self.head, self.tail = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat((self.head, self.tail))
        y = torch.tanh(x @ self.transposed.t() + rows)
        return (y * (self.left + self.right)).sum() + self.expanded.sum()


def gradient_layouts() -> tuple[Any, ...]:
    return GradientLayouts(), (rows(),)


def batch_norm() -> tuple[Any, ...]:
    """Train mode: running_mean, running_var and num_batches_tracked each move once a step."""
    convolutions = [layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    return nn.Sequential(*convolutions), (torch.randn(BATCH, 3, 8, 8),)


def batch_norm_frozen_statistics() -> tuple[Any, ...]:
    """One batch norm in eval mode inside a model in train mode, as in fine-tuning."""
    model, args = batch_norm()
    model[1].eval()
    return model, args


class MovingAverage(nn.Module):
    """Centres its input on an exponential moving average that forward itself updates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        self.mean.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return torch.sigmoid(y - self.mean)


def moving_average_buffer() -> tuple[Any, ...]:
    return MovingAverage(), (rows(),)


class ReplacedBuffer(nn.Module):
    """Assigns a new tensor to its buffer instead of changing the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.body(x)


def replaced_buffer() -> tuple[Any, ...]:
    return ReplacedBuffer(), (rows(),)


# Randomness


def dropout() -> tuple[Any, ...]:
    return nn.Sequential(mlp(nn.Dropout(0.2)), nn.Dropout(0.5), mlp(nn.Dropout(0.1))), (rows(),)


class DropPathStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp() for _ in range(3))
        self.drop = mobilenet.DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.drop(block(x))
        return x


def drop_path() -> tuple[Any, ...]:
    return DropPathStack(), (rows(),)


class Noise(nn.Module):
    """Gaussian noise made by a factory function, which has no tensor input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * (1 + 0.1 * torch.randn(h.shape)) + 0.1 * torch.randn_like(h))


def noise() -> tuple[Any, ...]:
    return Noise(), (rows(),)


class Attention(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.leave = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = self.enter(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.2, is_causal=True)
        return self.leave(y.transpose(1, 2).reshape(batch, length, width))


def attention_dropout() -> tuple[Any, ...]:
    return nn.Sequential(Attention(), nn.GELU(), Attention()), (torch.randn(BATCH, 6, WIDTH),)


def checkpointed() -> tuple[Any, ...]:
    """The user has checkpointed by hand already, with dropout inside."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x

    return Lambda(forward, blocks=nn.ModuleList(mlp(nn.Dropout(0.2)) for _ in range(3))), (rows(),)


# In place, views, aliases


def in_place() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x).relu_()
        y = self.second(h)
        y.add_(x)
        y[:, 0] = 0.0
        y.mul_(0.5)
        return self.third(y)

    parts = {"first": nn.Linear(WIDTH, HIDDEN), "second": nn.Linear(HIDDEN, WIDTH), "third": nn.Linear(WIDTH, WIDTH)}
    return Lambda(forward, **parts), (rows(),)


def input_changed_in_place() -> tuple[Any, ...]:
    """The caller's tensor is different after forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.body(x.clone())
        x.add_(1.0)
        return y * 2.0

    return Lambda(forward, body=mlp()), (rows(),)


def view_of_intermediate() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).view(2, -1, WIDTH).transpose(1, 2)

    return Lambda(forward, body=mlp()), (rows(),)


def aliasing_outputs() -> tuple[Any, ...]:
    """Two outputs on the storage of one intermediate, which is not an output itself."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.body(x))
        return y[:, : WIDTH // 2], y.t()

    return Lambda(forward, body=mlp()), (rows(),)


def output_and_its_view() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.body(x))
        return y, y.view(-1)

    return Lambda(forward, body=mlp()), (rows(),)


def input_returned() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.body(x)

    return Lambda(forward, body=mlp()), (rows(),)


def view_of_input_returned() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x.t()

    return Lambda(forward, body=mlp()), (rows(),)


def output_returned_twice() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y, y

    return Lambda(forward, body=mlp()), (rows(),)


def parameter_returned() -> tuple[Any, ...]:
    """A parameter as an output, as a regulariser outside the model would want it."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.linear.weight

    return Lambda(forward, linear=nn.Linear(WIDTH, WIDTH)), (rows(),)


# What goes in


def keyword_inputs() -> tuple[Any, ...]:
    def forward(
        self: Any, x: Tensor, *, scale: Tensor, mask: Tensor | None = None, shift: float = 0.0, extra: dict[str, Tensor]
    ) -> Tensor:
        y = self.body(x * scale) + shift + extra["bias"]
        return y if mask is None else y.masked_fill(mask, 0.0)

    kwargs = {"scale": rows(), "mask": rows() > 1.0, "shift": 0.5, "extra": {"bias": torch.randn(WIDTH)}}
    return Lambda(forward, body=mlp()), (rows(),), kwargs


def leaf_input_with_gradient() -> tuple[Any, ...]:
    return mlp(), (rows().requires_grad_(),)


def non_leaf_input_with_gradient() -> tuple[Any, ...]:
    """The input has a history: its gradient flows on to whatever made it."""
    x = rows().requires_grad_() * 2.0
    x.retain_grad()
    return mlp(), (x,)


def one_input_twice() -> tuple[Any, ...]:
    """One tensor in two argument places, with one summed gradient."""

    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x * 2.0) + y

    x = rows().requires_grad_()
    return Lambda(forward, body=mlp()), (x, x)


def non_contiguous_input() -> tuple[Any, ...]:
    return mlp(), (torch.randn(WIDTH, BATCH).t(),)


def integer_inputs() -> tuple[Any, ...]:
    def forward(self: Any, tokens: Tensor, offset: Tensor) -> Tensor:
        return self.body(self.embedding((tokens + offset) % 50))

    model = Lambda(forward, embedding=nn.Embedding(50, WIDTH, padding_idx=0), body=mlp())
    return model, (torch.randint(50, (BATCH, 6)), torch.tensor(3))


# What comes out


def dict_output() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> dict[str, Any]:
        h = self.body(x)
        return {"logits": self.head(h), "states": [h, h.detach().mean()]}

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(),)


@dataclasses.dataclass
class Prediction:
    """Not registered with pytree, like most people's."""

    logits: Tensor
    hidden: Tensor
    note: str = "plain"


def dataclass_output() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Prediction:
        h = self.body(x)
        return Prediction(self.head(h), h)

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(),)


def tuple_with_none() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, None, Tensor]:
        y = self.body(x)
        return y, None, y.argmax(1)

    return Lambda(forward, body=mlp()), (rows(),)


def values_beside_tensors() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Any, ...]:
        return self.body(x), x.shape[0], "ready", 0.5, True

    return Lambda(forward, body=mlp()), (rows(),)


def two_heads() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.trunk(x))
        return self.classes(h), self.value(h).squeeze(1)

    parts = {"trunk": mlp(), "classes": nn.Linear(WIDTH, 5), "value": nn.Linear(WIDTH, 1)}
    return Lambda(forward, **parts), (rows(),)


def returns_logits() -> tuple[Any, ...]:
    return nn.Sequential(mlp(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)), (rows(),)


def returns_loss() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(self.body(x)), labels)

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(), torch.randint(5, (BATCH,)))


# How it is computed


class StraightThrough(torch.autograd.Function):
    """The sign forward, the gradient of hard tanh backward (Courbariaux et al.: Binarized neural networks, 2016)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1.0)


def custom_function() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(StraightThrough.apply(self.first(x)))

    return Lambda(forward, first=mlp(), second=mlp()), (rows(),)


def autocast_mlp() -> tuple[Any, ...]:
    return nn.Sequential(mlp(), nn.LayerNorm(WIDTH), mlp()), (rows(),)


def autocast_dropout() -> tuple[Any, ...]:
    return nn.Sequential(mlp(nn.Dropout(0.2)), nn.LayerNorm(WIDTH), mlp(nn.Dropout(0.2))), (rows(),)


def autocast_inside() -> tuple[Any, ...]:
    """The model enters autocast itself."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.first(x)
        return self.second(h.float())

    return Lambda(forward, first=mlp(), second=mlp()), (rows(),)


def recurrent_layer(kind: type[nn.RNNBase], **options: Any) -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Any]:
        outputs, state = self.recurrent(self.enter(x))
        return self.leave(outputs), state

    layer = kind(WIDTH, HIDDEN, batch_first=True, **options)
    width = HIDDEN * (2 if layer.bidirectional else 1)
    model = Lambda(forward, enter=nn.Linear(WIDTH, WIDTH), recurrent=layer, leave=nn.Linear(width, WIDTH))
    return model, (torch.randn(BATCH, 6, WIDTH),)


ZOO = (
    Case("resnet18", functools.partial(resnet.resnet18, size=32, width=32, classes=10)),
    Case("resnet50", functools.partial(resnet.resnet50, classes=10)),
    Case("densenet121", functools.partial(densenet.densenet121, classes=10)),
    Case("unet", functools.partial(unet.unet, size=32)),
    Case("mobilenet", functools.partial(mobilenet.mobilenet, classes=10)),
    Case("mobilenet-drop-path", functools.partial(mobilenet.mobilenet, classes=10, drop_path=0.2)),
    Case("inception", functools.partial(inception.inception, classes=10)),
    Case("lstm", functools.partial(recurrent.lstm, steps=20, width=64)),
    Case("gru-cell-100", functools.partial(recurrent.gru_cell, steps=100, width=32, vocabulary=100)),
    Case("transformer-encoder", functools.partial(encoder.encoder, length=32, width=64, layers=3)),
    Case("gpt2", functools.partial(huggingface.gpt2, length=32, width=64, layers=3)),
    Case("bert", functools.partial(huggingface.bert, length=32, width=64, layers=3)),
    Case("llama", functools.partial(huggingface.llama, length=32, width=64, layers=3)),
    Case("t5", functools.partial(huggingface.t5, length=32, width=64)),
    Case("vit", functools.partial(huggingface.vit, size=32, width=64, layers=3)),
)

FEATURES = (
    Case("tied-weights", tied_weights),
    Case("parameter-used-twice", parameter_used_twice),
    Case("unused-parameter", unused_parameter),
    Case("frozen-parameters", frozen_parameters),
    Case("lora", lora),
    Case("gradient-layouts", gradient_layouts),
    Case("batch-norm", batch_norm),
    Case("batch-norm-frozen-statistics", batch_norm_frozen_statistics),
    Case("moving-average-buffer", moving_average_buffer),
    Case("replaced-buffer", replaced_buffer),
    Case("dropout", dropout),
    Case("drop-path", drop_path),
    Case("noise", noise),
    Case("attention-dropout", attention_dropout),
    Case("checkpointed", checkpointed),
    Case("in-place", in_place),
    Case("input-changed-in-place", input_changed_in_place),
    Case("view-of-intermediate", view_of_intermediate),
    Case("aliasing-outputs", aliasing_outputs),
    Case("output-and-its-view", output_and_its_view),
    Case("input-returned", input_returned),
    Case("view-of-input-returned", view_of_input_returned),
    Case("output-returned-twice", output_returned_twice),
    Case("parameter-returned", parameter_returned),
    Case("keyword-inputs", keyword_inputs),
    Case("leaf-input-with-gradient", leaf_input_with_gradient),
    Case("non-leaf-input-with-gradient", non_leaf_input_with_gradient),
    Case("one-input-twice", one_input_twice),
    Case("non-contiguous-input", non_contiguous_input),
    Case("integer-inputs", integer_inputs),
    Case("dict-output", dict_output),
    Case("dataclass-output", dataclass_output),
    Case("tuple-with-none", tuple_with_none),
    Case("values-beside-tensors", values_beside_tensors),
    Case("two-heads", two_heads),
    Case("returns-logits", returns_logits),
    Case("returns-loss", returns_loss),
    Case("custom-function", custom_function),
    Case("autocast-bf16", autocast_mlp, autocast=True),
    Case("autocast-bf16-dropout", autocast_dropout, autocast=True),
    Case("autocast-inside", autocast_inside),
    Case("rnn", functools.partial(recurrent_layer, nn.RNN)),
    Case("gru", functools.partial(recurrent_layer, nn.GRU)),
    Case(
        "lstm-bidirectional-dropout",
        functools.partial(recurrent_layer, nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2),
    ),
    Case("gru-dropout", functools.partial(recurrent_layer, nn.GRU, num_layers=3, dropout=0.2)),
)

CASES = ZOO + FEATURES
