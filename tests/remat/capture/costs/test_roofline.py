"""Roofline estimates compared with closed forms: max(arithmetic, traffic) + launch, at the device's rates."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import remat
from remat.capture.costs.roofline import HARDWARE, Hardware, hardware_name
from remat_solvers.errors import InputError
from remat_solvers.formats import load_problem
from remat_solvers.problem import Problem
from tests.remat.models.building import WIDTH, Lambda, mlp, rows

COUNTING = Hardware("counting", bytes_per_s=1e30, flops_per_s=1e9, launch_ns=0)  # one ns per FLOP
MOVING = Hardware("moving", bytes_per_s=1e9, flops_per_s=1e30, launch_ns=0)  # one ns per byte


def estimated(model: nn.Module, *args: Any, costs: str | Hardware) -> Problem:
    return remat.export(model, args, costs=costs).problem


def times(problem: Problem, target: str) -> list[int]:
    return [op.time_ns for op in problem.ops if op.target == target]


def test_flops_of_matrix_products() -> None:
    """A linear layer of n rows, in and out features: 2 * n * in * out, and as much for each gradient."""
    n, i, o = 7, 16, 24
    problem = estimated(nn.Linear(i, o), torch.randn(n, i).requires_grad_(), costs=COUNTING)
    assert times(problem, "aten.addmm.default") == [2 * n * i * o]
    assert times(problem, "aten.mm.default") == [2 * n * i * o] * 2


def test_flops_of_a_convolution() -> None:
    """2 * batch * out * in/groups * kernel area * output area; the backward does it once per gradient."""
    model = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    problem = estimated(model, torch.randn(2, 4, 8, 8).requires_grad_(), costs=COUNTING)
    forward = 2 * 2 * 6 * (4 // 2) * 9 * (4 * 4)
    assert times(problem, "aten.convolution.default") == [forward]
    (backward,) = times(problem, "aten.convolution_backward.default")
    assert backward == 2 * forward


def test_flops_of_attention() -> None:
    """Two products of length x length x width per head; the backward computes five."""
    batch, heads, length, width = 2, 3, 8, 16

    def forward(self: Any, q: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.scale * q, q, q)

    model = Lambda(forward, scale=nn.Parameter(torch.ones(())))
    problem = estimated(model, torch.randn(batch, heads, length, width).requires_grad_(), costs=COUNTING)
    product = 2 * batch * heads * length * length * width
    (forward_ns,) = [op.time_ns for op in problem.ops if "scaled_dot_product" in op.target and op.phase == "forward"]
    (backward_ns,) = [op.time_ns for op in problem.ops if "scaled_dot_product" in op.target and op.phase == "backward"]
    assert (forward_ns, backward_ns) == (2 * product, 5 * product)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_flops_of_a_recurrent_layer(kind: type[nn.RNNBase], gates: int) -> None:
    steps, batch, i, h = 5, 2, 8, 16
    problem = estimated(kind(i, h, bias=False), torch.randn(steps, batch, i), costs=COUNTING)
    products = 2 * steps * batch * gates * h * (i + h)
    assert times(problem, "remat.rnn_forward.default") == [products]
    assert times(problem, "remat.rnn_backward.default") == [2 * products]


def test_bytes_moved() -> None:
    """Every input is read once and every output written once; a broadcast input is read at its own size."""
    n = 64
    problem = estimated(
        Lambda(lambda self, x: x * self.w, w=nn.Parameter(torch.ones(n))), torch.randn(n, n), costs=MOVING
    )
    assert times(problem, "aten.mul.Tensor")[0] == 4 * (n * n + n + n * n)


def test_the_larger_of_both_and_a_launch() -> None:
    hardware = Hardware("own", bytes_per_s=2e9, flops_per_s=1e9, matmul_flops_per_s={torch.bfloat16: 4e9}, launch_ns=11)
    n = 32
    for dtype, rate in ((torch.float32, 1), (torch.bfloat16, 4)):
        problem = estimated(nn.Linear(n, n, bias=False, dtype=dtype), torch.randn(n, n, dtype=dtype), costs=hardware)
        moved = 3 * n * n * dtype.itemsize // 2
        assert times(problem, "aten.mm.default")[0] == max(2 * n**3 // rate, moved) + 11
    assert problem.costs is not None
    assert (problem.costs.source, problem.costs.device) == ("roofline:own", "own")


@pytest.mark.parametrize("name", HARDWARE)
def test_named_devices(name: str) -> None:
    """Matrix products at the data sheet's rate, large enough that they are bound by arithmetic."""
    n = 4096
    model, x = nn.Linear(n, n, bias=False, device="meta"), torch.empty(n, n, device="meta")
    problem = estimated(model, x, costs=f"roofline:{name}")
    hardware = HARDWARE[name]
    rate = hardware.matmul_flops_per_s.get(torch.float32, hardware.flops_per_s)
    assert times(problem, "aten.mm.default")[0] == pytest.approx(2 * n**3 / rate * 1e9 + hardware.launch_ns, abs=1)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_gpu_is_found_by_its_whole_name(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: model)
    if not name:
        with pytest.raises(InputError, match="no roofline is known for nvidial40s"):
            hardware_name(torch.device("cuda"))
    else:
        assert hardware_name(torch.device("cuda")) == name


def test_rates_of_the_data_sheet() -> None:
    """NVIDIA H100 SXM: 3.35 TB/s, 989 dense TFLOP/s in bf16."""
    n = 4096
    model = nn.Linear(n, n, bias=False, device="meta", dtype=torch.bfloat16)
    problem = estimated(model, torch.empty(n, n, device="meta", dtype=torch.bfloat16), costs="roofline:h100")
    assert times(problem, "aten.mm.default")[0] / 1e9 == pytest.approx(2 * n**3 / 989e12, rel=0.02)


def test_costs_record_that_workspace_is_unknown(tmp_path: Path) -> None:
    exported = remat.export(mlp(), (rows(),), costs="roofline:h100")
    costs = exported.problem.costs
    assert costs is not None
    assert (costs.source, costs.device, costs.threads, costs.torch, costs.workspace, costs.spread_ns) == (
        "roofline:h100",
        "h100",
        0,
        torch.__version__,
        False,
        (),
    )
    assert all(op.workspace_bytes == 0 for op in exported.problem.ops)
    exported.save(tmp_path / "problem.json")
    assert load_problem(tmp_path / "problem.json").costs == costs


def test_without_a_name_the_present_device_is_used() -> None:
    costs = estimated(mlp(), rows(), costs="roofline").costs
    assert costs is not None
    assert costs.source == "roofline:cpu"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(remat.InputError) as caught:
        estimated(mlp(), rows(), costs="roofline:abacus")
    assert "abacus" in str(caught.value)
    assert all(name in str(caught.value) for name in ("cpu", "a100", "h100", "rtx4090"))


@pytest.mark.parametrize("costs", ["measured", "", "rooflin", None, 3])
def test_other_costs_are_refused(costs: Any) -> None:
    with pytest.raises(remat.InputError, match="'measure', 'roofline', 'roofline:NAME'"):
        estimated(mlp(), rows(), costs=costs)


def test_times_are_positive_for_every_op() -> None:
    problem = estimated(nn.Sequential(mlp(), nn.LayerNorm(WIDTH)), rows(), costs="roofline")
    assert all(op.time_ns > 0 for op in problem.ops if op.target != "tangents")


@pytest.mark.parametrize("costs", ["measure", "roofline"])
def test_another_process_reads_a_problem_without_torch(costs: str) -> None:
    """A solver's process unpickles the problem; a value of a torch type in it would import torch, which takes 1 s."""
    modules: set[str] = set()

    class Watching(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            modules.add(module.partition(".")[0])
            return super().find_class(module, name)

    problem = remat.export(mlp(), (rows(),), costs=costs).problem
    assert Watching(io.BytesIO(pickle.dumps(problem))).load() == problem
    assert modules <= {"remat_solvers", "builtins"}
