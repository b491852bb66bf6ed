"""The engine for accelerators on a device that reorders all it may: only waits that are asked for hold it back.

Its streams run a copy as late as they can, or at any moment before. Fresh memory is poisoned, pinned memory too, and a
copy notices when what it reads or fills has been let go of before it ran.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import remat
from remat.execute import program
from remat.execute.offload.session import Transfers
from remat.execute.offload.streams import StreamTransfers
from remat.verification import compare_steps, run_step
from remat_solvers.errors import OffloadError
from remat_solvers.generate import random_plan
from remat_solvers.problem import Link
from remat_solvers.schedule import store_all
from remat_solvers.validate import validate

from .models import CASES

POISON = 0xFF  # bytes of NaNs


@dataclass(eq=False)
class FakeStream:
    """Tasks in order: a copy to run, or an event to wait for."""

    tasks: deque[Callable[[], None] | FakeEvent] = field(default_factory=deque)
    done: int = 0

    def wait_event(self, event: FakeEvent) -> None:
        self.tasks.append(event.moment())

    @property
    def end(self) -> int:
        return self.done + len(self.tasks)


class FakeEvent:
    """A place in a stream: over when the stream is past it. An event waited for stays what it was then."""

    def __init__(self, stream: FakeStream | None = None, place: int = 0) -> None:
        self.stream, self.place = stream, place

    def record(self, stream: FakeStream) -> None:
        self.stream, self.place = stream, stream.end

    def moment(self) -> FakeEvent:
        return FakeEvent(self.stream, self.place)

    @property
    def over(self) -> bool:
        return self.stream is None or self.stream.done >= self.place


class ComputeStream(FakeStream):
    """Kernels run at once, on the CPU; so waiting for an event runs what has to run before it."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def wait_event(self, event: FakeEvent) -> None:
        moment = event.moment()
        while not moment.over:
            self.device.advance()


class FakeDevice:
    def __init__(self, seed: int, *, eager: float) -> None:
        self.random = Random(seed)
        self.eager = eager  # how often a copy runs before it must
        self.streams: list[FakeStream] = []
        self.compute_stream = ComputeStream(self)
        self.broken: list[str] = []
        self.copies = 0

    def compute(self) -> FakeStream:
        while self.random.random() < self.eager and self.advance():
            pass
        return self.compute_stream

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream())
        return self.streams[-1]

    def event(self) -> FakeEvent:
        return FakeEvent()

    def room(self, size_bytes: int) -> Tensor:
        return torch.full((size_bytes,), POISON, dtype=torch.uint8)

    def pinned(self, size_bytes: int) -> Tensor:
        return self.room(size_bytes)

    def copy(self, stream: FakeStream, into: Tensor, source: Tensor) -> None:
        used = [StorageWeakRef(t.untyped_storage()) for t in (into, source)]
        data = (into.numpy(), source.numpy())

        def run() -> None:
            self.copies += 1
            if any(reference.expired() for reference in used):
                self.broken.append("memory went away under a copy")
            data[0][:] = data[1]

        stream.tasks.append(run)

    def advance(self) -> bool:
        """Run one task that may run; whether there was any."""
        ready = [s for s in self.streams if s.tasks and not (isinstance(s.tasks[0], FakeEvent) and not s.tasks[0].over)]
        if not ready:
            return False
        stream = self.random.choice(ready)
        task = stream.tasks.popleft()
        if not isinstance(task, FakeEvent):
            task()
        stream.done += 1
        return True


@pytest.mark.parametrize("name", ["batch-norm", "dropout", "tied-weights", "lstm", "gpt2"])
def test_steps_are_bit_equal_however_late_copies_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs, costs="roofline")
    problem = replace(exported.problem, link=Link(10**9, 10**9))
    exported = replace(exported, problem=problem)
    kept = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    for seed in range(4):
        device = FakeDevice(seed, eager=seed / 4)
        monkeypatch.setattr(program, "make_transfers", lambda _, __, sizes, d=device: StreamTransfers(d, sizes))
        plan = random_plan(problem, seed)
        assert validate(problem, plan) == []
        net = remat.apply(exported, plan)
        for _ in range(2):  # the slab is used again
            assert compare_steps(run_step(net, args, kwargs, exported), kept).equal
        assert device.copies > 10
        assert device.broken == []
        assert len(device.streams) == 2


def test_two_steps_in_flight_have_a_slab_each() -> None:
    device = FakeDevice(0, eager=0)
    transfers = StreamTransfers(device, {0: 8})
    a, b = torch.arange(8, dtype=torch.uint8), torch.arange(8, 16, dtype=torch.uint8)
    first, second = transfers.begin(), transfers.begin()
    first.offload(0, a)
    second.offload(0, b)
    for session, tensor in ((first, a), (second, b)):
        session.settle(0, tensor)
        back = session.fetch(0)
        session.arrive(0)
        assert torch.equal(torch.as_tensor(back), tensor)


def test_the_next_step_writes_after_the_last_one_has_read() -> None:
    """Also where it computes on another stream, which has not waited for the fetches of the one before."""
    device = FakeDevice(1, eager=0)
    transfers = StreamTransfers(device, {0: 4})
    value = torch.full((4,), 1, dtype=torch.uint8)
    session = transfers.begin()
    session.offload(0, value)
    session.settle(0, value)
    session.fetch(0)
    session.arrive(0)
    fetched = transfers.to_device.end  # type: ignore[attr-defined]
    del session
    transfers.begin()
    (wait,) = transfers.to_host.tasks  # type: ignore[attr-defined]
    assert (wait.stream, wait.place) == (transfers.to_device, fetched)


def test_an_abandoned_step_frees_nothing_under_a_copy() -> None:
    device = FakeDevice(2, eager=0)
    transfers = StreamTransfers(device, {0: 4})
    session: Any = transfers.begin()
    value = torch.full((4,), 3, dtype=torch.uint8)
    session.offload(0, value)
    session.settle(0, value)
    session.fetch(0)
    session.offload(0, value)
    del session, value
    while device.advance():
        pass
    assert device.copies == 3
    assert device.broken == []


def test_no_pinned_memory_is_told_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(0, eager=0)

    def refuse(size_bytes: int) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "pinned", refuse)
    transfers: Transfers = StreamTransfers(device, {0: 4096})
    with pytest.raises(OffloadError, match=r"host failed for 4096 bytes: no pinned memory"):
        transfers.begin()
