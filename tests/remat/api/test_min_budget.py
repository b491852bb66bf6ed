"""The floor of an exported model, with the names of the values that cause it; and the budget min in `remat.solve`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import remat
from remat_solvers.bounds import bottleneck, peak_bound_bytes
from remat_solvers.certificates.check import check_certificate

VOCABULARY = 500
TOKENS = 512


class Language(nn.Module):
    """A language model whose logits are by far its largest values: 512 tokens of 500 words, 1,000 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        self.lm_head = nn.Linear(32, VOCABULARY, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.lm_head(self.body(self.embedding(x))), y)


TOKEN_IDS = torch.randint(0, VOCABULARY, (TOKENS,))


def test_the_floor_of_a_language_model_is_its_logits() -> None:
    problem = remat.export(Language(), (TOKEN_IDS, TOKEN_IDS), costs="roofline").problem
    floor = bottleneck(problem)
    assert floor.bytes == peak_bound_bytes(problem)
    assert floor.moment.startswith("during _log_softmax_backward_data (test_min_budget.py:")
    assert floor.moment.endswith("after lm_head)")
    large = [item for item in floor.resident if item.bytes == TOKENS * VOCABULARY * 4]
    assert len(large) == 3
    assert any(
        item.description.startswith("output of _log_softmax") and "lm_head" in item.description for item in large
    )
    assert "1000.00 KiB" in str(floor)


def test_the_smallest_budget_of_a_model() -> None:
    net = remat.solve(
        Language(), "min", (TOKEN_IDS, TOKEN_IDS), costs="roofline", limits=remat.Limits(seconds=2), solver="auto"
    )
    result = net.result
    assert result is not None
    assert result.budget_bytes == result.peak_bytes == result.peak_bound_bytes
    assert "lm_head" in result.reason
    assert result.certificate is not None
    assert check_certificate(net.problem, result.certificate) is None
    net(TOKEN_IDS, TOKEN_IDS).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_budget_below_the_floor_names_the_logits() -> None:
    with pytest.raises(remat.InfeasibleError, match=r"_log_softmax_backward_data.*lm_head"):
        remat.solve(Language(), 1_000_000, (TOKEN_IDS, TOKEN_IDS), costs="roofline")
