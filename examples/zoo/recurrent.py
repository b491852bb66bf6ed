"""Two recurrent language models: a fused nn.LSTM (Zaremba, Sutskever, Vinyals: RNN regularization, 2014) and a
GRU cell unrolled in Python (Cho et al.: Learning phrase representations using RNN encoder-decoder, 2014).

The first has a few large ops. The second is a long chain of small ones, for which the theory of recomputation is
oldest. Both return the loss: the mean cross entropy of the next token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class LSTMLanguageModel(nn.Module):
    """Tokens (batch, steps + 1) to a scalar loss."""

    def __init__(self, *, vocabulary: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(tokens[:, :-1]))
        return cross_entropy(self.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())


class GRUCellLanguageModel(nn.Module):
    """Tokens (batch, steps + 1) to a scalar loss, one step of the cell at a time."""

    def __init__(self, *, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = self.embedding(tokens[:, :-1]).unbind(1)
        state, states = torch.zeros_like(inputs[0]), []
        for step in inputs:
            state = self.cell(step, state)
            states.append(state)
        return cross_entropy(self.head(torch.stack(states, 1)).flatten(0, 1), tokens[:, 1:].flatten())


def lstm(
    *,
    batch: int = 4,
    steps: int = 50,
    vocabulary: int = 1000,
    width: int = 128,
    layers: int = 2,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LSTMLanguageModel(vocabulary=vocabulary, width=width, layers=layers, dropout=dropout)
        return model, (torch.randint(vocabulary, (batch, steps + 1)),)


def gru_cell(
    *, batch: int = 4, steps: int = 200, vocabulary: int = 1000, width: int = 128, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GRUCellLanguageModel(vocabulary=vocabulary, width=width)
        return model, (torch.randint(vocabulary, (batch, steps + 1)),)
