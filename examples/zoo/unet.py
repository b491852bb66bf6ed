"""U-Net with batch norm (Ronneberger, Fischer, Brox: Convolutional networks for biomedical image segmentation, 2015).

The largest maps are computed first and, through the skip concatenations, read last. The model returns the loss, the
mean cross entropy over pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Images (batch, 3, size, size) and labels (batch, size, size) to a scalar loss.

    The size is a multiple of 2 ** (levels - 1).
    """

    def __init__(self, *, levels: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(map(double_conv, [3, *widths[:-1]], widths))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[:-1])
        self.up = nn.ModuleList(double_conv(2 * w, w) for w in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x, skips = self.down[0](images), []
        for block in self.down[1:]:
            skips.append(x)
            x = block(max_pool2d(x, 2))
        for raise_, block, skip in zip(reversed(self.raise_), reversed(self.up), reversed(skips), strict=True):
            x = block(torch.cat((skip, raise_(x)), 1))
        return cross_entropy(self.head(x), labels)


def unet(
    *, batch: int = 2, size: int = 64, levels: int = 4, width: int = 16, classes: int = 4, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = UNet(levels=levels, width=width, classes=classes)
        return model, (torch.randn(batch, 3, size, size), torch.randint(classes, (batch, size, size)))
