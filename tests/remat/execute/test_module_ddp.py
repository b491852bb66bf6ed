"""Data parallel training of planned modules, in two processes over gloo, equals that of the original."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tests.remat.modules import (
    batch,
    bit_equal,
    gradients_of,
    layers,
    recomputing,
    state_of,
    storing_all,
    training_loss,
)

PROCESSES = 2


def work(rank: int, folder: str) -> None:
    """Train three steps with each kind of module on this process's own batches, and save the results in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    found = {
        "eager": train(layers(), rank, {}),
        "store-all": train(storing_all(layers(), (batch(),)), rank, {}),
        "recompute": train(recomputing(layers(), (batch(),)), rank, {}),
        "views": train(recomputing(layers(), (batch(),)), rank, {"gradient_as_bucket_view": True}),
        "unused": train(recomputing(layers(), (batch(),)), rank, {"find_unused_parameters": True}),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def train(net: nn.Module, rank: int, options: dict[str, Any]) -> dict[str, Tensor | None]:
    parallel = DistributedDataParallel(net, bucket_cap_mb=0.0005, **options)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    torch.manual_seed(rank)
    for step in range(3):
        optimizer.zero_grad()
        with parallel.no_sync():  # accumulates over two micro-batches
            training_loss(parallel(batch(10 * step + rank))).backward()
        training_loss(parallel(batch(100 + 10 * step + rank))).backward()
        optimizer.step()
    return gradients_of(net) | {f"state {name}": tensor for name, tensor in state_of(net).items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor | None]]]:
    folder = tmp_path_factory.mktemp("ddp")
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME")
        if before is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = before
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("kind", ["store-all", "recompute", "views", "unused"])
def test_gradients_and_state_equal_eager(kind: str, found: list[dict[str, dict[str, Tensor | None]]]) -> None:
    for rank in range(PROCESSES):
        ours, eager = found[rank][kind], found[rank]["eager"]
        assert ours.keys() == eager.keys()
        assert [name for name in ours if not bit_equal(ours[name], eager[name])] == []


def test_processes_agree_although_their_batches_differ(found: list[dict[str, dict[str, Tensor | None]]]) -> None:
    first, second = (found[rank]["recompute"] for rank in range(PROCESSES))
    unequal = {name for name in first if not bit_equal(first[name], second[name])}
    assert {name.rsplit(".", 1)[1] for name in unequal} == {"running_mean", "running_var"}
