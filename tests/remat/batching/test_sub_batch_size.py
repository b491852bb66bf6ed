"""solve_in_parts chooses the fastest number of rows at a time; gradients are equal, and the peak is in the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import remat
from remat.allocator import peak_while
from remat.execute.module import RematModule
from remat_solvers.errors import InfeasibleError, InputError

ROWS, WIDTH = 512, 64


class Deep(nn.Module):
    """A model with loss whose memory is mostly activations."""

    def __init__(self, *more: nn.Module) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(8)]
        self.layers = nn.Sequential(*layers, *more, nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.layers(x) - y).square().mean()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator).double(), torch.randn(ROWS, 1, generator=generator).double()


def deep_model(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Deep(*more).double()


def in_parts(model: nn.Module, budget: int | str, solver: str = "store-all", **options: Any) -> Any:
    return remat.solve_in_parts(model, budget, batch(), solver=solver, costs="roofline:a100", **options)


def real_peak(net: nn.Module) -> int:
    """Return the bytes of a step: parameters, the batch, and the peak of the allocator beside them."""
    args = batch()
    constants = sum(t.numel() * t.element_size() for t in (*net.parameters(), *args))
    net.zero_grad()
    for _ in range(2):  # the first call of a last part of fewer rows plans it
        net.zero_grad()
        peak = peak_while(lambda: net(*args).backward(), torch.device("cpu"))
    return peak + constants


@pytest.mark.parametrize("share", [0.7, 0.5, 0.4])
def test_the_largest_part_that_fits(share: float) -> None:
    """Every row costs the same and kernels are slower with few rows, so the first halving that fits is chosen."""
    model = deep_model()
    whole = real_peak(remat.solve(model, "100%", batch(), solver="store-all", costs="roofline:a100"))
    net = in_parts(model, int(share * whole))
    assert isinstance(net, remat.SubBatches)
    assert real_peak(net) <= share * whole
    twice = remat.solve(model, 10**12, [t[: 2 * net.rows] for t in batch()], solver="store-all", costs="roofline:a100")
    larger = twice if 2 * net.rows == ROWS else remat.SubBatches(twice, 2 * net.rows)
    assert real_peak(larger) > share * whole


@pytest.mark.parametrize("solver", ["store-all", "belady"])
def test_gradients_are_those_of_the_whole_batch(solver: str) -> None:
    model = deep_model()
    net = in_parts(model, "45%", solver)
    found = torch.autograd.grad(net(*batch()), list(model.parameters()))
    expected = torch.autograd.grad(model(*batch()), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_batch_that_fits_runs_as_a_whole() -> None:
    assert isinstance(in_parts(deep_model(), "100%"), RematModule)


def test_a_batch_norm_is_planned_as_a_whole_or_refused() -> None:
    model = deep_model(nn.BatchNorm1d(WIDTH))
    assert isinstance(in_parts(model, "80%", "belady"), RematModule)
    with pytest.raises(InputError, match=r"BatchNorm1d 'layers\.8' takes its statistics from the batch"):
        in_parts(model, "50%")
    assert isinstance(in_parts(model.eval(), "50%"), remat.SubBatches)


def test_no_single_row_fits() -> None:
    with pytest.raises(InfeasibleError, match="no plan within"):
        in_parts(deep_model(), "5%")


def test_the_reserve_counts() -> None:
    model = deep_model()
    plain = in_parts(model, "60%")
    whole = real_peak(remat.solve(model, "100%", batch(), solver="store-all", costs="roofline:a100"))
    reserved = in_parts(model, int(0.6 * whole), reserve_bytes=int(0.15 * whole))
    assert isinstance(plain, remat.SubBatches)
    assert isinstance(reserved, remat.SubBatches)
    assert reserved.rows < plain.rows
    assert real_peak(reserved) <= 0.45 * whole
