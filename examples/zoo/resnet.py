"""ResNet-18 and ResNet-50 (He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2016).

Each stage halves the image and doubles the width; every block adds its branch to its input, so
the shortcut keeps an activation alive across the block. The 3x3 convolution has the stride. The model returns logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the image size (up to the stride), and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Computes relu(branch(x) + shortcut(x)), where addition and ReLU are in place."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += self.shortcut(x)
        return torch.relu_(y)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Identity() if (inputs, stride) == (outputs, 1) else conv_norm(inputs, outputs, 1, stride)


def basic(inputs: int, width: int, stride: int) -> Residual:
    """Return a block of two 3x3 convolutions."""
    branch = nn.Sequential(
        conv_norm(inputs, width, 3, stride),
        nn.ReLU(inplace=True),
        conv_norm(width, width, 3),
    )
    return Residual(branch, shortcut(inputs, width, stride))


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """Return a block of three convolutions: 1x1 down, 3x3, and 1x1 up to four times the width."""
    branch = nn.Sequential(
        conv_norm(inputs, width, 1),
        nn.ReLU(inplace=True),
        conv_norm(width, width, 3, stride),
        nn.ReLU(inplace=True),
        conv_norm(width, 4 * width, 1),
    )
    return Residual(branch, shortcut(inputs, 4 * width, stride))


class ResNet(nn.Module):
    """Images (batch, 3, size, size) to logits (batch, classes)."""

    def __init__(self, depths: tuple[int, ...], *, deep: bool, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(3, width, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        block, growth = (bottleneck, 4) if deep else (basic, 1)
        stages, channels = [], width
        for stage, depth in enumerate(depths):
            stage_width = width * 2**stage
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, stage_width, stride=2 if stage > 0 and position == 0 else 1))
                channels = growth * stage_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


def resnet18(
    *, batch: int = 2, size: int = 64, width: int = 64, classes: int = 1000, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = ResNet((2, 2, 2, 2), deep=False, width=width, classes=classes)
        return model, (torch.randn(batch, 3, size, size),)


def resnet50(
    *, batch: int = 2, size: int = 64, width: int = 64, classes: int = 1000, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = ResNet((3, 4, 6, 3), deep=True, width=width, classes=classes)
        return model, (torch.randn(batch, 3, size, size),)
