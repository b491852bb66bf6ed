"""Train from disk: values are offloaded while the step computes, and fetched before they are read.

Run it with `python examples/03_offload.py`. On a CPU the "device" is what torch's allocator holds, and a tier is other
memory (`remat.HostTier`) or a file (`remat.DiskTier`). On a GPU values go to pinned host memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import remat


class Classifier(nn.Module):
    """Eight layers; the forward returns the loss."""

    def __init__(self, width: int = 256, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(layers)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.layers(x)), labels)


def main() -> None:
    """Plan over the measured link to a scratch folder, train, and compare one step with the original."""
    torch.manual_seed(0)
    model = Classifier()
    x, labels = torch.randn(4096, 256), torch.randint(10, (4096,))
    with tempfile.TemporaryDirectory() as folder:
        tier = remat.DiskTier(Path(folder))

        # swap-only recomputes nothing; the methods that do both are `checkmate`, `capuchin`, `superneurons` and `pofo`.
        net = remat.solve(model, "60%", args=(x, labels), solver="swap-only", link="auto", tier=tier)
        print(net.report())

        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(3):
            loss = net(x, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {step}: loss {loss.item():.4f}")
        print(remat.verify(model, net.plan, args=(x, labels), tier=tier))


if __name__ == "__main__":
    main()
