"""A text classifier on nn.TransformerEncoder (Vaswani et al.: Attention is all you need, 2017), with padding.

Dropout is torch's default of 0.1 after every attention and feed-forward layer. The model returns logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PADDING = 0


class Classifier(nn.Module):
    """Tokens (batch, length), right-padded with PADDING, to logits (batch, classes)."""

    def __init__(self, *, vocabulary: int, length: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        padded = tokens == PADDING
        hidden = self.encoder(self.embedding(tokens) + self.position, src_key_padding_mask=padded)
        kept = (~padded).unsqueeze(-1)
        return self.head((hidden * kept).sum(1) / kept.sum(1))


def encoder(
    *,
    batch: int = 4,
    length: int = 64,
    vocabulary: int = 1000,
    width: int = 128,
    heads: int = 4,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Classifier(
            vocabulary=vocabulary, length=length, width=width, heads=heads, layers=layers, classes=classes
        )
        tokens = torch.randint(1, vocabulary, (batch, length))
        lengths = torch.randint(length // 2, length + 1, (batch, 1))
        return model, (tokens.masked_fill(torch.arange(length) >= lengths, PADDING),)
