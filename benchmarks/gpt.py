"""GPT models, from which the large problems are exported, with fused or materialised attention."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
import remat
from remat.capture.costs.roofline import Hardware
from remat_solvers.problem import Problem

__all__ = ["step"]

HARDWARE = Hardware("100 TFLOP/s, 1.5 TB/s", 1.5e12, 100e12)


class Block(nn.Module):
    """A pre-norm block: attention and an MLP, each after a norm and with a residual connection."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).split(width, 2)
        query, key, value = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in qkv)
        if self.fused:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
            attended = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A language model that returns the loss of token ids and targets."""

    def __init__(self, layers: int, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(8192, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*(Block(width, heads, fused) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8192, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def step(layers: int, width: int, heads: int, batch: int, *, fused: bool) -> Problem:
    """Return the problem of one training step in bf16. The gigabytes of parameters are never written to."""
    with torch.device("meta"):
        model = GPT(layers, width, heads, fused).to(torch.bfloat16)
    ids = torch.zeros(batch, 1024, dtype=torch.long)
    return remat.export(model.to_empty(device="cpu").train(), (ids, ids), costs=HARDWARE).problem
