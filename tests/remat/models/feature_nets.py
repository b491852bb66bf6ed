"""Small models that have one feature of a network each: weights, statistics, randomness, checkpoints, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from examples.zoo import mobilenet
from tests.remat.models.building import BATCH, HIDDEN, WIDTH, Lambda, mlp, rows


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
    """In training mode, running_mean, running_var and num_batches_tracked are each updated once a step."""
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
    """Gaussian noise from a factory function, which has no tensor input."""

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
    """The model itself uses checkpoints, with dropout inside."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x

    return Lambda(forward, blocks=nn.ModuleList(mlp(nn.Dropout(0.2)) for _ in range(3))), (rows(),)


# Autograd functions, autocast, recurrent layers


class StraightThrough(torch.autograd.Function):
    """The sign, with the gradient of hard tanh (Courbariaux et al.: Binarized neural networks, 2016)."""

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
