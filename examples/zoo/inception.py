"""Inception, the GoogLeNet of Szegedy et al. (Going deeper with convolutions, 2015), with batch norm, no side heads.

Every module runs four branches on one input and concatenates them; a cut between modules is narrow, a cut
inside one is not. The model returns logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = (
    # per module: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection (the paper's table 1). Pooling between stages.
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def downsample() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)


class Inception(nn.Module):
    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, project: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            (
                conv(inputs, one, 1),
                nn.Sequential(conv(inputs, reduce3, 1), conv(reduce3, three, 3)),
                nn.Sequential(conv(inputs, reduce5, 1), conv(reduce5, five, 5)),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(inputs, project, 1)),
            )
        )
        self.channels = one + three + five + project

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Images (batch, 3, size, size) to logits (batch, classes)."""

    def __init__(self, *, classes: int, dropout: float) -> None:
        super().__init__()
        channels = 192
        layers: list[nn.Module] = [conv(3, 64, 7, stride=2), downsample(), conv(64, 64, 1), conv(64, channels, 3)]
        for stage in STAGES:
            layers.append(downsample())
            for widths in stage:
                module = Inception(channels, *widths)
                layers.append(module)
                channels = module.channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def inception(
    *, batch: int = 2, size: int = 64, classes: int = 1000, dropout: float = 0.4, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GoogLeNet(classes=classes, dropout=dropout), (torch.randn(batch, 3, size, size),)
