"""DenseNet-121 (Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks, 2017).

Every layer reads the concatenation of all earlier maps of its block: if all are kept, the concatenations take
memory quadratic in the depth, and they cost almost nothing to recompute. The model returns logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPRESSION = 2
"""A transition keeps one channel out of this many (the paper's theta = 0.5)."""
BOTTLENECK = 4
"""The 1x1 convolution has this many times the growth as output channels (the paper's DenseNet-B)."""


def norm_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return a pre-activation convolution: batch norm, ReLU, convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    )


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                norm_conv(inputs + growth * position, BOTTLENECK * growth, 1),
                norm_conv(BOTTLENECK * growth, growth, 3),
            )
            for position in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class DenseNet(nn.Module):
    """Images (batch, 3, size, size) to logits (batch, classes)."""

    def __init__(self, depths: tuple[int, ...], *, growth: int, classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        body: list[nn.Module] = []
        for block, depth in enumerate(depths):
            if block > 0:
                body += [norm_conv(channels, channels // COMPRESSION, 1), nn.AvgPool2d(2)]
                channels //= COMPRESSION
            body.append(DenseBlock(channels, growth, depth))
            channels += growth * depth
        self.body = nn.Sequential(*body, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


def densenet121(
    *, batch: int = 2, size: int = 64, growth: int = 32, classes: int = 1000, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DenseNet((6, 12, 24, 16), growth=growth, classes=classes)
        return model, (torch.randn(batch, 3, size, size),)
