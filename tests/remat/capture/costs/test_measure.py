"""Measured costs: each distinct op is measured once, stored on disk, exact in workspace, and changes no state."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import remat
from remat.capture.costs import measure
from remat.capture.costs.cache import cache_path, read_rows
from remat.capture.costs.measure import signature_of
from remat_solvers.formats import load_problem
from remat_solvers.problem import Op, Problem
from tests.paths import child_environment
from tests.remat.models.building import WIDTH, Lambda, mlp, rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REMAT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "costs.sqlite"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of times that each signature was timed."""
    counted: Counter[str] = Counter()
    original = measure.measure_time

    def count(node: fx.Node, warm_bytes: int) -> tuple[int, int]:
        counted[signature_of(node)] += 1
        return original(node, warm_bytes)

    monkeypatch.setattr(measure, "measure_time", count)
    return counted


def measured(model: nn.Module, *args: Any) -> Problem:
    return remat.export(model, args).problem


def op_of(problem: Problem, target: str) -> Op:
    return next(op for op in problem.ops if op.target == target)


# One measurement per signature


def test_each_signature_is_timed_once(timed: Counter[str]) -> None:
    problem = measured(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4))), rows().requires_grad_())
    assert [op.target for op in problem.ops].count("aten.addmm.default") == 4
    assert set(timed.values()) == {1}
    assert len(timed) < len(problem.ops) - 1
    times = {op.time_ns for op in problem.ops if op.target == "aten.addmm.default"}
    assert len(times) == 1
    assert times.pop() > 0


def test_the_cache_serves_a_second_export(timed: Counter[str], cache: Path) -> None:
    model, x = mlp(), rows()
    first = measured(model, x)
    assert cache.exists()
    timed.clear()
    second = measured(model, x)
    assert not timed
    assert second == first
    assert second.costs == first.costs


def bfloat16(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model.bfloat16(), x.bfloat16()


def more_rows(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model, torch.cat((x, x))


def transposed(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model, x.t().contiguous().t()


@pytest.mark.parametrize("change", [bfloat16, more_rows, transposed])
def test_another_dtype_shape_or_stride_is_timed_again(change: Any, timed: Counter[str]) -> None:
    measured(mlp(), rows())
    timed.clear()
    measured(*change(mlp(), rows()))
    assert timed


def test_another_number_of_threads_is_timed_again(timed: Counter[str]) -> None:
    measured(mlp(), rows())
    count, threads = len(timed), torch.get_num_threads()
    timed.clear()
    try:
        torch.set_num_threads(threads + 1)
        problem = measured(mlp(), rows())
    finally:
        torch.set_num_threads(threads)
    assert len(timed) == count
    assert problem.costs is not None
    assert problem.costs.threads == threads + 1


def test_another_version_of_torch_is_timed_again(timed: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured(mlp(), rows())
    count = len(timed)
    timed.clear()
    monkeypatch.setattr(torch, "__version__", "99.0")
    measured(mlp(), rows())
    assert len(timed) == count


# A cache that does not work is no error


def test_a_folder_that_cannot_be_written(timed: Counter[str], cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    measured(mlp(), rows())
    count = len(timed)
    measured(mlp(), rows())
    assert sum(timed.values()) == 2 * count
    assert cache.parent.read_text() == "a file where the folder should be"


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_broken_file(content: bytes, timed: Counter[str], cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    problem = measured(mlp(), rows())
    assert timed
    assert all(op.time_ns > 0 for op in problem.ops if op.target == "aten.addmm.default")


def test_a_broken_file_is_replaced(timed: Counter[str], cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"not a database" * 1000)
    measured(mlp(), rows())
    timed.clear()
    measured(mlp(), rows())
    assert not timed


def test_rows_of_another_kind_are_measured_again(timed: Counter[str], cache: Path) -> None:
    """Another program may have written rows of other types into the file."""
    expected = measured(mlp(), rows())
    with sqlite3.connect(cache) as db:
        db.execute("UPDATE costs_2 SET time_ns = 'soon', workspace_bytes = -1")
    db.close()
    timed.clear()
    problem = measured(mlp(), rows())
    assert timed
    assert [op.workspace_bytes for op in problem.ops] == [op.workspace_bytes for op in expected.ops]


WRITER = """
import sys
from remat.capture.costs.cache import cache_path, read_rows, write_rows
for i in range(60):
    key = f"{sys.argv[1]}-{i}"
    write_rows({key: (i, 1, 2, 3), "both": (7, 7, 7, 7)})
    assert read_rows([key, "both"]) == {key: (i, 1, 2, 3), "both": (7, 7, 7, 7)}, key
"""


def test_two_processes_at_once() -> None:
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, str(i)], env=child_environment()) for i in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    keys = [f"{i}-{k}" for i in range(2) for k in range(60)]
    assert len(read_rows(keys)) == 120


def test_path_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_path() == tmp_path / "cache" / "costs.sqlite"
    monkeypatch.delenv("REMAT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_path() == tmp_path / "xdg" / "remat" / "costs.sqlite"


# Measured figures


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # torch's, on setting any of its flags
def test_workspace_of_a_convolution_is_its_unfolded_input() -> None:
    """Without oneDNN torch unfolds the input: batch x (channels * 3 * 3) x (height * width) floats."""
    model = nn.Conv2d(3, 5, 3, padding=1)
    with torch.backends.mkldnn.flags(enabled=False):
        problem = measured(model, torch.randn(2, 3, 16, 16))
    assert op_of(problem, "aten.convolution.default").workspace_bytes == 2 * 3 * 9 * 16 * 16 * 4


WITHOUT_WORKSPACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sum": lambda self, x: self.body(x).sum(),
    "tanh": lambda self, x: self.body(x).tanh(),
    "cumsum": lambda self, x: self.body(x).cumsum(1),
    "addmm": lambda self, x: self.body(x),
}


@pytest.mark.parametrize("name", WITHOUT_WORKSPACE)
def test_simple_ops_need_no_workspace(name: str) -> None:
    problem = measured(Lambda(WITHOUT_WORKSPACE[name], body=nn.Linear(WIDTH, WIDTH)), rows())
    found = [op.workspace_bytes for op in problem.ops if op.target.startswith(f"aten.{name}.")]
    assert found
    assert set(found) == {0}


def test_costs_record_their_source(tmp_path: Path) -> None:
    exported = remat.export(mlp(), (rows(),))
    costs = exported.problem.costs
    assert costs is not None
    assert (costs.source, costs.threads, costs.torch, costs.workspace) == (
        "measure",
        torch.get_num_threads(),
        torch.__version__,
        True,
    )
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        assert costs.device in file.read()
    assert len(costs.spread_ns) == len(exported.problem.ops)
    assert all(spread >= 0 for spread in costs.spread_ns)
    exported.save(tmp_path / "problem.json")
    assert load_problem(tmp_path / "problem.json").costs == costs


def test_spread_is_the_noise_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[Callable[[], object], list[int]] = {}

    def clock(call: Callable[[], object]) -> int:
        return 10**7 * runs.setdefault(call, [40, 10, 50]).pop()

    monkeypatch.setattr(measure, "cpu_clock", clock)
    problem = measured(nn.Linear(WIDTH, WIDTH), rows())
    assert problem.ops[0].time_ns == 10 * 10**7
    assert problem.costs is not None
    assert problem.costs.spread_ns[0] == 30 * 10**7  # the median, 40, minus the minimum


def test_ops_run_in_warm_memory_while_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc newly maps blocks of 32 MiB: the system has to map and clear 8,192 pages, but not during a timed run."""
    faults: dict[Callable[[], object], list[int]] = {}
    original = measure.cpu_clock

    def clock(call: Callable[[], object]) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        time_ns = original(call)
        faults.setdefault(call, []).append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return time_ns

    monkeypatch.setattr(measure, "cpu_clock", clock)
    model = Lambda(lambda self, x: (x * self.scale).exp().sum(), scale=nn.Parameter(torch.ones(4096)))
    measured(model, torch.ones(2048, 4096))
    assert len(faults) >= 4
    assert max(min(runs) for runs in faults.values()) < 500


def test_a_measurement_does_not_change_generators_or_the_model() -> None:
    model = nn.Sequential(mlp(nn.Dropout(0.3)), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))
    x = rows()
    before = {name: t.clone() for name, t in model.state_dict().items()} | {"x": x.clone()}
    state = torch.get_rng_state()
    measured(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(x, before["x"])
    assert all(p.grad is None for p in model.parameters())


def test_indices_are_valid() -> None:
    """Ops that index are timed on indices that are valid."""

    def forward(self: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        h = self.embedding(tokens)[:, torch.tensor([0, 2])]
        return functional.cross_entropy(self.head(h).flatten(0, 1).index_select(0, labels), labels)

    model = Lambda(forward, embedding=nn.Embedding(50, WIDTH), head=nn.Linear(WIDTH, 9))
    problem = measured(model, torch.randint(50, (4, 6)), torch.arange(8))
    assert all(op.time_ns > 0 for op in problem.ops if op.target != "tangents")
