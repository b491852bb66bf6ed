"""Offloading to disk: files that fail, are too short or damaged, and slabs that are used by step after step."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import remat
from remat.execute.offload import tiers
from remat.execute.offload.tiers import BLOCK_BYTES, DiskTier, Slab
from remat_solvers.errors import OffloadError
from tests.remat.execute.offload.offloading import Big, Offloading, bit_equal, gradients, offloading_case, wait_until


@pytest.fixture
def offloading() -> Offloading:
    return offloading_case()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without direct access."""
    monkeypatch.setattr(tiers, "enable_direct_access", lambda fd: False)


@pytest.mark.parametrize("refused", ["fcntl", "pwrite"])
def test_a_file_system_without_direct_access(
    refused: str, offloading: Offloading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the flag, or the first block; then bytes are written through the cache and synced."""
    exported, plan, model, x = offloading
    module = fcntl if refused == "fcntl" else os
    real, sync, synced = getattr(module, refused), os.fdatasync, []

    def refuse_direct(fd: int, *args: Any) -> Any:
        if real_fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT or (module is fcntl and args[1:] and args[1] & os.O_DIRECT):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, *args)

    real_fcntl = fcntl.fcntl
    monkeypatch.setattr(module, refused, refuse_direct)
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(sync(fd)))
    assert bit_equal(gradients(remat.apply(exported, plan, tier=DiskTier()), x), gradients(model, x))
    assert synced


@pytest.mark.parametrize(
    ("call", "number"), [*((c, n) for c in ("pwrite", "preadv") for n in (0, 2, 5)), ("dup", 0), ("posix_fallocate", 0)]
)
def test_every_direct_io_call_may_fail(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_a_fault_is_an_error(call, number, offloading, tmp_path, monkeypatch)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("call", ["pwrite", "preadv", "fdatasync", "posix_fadvise"])
def test_every_cached_io_call_may_fail(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_a_fault_is_an_error(call, number, offloading, tmp_path, monkeypatch)


def check_that_a_fault_is_an_error(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails with the tier and the bytes, its file is deleted, and the next step is right."""
    exported, plan, model, x = offloading
    real = getattr(os, call)
    count = 0

    def faulty(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 1 + number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    net = remat.apply(exported, plan, tier=DiskTier(tmp_path))
    files = open_files()
    monkeypatch.setattr(os, call, faulty)
    with pytest.raises(OffloadError, match=r"disk failed for \d+ bytes: .*No space left on device") as raised:
        gradients(net, x)
    assert raised.value.size_bytes >= 2**20
    del raised
    wait_until(lambda: open_files() == files)
    assert os.listdir(tmp_path) == []
    assert bit_equal(gradients(net, x), gradients(model, x))


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Return references to the scratch files that the test creates."""
    created: list[weakref.ref[Any]] = []
    real = DiskTier.slab

    def remembering(tier: DiskTier, size_bytes: int) -> Slab:
        slab = real(tier, size_bytes)
        created.append(weakref.ref(slab))
        return slab

    monkeypatch.setattr(DiskTier, "slab", remembering)
    return created


def overwrite(fd: int, offset: int) -> None:
    """Write some zeros into a file, through the cache, so that they need not fill a block."""
    file = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    os.pwrite(file, bytes(8), offset)
    os.close(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda fd: overwrite(fd, 2**20 + 4096), "are not those written"),
        (lambda fd: os.ftruncate(fd, 2**20 + 10), "the scratch file ends after"),
        (lambda fd: os.ftruncate(fd, 0), "the scratch file ends after 0 bytes"),
    ],
    ids=["corrupted", "short", "empty"],
)
def test_a_damaged_file_is_noticed(
    damage: Callable[[int], object], message: str, offloading: Offloading, scratch: list[weakref.ref[Any]]
) -> None:
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    loss = net(x)
    damage(scratch[0]().fd)
    with pytest.raises(OffloadError, match=message):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())
    assert bit_equal(gradients(net, x), gradients(model, x))


@pytest.mark.parametrize(("size_bytes", "file_system"), [(73 * BLOCK_BYTES, None), (300_000, "cached")])
def test_partial_writes_and_reads_are_continued(
    size_bytes: int, file_system: str | None, offloading: Offloading, request: pytest.FixtureRequest
) -> None:
    exported, plan, model, x = offloading
    monkeypatch = request.getfixturevalue("monkeypatch")
    if file_system is not None:
        request.getfixturevalue(file_system)
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:size_bytes], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [views[0][:size_bytes]], offset))
    assert bit_equal(gradients(remat.apply(exported, plan, tier=DiskTier()), x), gradients(model, x))


@pytest.mark.parametrize("folder", [Path("/missing"), Path("/proc")])  # nobody can write to the latter, not even root
def test_a_folder_that_cannot_be_used_is_an_error(folder: Path, offloading: Offloading) -> None:
    exported, plan, _, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier(folder))
    with pytest.raises(OffloadError, match=rf"disk failed for \d+ bytes: no scratch file in {folder}: .*"):
        net(x)


def test_slabs_are_used_by_step_after_step_and_freed_with_the_module(
    offloading: Offloading, scratch: list[weakref.ref[Any]]
) -> None:
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    for _ in range(3):
        gradients(net, x)
    assert len(scratch) == 1
    first, second = net(x), net(x)  # in flight together
    torch.autograd.grad(first + second, list(model.parameters()))
    assert len(scratch) == 2
    loss = net(x)
    del loss  # its backward never runs
    gradients(net, x)
    assert len(scratch) == 2
    del net, first, second
    wait_until(lambda: all(slab() is None for slab in scratch))


def test_a_folder_may_be_a_string(tmp_path: Path) -> None:
    assert DiskTier(str(tmp_path)) == DiskTier(tmp_path)  # type: ignore[arg-type]
    model, x = Big(), torch.randn(4096, 64)
    net = remat.solve(
        model,
        "80%",
        (x,),
        link="auto",
        solver="swap-only",
        costs="roofline",
        tier=DiskTier(str(tmp_path)),  # type: ignore[arg-type]
    )
    assert bit_equal(gradients(net, x), gradients(model, x))


def test_slabs_of_a_burst_of_steps_are_freed(offloading: Offloading, scratch: list[weakref.ref[Any]]) -> None:
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    together = [net(x) for _ in range(5)]
    torch.autograd.grad(together, list(model.parameters()))
    del together
    for _ in range(20):
        gradients(net, x)
    assert sum(slab() is not None for slab in scratch) == 1


def test_children_have_slabs_of_their_own(offloading: Offloading) -> None:
    """Two forked children train the same module at once, although its slab is pooled; the parent then ends a step."""
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    expected = gradients(net, x)
    unfinished = net(x)
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(1)
                right = all(bit_equal(gradients(net, x), expected) for _ in range(3))
                code = 0 if right else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert bit_equal(list(torch.autograd.grad(unfinished, list(model.parameters()))), expected)
