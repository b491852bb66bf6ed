"""Compares published methods on one model.

Run it with `python examples/02_compare.py`. For a model of your own, and all methods, use the command line:

    remat compare train.py:make_model --budget 60%
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import remat
import remat_solvers
from remat_solvers.comparing import compare

METHODS = ("store-all", "chen", "segments", "selective", "kusumoto", "rotor", "dtr", "belady", "capuchin")


class Classifier(nn.Module):
    """Three Transformer layers; the forward returns the loss."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.layers(x).mean(1)), labels)


def main() -> None:
    """Solve for one budget with nine methods."""
    torch.manual_seed(0)
    x, labels = torch.randn(8, 64, 64), torch.randint(10, (8,))
    problem = remat.export(Classifier(), (x, labels), costs="roofline:a100").problem
    comparison = compare(problem, "70%", solvers=METHODS, limits=remat.Limits(seconds=10))
    print(f"{len(problem.ops)} ops; budget 70 % of {comparison.store_all_peak_bytes} bytes")
    for row in comparison.rows:
        result = row.reason if row.overhead is None else f"{row.overhead:+.2%} time, {row.peak_bytes} bytes"
        print(f"{row.solver:10} {row.status:14} {result}")

    # One method alone, with options of its own. Every plan is replayed and validated before it is returned.
    from remat_solvers.recompute.chen import Chen

    result = remat_solvers.solve(problem, comparison.budget_bytes, solver=Chen(strategy="sqrt"))
    print(f"chen, sqrt form: {result.status}")


if __name__ == "__main__":
    main()
