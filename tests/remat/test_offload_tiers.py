"""Offloading on a CPU: what leaves comes back bit for bit, late or not; a fault is an error that says what failed."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import remat
from remat.capture.exported import Exported
from remat.execute.offload import tiers
from remat.execute.offload.threads import ThreadTransfers
from remat.execute.offload.tiers import BLOCK_BYTES, CHUNK_BYTES, Bytes, DiskTier, HostTier, Slab, Tier
from remat.verification import compare_steps, run_step
from remat_solvers.errors import OffloadError
from remat_solvers.generate import random_plan
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate

from .models import CASES
from .test_exact import check_peak

TIERS = pytest.mark.parametrize("tier", [HostTier(), DiskTier()], ids=lambda tier: tier.name)


@dataclass(frozen=True)
class LateTier(HostTier):
    """Host memory behind copies that take a random time."""

    random: Random = field(default_factory=lambda: Random(0))
    most_s: float = 0.002

    def slab(self, size_bytes: int) -> Slab:
        return LateSlab(super().slab(size_bytes), self)


class LateSlab(Slab):
    def __init__(self, slab: Slab, tier: LateTier) -> None:
        self._slab, self._tier = slab, tier

    def write(self, place: int, source: Bytes) -> None:
        time.sleep(self._tier.random.random() * self._tier.most_s)
        self._slab.write(place, source)

    def read(self, place: int, into: Bytes) -> None:
        into[:] = 0xFF
        time.sleep(self._tier.random.random() * self._tier.most_s)
        self._slab.read(place, into)


def exported_case(name: str) -> tuple[Exported, nn.Module, Any, Any]:
    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs)
    return replace(exported, problem=replace(exported.problem, link=Link(10**9, 10**9))), model, args, kwargs


@TIERS
@pytest.mark.parametrize("name", ["batch-norm", "two-heads", "gru-dropout", "gpt2", "vit"])
def test_random_traffic_is_bit_equal_and_its_peak_as_predicted(name: str, tier: Tier) -> None:
    exported, _, args, kwargs = exported_case(name)
    problem = exported.problem
    kept = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    for seed in range(2):
        plan = random_plan(problem, seed)
        assert validate(problem, plan) == []
        step = run_step(remat.apply(exported, plan, tier=tier), args, kwargs, exported)
        assert compare_steps(step, kept).equal
        check_peak(step, exported, plan)


def test_late_copies_never_change_a_gradient() -> None:
    """Copies of random duration, two thousand steps, two of them in flight at a time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    exported = remat.export(model, (x,), costs="roofline")
    exported = replace(exported, problem=replace(exported.problem, link=Link(10**9, 10**9)))
    tier = LateTier(most_s=0.0002)
    nets = [remat.apply(exported, random_plan(exported.problem, seed), tier=tier) for seed in range(10)]
    for step in range(1000):
        net = nets[step % len(nets)]
        torch.manual_seed(step)
        expected = torch.autograd.grad(model(x).sum() + model(x).square().sum(), list(model.parameters()))
        torch.manual_seed(step)
        first, second = net(x), net(x)
        found = torch.autograd.grad(first.sum() + second.square().sum(), list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class Big(nn.Module):
    """Layers of 1 MiB activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


@pytest.fixture
def offloading() -> tuple[Exported, Plan, nn.Module, Tensor]:
    """A plan that sends every activation away and fetches it where it is read."""
    model, x = Big(), torch.randn(4096, 64)
    exported = remat.export(model, (x,), costs="roofline")
    problem = replace(exported.problem, link=Link(10**9, 10**9))
    actions: list[Any] = []
    copied: set[int] = set()
    for action in store_all(problem):
        if isinstance(action, Compute):
            for value in problem.ops[action.op].inputs:
                if value in copied:
                    actions.append(Fetch(value))
            actions.append(action)
            sent = [v for v in (*problem.ops[action.op].inputs, *problem.ops[action.op].outputs) if v in away(problem)]
            for value in sent:
                if value not in copied:
                    actions.append(Offload(value))
                    copied.add(value)
                actions.append(Free(value))
        elif action.value not in copied:
            actions.append(action)
    plan = Plan(actions)
    assert validate(problem, plan) == []
    assert simulate(problem, plan).peak_bytes < simulate(problem, store_all(problem)).peak_bytes
    return replace(exported, problem=problem), plan, model, x


def away(problem: Any) -> set[int]:
    return {i for i, v in enumerate(problem.values) if v.kind == "activation" and v.bytes >= 2**20}


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(net(x), list(net.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


Offloading = tuple[Exported, Plan, nn.Module, Tensor]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without direct access."""
    monkeypatch.setattr(tiers, "_go_direct", lambda fd: False)


@TIERS
def test_values_of_any_size_lie_side_by_side(tier: Tier) -> None:
    """Whether or not they fill blocks, or cross their bounds, neighbours leave each other alone."""
    random = Random(0)
    near = [BLOCK_BYTES, 3 * BLOCK_BYTES, CHUNK_BYTES]
    sizes = [max(0, random.choice(near) + random.choice([-1, 0, 1])) for _ in range(12)] + [0, 1, 5, BLOCK_BYTES // 2]
    random.shuffle(sizes)
    places = [sum(sizes[:k]) for k in range(len(sizes))]
    values = [np.frombuffer(random.randbytes(size), np.uint8) for size in sizes]
    slab = tier.slab(sum(sizes))
    for _ in range(2):
        for k in random.sample(range(len(sizes)), len(sizes)):
            slab.write(places[k], values[k])
    for place, value in zip(places, values, strict=True):
        back = np.empty_like(value)
        slab.read(place, back)
        assert (back == value).all()


@pytest.mark.parametrize("refused", ["fcntl", "pwrite"])
def test_a_file_system_without_direct_access(
    refused: str, offloading: Offloading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the flag, or the first block; what is written through the cache is synced."""
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
    assert same(gradients(remat.apply(exported, plan, tier=DiskTier()), x), gradients(model, x))
    assert synced


@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("call", ["pwrite", "preadv", "posix_fallocate"])
def test_every_direct_io_call_may_fail(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_a_fault_is_told(call, number, offloading, tmp_path, monkeypatch)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("call", ["pwrite", "preadv", "fdatasync"])
def test_every_cached_io_call_may_fail(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_that_a_fault_is_told(call, number, offloading, tmp_path, monkeypatch)


def check_that_a_fault_is_told(
    call: str, number: int, offloading: Offloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails with the tier and the bytes, its file goes, and the next step is right."""
    exported, plan, model, x = offloading
    real = getattr(os, call)
    count = 0

    def faulty(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 1 + (0 if call == "posix_fallocate" else number):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    net = remat.apply(exported, plan, tier=DiskTier(tmp_path))
    files = open_files()
    monkeypatch.setattr(os, call, faulty)
    with pytest.raises(OffloadError, match=r"disk failed for \d+ bytes: .*No space left on device") as raised:
        gradients(net, x)
    assert raised.value.size_bytes >= 2**20
    del raised
    settled(lambda: open_files() == files)
    assert os.listdir(tmp_path) == []
    assert same(gradients(net, x), gradients(model, x))


def settled(done: Callable[[], bool]) -> None:
    """Wait, for a while, until threads have let go of what they held."""
    for _ in range(200):
        gc.collect()
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("still held")


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The scratch files that are made."""
    made: list[weakref.ref[Any]] = []
    real = DiskTier.slab

    def remembering(tier: DiskTier, size_bytes: int) -> Slab:
        slab = real(tier, size_bytes)
        made.append(weakref.ref(slab))
        return slab

    monkeypatch.setattr(DiskTier, "slab", remembering)
    return made


def overwrite(fd: int, place: int) -> None:
    """Put some zeros into a file, past the block size that direct access asks for."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    os.pwrite(again, bytes(8), place)
    os.close(again)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda fd: overwrite(fd, 2**20 + 4096), "is not what was written"),
        (lambda fd: os.ftruncate(fd, 2**20 + 10), "the scratch file ends after"),
        (lambda fd: os.ftruncate(fd, 0), "the scratch file ends after 0 bytes"),
    ],
    ids=["corrupted", "short", "empty"],
)
def test_a_damaged_file_is_noticed(
    damage: Callable[[int], object], said: str, offloading: Offloading, scratch: list[weakref.ref[Any]]
) -> None:
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    loss = net(x)
    damage(scratch[0]().fd)
    with pytest.raises(OffloadError, match=said):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())
    assert same(gradients(net, x), gradients(model, x))


@pytest.mark.parametrize(("size_bytes", "file_system"), [(73 * BLOCK_BYTES, None), (300_000, "cached")])
def test_partial_writes_and_reads_are_continued(
    size_bytes: int, file_system: str | None, offloading: Offloading, request: pytest.FixtureRequest
) -> None:
    exported, plan, model, x = offloading
    monkeypatch = request.getfixturevalue("monkeypatch")
    if file_system is not None:
        request.getfixturevalue(file_system)
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: write(fd, data[:size_bytes], place))
    monkeypatch.setattr(os, "preadv", lambda fd, views, place: read(fd, [views[0][:size_bytes]], place))
    assert same(gradients(remat.apply(exported, plan, tier=DiskTier()), x), gradients(model, x))


def test_a_folder_that_cannot_be_used_is_told(offloading: Offloading, tmp_path: Path) -> None:
    exported, plan, _, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier(tmp_path / "missing"))
    with pytest.raises(OffloadError, match=r"no scratch file in .*missing: No such file or directory"):
        net(x)


def test_no_host_memory_is_told(offloading: Offloading, monkeypatch: pytest.MonkeyPatch) -> None:
    exported, plan, _, x = offloading

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("Unable to allocate")

    net = remat.apply(exported, plan)
    monkeypatch.setattr(tiers.np, "empty", refuse)
    with pytest.raises(OffloadError, match=r"host failed for \d+ bytes: no memory"):
        net(x)


def test_slabs_serve_step_after_step_and_go_with_the_module(
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
    settled(lambda: all(slab() is None for slab in scratch))


def test_a_graph_kept_for_a_second_backward(offloading: Offloading) -> None:
    exported, plan, model, x = offloading
    loss = remat.apply(exported, plan)(x)
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    twice = torch.autograd.grad(loss, parameters)
    assert same(list(once), list(twice))
    assert same(list(once), gradients(model, x))


def test_copies_run_beside_compute() -> None:
    """The copy of one value and the computing thread are at work at the same time, and waits end when copies do."""
    going, done = threading.Event(), threading.Event()

    class Meeting(Slab):
        def write(self, place: int, source: Bytes) -> None:
            going.set()
            assert done.wait(10)

        def read(self, place: int, into: Bytes) -> None:
            into[:] = 7

    class MeetingTier(HostTier):
        def slab(self, size_bytes: int) -> Slab:
            return Meeting()

    session = ThreadTransfers(MeetingTier(), {0: 16}).begin()
    value = torch.zeros(4)
    session.offload(0, value)
    assert going.wait(10)  # the copy is under way while this thread goes on
    done.set()
    session.settle(0, value)
    back = session.fetch(0)
    session.arrive(0)
    assert np.all(torch.as_tensor(back).numpy().view(np.uint8) == 7)


class Empty(nn.Module):
    """Beside its other values one of no bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.second(h).sum() + self.second(h[:0] * 2).tanh().sum()


def everything_away(problem: Any) -> Plan:
    """The store-all plan, in which every value leaves when it is made and comes back before it is read."""
    actions: list[Any] = []
    fixed = {v for op in problem.forward_ops for v in problem.ops[op].outputs} & set(problem.results)
    gone: set[int] = set()
    for action in store_all(problem):
        if isinstance(action, Compute):
            back = [v for v in problem.ops[action.op].inputs if v in gone]
            actions += map(Fetch, back)
            gone -= set(back)
            actions.append(action)
            if problem.ops[action.op].phase == "forward":
                sent = [v for v in problem.ops[action.op].outputs if v not in fixed]
                actions += [move(v) for v in sent for move in (Offload, Free)]
                gone |= set(sent)
        elif action.value in gone:
            gone.discard(action.value)
        else:
            actions.append(action)
    return Plan(actions)


@TIERS
def test_values_of_no_bytes_move_too(tier: Tier) -> None:
    model, x = Empty(), torch.randn(4, 8)
    exported = remat.export(model, (x,), costs="roofline")
    exported = replace(exported, problem=replace(exported.problem, link=Link(10**9, 10**9)))
    plan = everything_away(exported.problem)
    assert validate(exported.problem, plan) == []
    assert any(isinstance(a, Offload) and not exported.problem.values[a.value].bytes for a in plan)
    assert same(gradients(remat.apply(exported, plan, tier=tier), x), gradients(model, x))


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-dropout"])
def test_a_tape_that_left_survives_a_graph_that_is_kept(name: str) -> None:
    exported, model, args, kwargs = exported_case(name)
    problem = exported.problem
    tapes = [v for v, value in enumerate(problem.values) if value.bytes and "rnn_forward" in value.name]
    sent = {v for v in tapes if v not in problem.results}
    plan = Plan(
        step
        for action in store_all(problem)
        for step in (
            action,
            *(Offload(v) for v in sent if isinstance(action, Compute) and v in problem.ops[action.op].outputs),
        )
    )
    assert sent
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss_of(net: nn.Module) -> Tensor:
        torch.manual_seed(0)
        output = net(*args, **kwargs)
        return (output[0] if isinstance(output, tuple) else output).sum()

    expected = list(torch.autograd.grad(loss_of(remat.apply(exported, store_all(problem))), parameters))
    loss = loss_of(remat.apply(exported, plan))
    assert same(list(torch.autograd.grad(loss, parameters, retain_graph=True)), expected)
    assert same(list(torch.autograd.grad(loss, parameters)), expected)


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
    assert same(gradients(net, x), gradients(model, x))


def test_slabs_of_a_burst_of_steps_are_given_back(offloading: Offloading, scratch: list[weakref.ref[Any]]) -> None:
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    together = [net(x) for _ in range(5)]
    torch.autograd.grad(together, list(model.parameters()))
    del together
    for _ in range(20):
        gradients(net, x)
    assert sum(slab() is not None for slab in scratch) == 1


def test_children_have_slabs_of_their_own(offloading: Offloading) -> None:
    """Two forked children train on the same pooled slab's module at once, and a step begun before cannot be ended."""
    exported, plan, model, x = offloading
    net = remat.apply(exported, plan, tier=DiskTier())
    expected = gradients(net, x)
    begun = net(x)
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(1)
                right = all(same(gradients(net, x), expected) for _ in range(3))
                code = 0 if right else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert same(list(torch.autograd.grad(begun, list(model.parameters()))), expected)
