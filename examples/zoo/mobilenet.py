"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen: Inverted residuals and linear bottlenecks, 2018).

Wide depthwise convolutions between narrow linear ones give many large, cheap activations. With `drop_path` > 0,
residual branches are dropped per sample, more often with depth (Huang et al.: Deep networks with stochastic
depth, 2016). The model returns logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEM, LAST = 32, 1280
STAGES = (
    # expansion, channels, blocks, stride: the paper's table 2
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class DropPath(nn.Module):
    """In training, set whole samples to zero with this probability, and scale the others to keep the mean."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [conv_norm(inputs, hidden), nn.ReLU6(inplace=True)]
        self.branch = nn.Sequential(
            *expand,
            conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            conv_norm(hidden, outputs),
        )
        self.drop_path = DropPath(drop_path)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + self.drop_path(y) if self.residual else y


class MobileNet(nn.Module):
    """Images (batch, 3, size, size) to logits (batch, classes)."""

    def __init__(self, *, classes: int, drop_path: float, dropout: float) -> None:
        super().__init__()
        blocks = [
            (expansion, channels, stride if position == 0 else 1)
            for expansion, channels, depth, stride in STAGES
            for position in range(depth)
        ]
        inputs = [STEM, *(channels for _, channels, _ in blocks[:-1])]
        rates = torch.linspace(0.0, drop_path, len(blocks)).tolist()
        self.features = nn.Sequential(
            conv_norm(3, STEM, 3, stride=2),
            nn.ReLU6(inplace=True),
            *(
                InvertedResidual(width, channels, stride, expansion, rate)
                for width, (expansion, channels, stride), rate in zip(inputs, blocks, rates, strict=True)
            ),
            conv_norm(blocks[-1][1], LAST),
            nn.ReLU6(inplace=True),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(LAST, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def mobilenet(
    *,
    batch: int = 2,
    size: int = 64,
    classes: int = 1000,
    drop_path: float = 0.0,
    dropout: float = 0.2,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = MobileNet(classes=classes, drop_path=drop_path, dropout=dropout)
        return model, (torch.randn(batch, 3, size, size),)
