"""Finds the curve of time against peak of a small model, and runs a step at one of its points.

Run it with `python examples/04_sweep.py`. It takes a few seconds on a CPU. The same on the command line:

    remat sweep train.py:make_model -o plans/
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import remat
import remat_solvers


class Classifier(nn.Module):
    """Eight residual layers; the forward returns the loss."""

    def __init__(self, width: int = 256, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return nn.functional.cross_entropy(self.head(x), labels)


def main() -> None:
    """Find the curve, choose a point of it, and run a step there."""
    torch.manual_seed(0)
    x, labels = torch.randn(2048, 256), torch.randint(10, (2048,))
    exported = remat.export(Classifier(), (x, labels))

    # The curve goes from the smallest peak that is found to the unmodified step; each point is the fastest plan known.
    curve = remat_solvers.sweep(exported.problem, points=6, limits=remat.Limits(seconds=5))
    floor = f"{curve.peak_bound_bytes / 2**20:.1f} MiB"
    print(f"store-all needs {curve.store_all_peak_bytes / 2**20:.1f} MiB; proven: no plan is below {floor}")
    for point in curve.points:
        gap = "unknown" if point.gap is None else f"{point.gap:.2%}"
        print(f"{point.budget_bytes / 2**20:6.1f} MiB  {point.overhead:+7.2%} time  gap {gap}")

    # The tightest point that costs at most a tenth of the step; budgets ascend, and times never rise with them.
    chosen = next(p for p in curve.points if p.overhead is not None and p.overhead <= 0.1)
    net = remat.apply(exported, chosen.plan)  # trains as in 01_quickstart.py
    print(remat.verify(exported.model, net.plan, args=(x, labels)))


if __name__ == "__main__":
    main()
