"""Train within half the memory: the model, the loop and the gradients stay the same.

Run it with `python examples/01_quickstart.py`. It takes a few seconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import remat


class Classifier(nn.Module):
    """Twelve residual layers with dropout; the forward returns the loss."""

    def __init__(self, width: int = 256, layers: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return functional.cross_entropy(self.head(x), labels)


def main() -> None:
    """Plan, train, and compare one step with the original."""
    torch.manual_seed(0)
    model = Classifier()
    x, labels = torch.randn(2048, 256), torch.randint(10, (2048,))

    # The only new line. A budget is "50%", "8GiB", "800MB" or bytes, weights included.
    net = remat.solve(model, "50%", args=(x, labels))
    print(net.report())

    # The same parameters, the same loop.
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for step in range(5):
        loss = net(x, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")

    # Running the plan once beside the original shows that nothing but memory and time has changed.
    print(remat.verify(model, net.plan, args=(x, labels)))


if __name__ == "__main__":
    main()
