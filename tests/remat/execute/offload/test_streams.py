"""The engine for accelerators on simulated devices that reorder work as far as the engine's waits allow.

`EagerDevice` runs kernels at once, on the CPU, so that whole models run on it; copies run as late as possible, or at
any moment before. `QueueDevice` also queues kernels, and reuses memory as soon as nobody on the host holds it, as a
caching allocator does; kernels and copies know addresses only. On it every wait of the engine is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import remat
from remat.execute import program
from remat.execute.offload.session import OffloadEngine
from remat.execute.offload.streams import StreamEngine, StreamSession
from remat.verification import compare_steps, run_step
from remat_solvers.errors import OffloadError
from remat_solvers.generate import random_plan
from remat_solvers.schedule import store_all
from remat_solvers.validate import validate
from tests.remat.execute.offload.offloading import with_link
from tests.remat.modules import CASE

POISON = 0xFF  # bytes of NaNs


@dataclass(eq=False)
class FakeStream:
    """A queue of tasks: copies to run, and events to wait for."""

    tasks: deque[Callable[[], None] | FakeEvent] = field(default_factory=deque)
    done: int = 0

    def wait_event(self, event: FakeEvent) -> None:
        self.tasks.append(event.snapshot())

    @property
    def end(self) -> int:
        return self.done + len(self.tasks)


class FakeEvent:
    """A position in a stream; it is over when the stream has passed it. A wait refers to the position at that time."""

    def __init__(self, stream: FakeStream | None = None, position: int = 0) -> None:
        self.stream, self.position = stream, position

    def record(self, stream: FakeStream) -> None:
        self.stream, self.position = stream, stream.end

    def snapshot(self) -> FakeEvent:
        return FakeEvent(self.stream, self.position)

    @property
    def over(self) -> bool:
        return self.stream is None or self.stream.done >= self.position


class ComputeStream(FakeStream):
    """A stream that runs kernels at once, on the CPU; a wait for an event runs the work before it."""

    def __init__(self, device: EagerDevice) -> None:
        super().__init__()
        self.device = device

    def wait_event(self, event: FakeEvent) -> None:
        snapshot = event.snapshot()
        while not snapshot.over:
            self.device.advance()


class EagerDevice:
    """A device that runs kernels when they are launched, and copies later."""

    def __init__(self, seed: int, *, eager: float) -> None:
        self.random = Random(seed)
        self.eager = eager  # probability that a copy runs before it has to
        self.streams: list[FakeStream] = []
        self.compute_stream: FakeStream = ComputeStream(self)
        self.copies = 0

    def current_stream(self) -> FakeStream:
        while self.random.random() < self.eager and self.advance():
            pass
        return self.compute_stream

    def new_stream(self) -> FakeStream:
        self.streams.append(FakeStream())
        return self.streams[-1]

    def new_event(self) -> FakeEvent:
        return FakeEvent()

    def allocate(self, size_bytes: int) -> Tensor:
        return torch.full((size_bytes,), POISON, dtype=torch.uint8)

    def allocate_pinned(self, size_bytes: int) -> Tensor:
        return self.allocate(size_bytes)

    def copy(self, stream: FakeStream, into: Tensor, source: Tensor) -> None:
        self.copies += 1
        stream.tasks.append(self.copying(into, source))

    def copying(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        target, data = into.numpy(), source.numpy()
        return lambda: np.copyto(target, data)

    def advance(self) -> bool:
        """Run one task that may run, and return whether there was one."""
        ready = [s for s in self.streams if s.tasks and not (isinstance(s.tasks[0], FakeEvent) and not s.tasks[0].over)]
        if not ready:
            return False
        stream = self.random.choice(ready)
        task = stream.tasks.popleft()
        if not isinstance(task, FakeEvent):
            task()
        stream.done += 1
        return True


class QueueDevice(EagerDevice):
    """A device that queues kernels like copies, and reuses memory as soon as nobody holds it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, eager=0.3)
        self.compute_stream = self.new_stream()
        self.blocks: list[NDArray[np.uint8]] = []
        self.lent: list[tuple[StorageWeakRef, NDArray[np.uint8]]] = []
        self.wrong_reads = 0

    def allocate(self, size_bytes: int) -> Tensor:
        free = [block for reference, block in self.lent if reference.expired()]
        self.lent = [(reference, block) for reference, block in self.lent if not reference.expired()]
        block = next((b for b in free if len(b) == size_bytes), None)
        if block is None:
            block = np.full(size_bytes, POISON, dtype=np.uint8)
            self.blocks.append(block)
        self.lent += [(StorageWeakRef(torch.empty(0).untyped_storage()), b) for b in free if b is not block]
        tensor = torch.frombuffer(block, dtype=torch.uint8)
        self.lent.append((StorageWeakRef(tensor.untyped_storage()), block))
        return tensor

    def memory(self, tensor: Tensor) -> NDArray[np.uint8]:
        """Return the memory at the address of `tensor`, whichever tensor owns it when it is read."""
        address = tensor.data_ptr()
        block = next(b for b in self.blocks if b.ctypes.data <= address < b.ctypes.data + len(b))
        start = address - block.ctypes.data
        return block[start : start + tensor.numel()]

    def copying(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        target, data = self.memory(into), self.memory(source)
        return lambda: np.copyto(target, data)

    def write(self, tensor: Tensor, number: int) -> None:
        """Launch a kernel that fills `tensor`."""
        target = self.memory(tensor)
        self.compute_stream.tasks.append(lambda: target.fill(number))

    def check(self, tensor: Tensor, number: int) -> None:
        """Launch a kernel that reads `tensor`, and counts contents other than `number`."""
        memory = self.memory(tensor)

        def read() -> None:
            self.wrong_reads += bool((memory != number).any())

        self.compute_stream.tasks.append(read)


def random_step(device: QueueDevice, engine: OffloadEngine, random: Random, *, abandon: bool) -> None:
    """Compute, read, offload, free and fetch values at random, by the rules that every emitted graph keeps."""
    session = engine.begin()
    resident: dict[int, tuple[Tensor, int]] = {}  # per value: its tensor, and the number that fills it
    freed: dict[int, int] = {}  # per value off the device: the number in the tier
    offloaded: dict[int, int] = {}  # per value: the number in the tier
    for _ in range(40):
        value, choice = random.randrange(6), random.random()
        if value in resident:
            tensor, number = resident[value]
            if choice < 0.4:
                session.wait_for_fetch(value)
                device.check(tensor, number)
            elif choice < 0.7:
                session.offload(value, tensor)
                offloaded[value] = number
            else:
                session.release(value, tensor)
                del resident[value]
                if offloaded.get(value) == number:
                    freed[value] = number
            del tensor
        elif value in freed and choice < 0.8:
            content = session.fetch(value)
            assert isinstance(content, Tensor)
            resident[value] = content, freed.pop(value)
            del content
        elif value not in offloaded:
            tensor = device.allocate(16)
            resident[value] = tensor, random.randrange(1, 200)
            device.write(tensor, resident[value][1])
            del tensor
    for value in () if abandon else list(resident):
        session.release(value, resident[value][0])


def wrong_reads(seed: int) -> int:
    """Return the number of kernels of a few random steps that read wrong contents."""
    random, device = Random(seed), QueueDevice(seed)
    engine = StreamEngine(device, dict.fromkeys(range(6), 16))
    for _ in range(6):
        random_step(device, engine, random, abandon=random.random() < 0.3)
    while device.advance():
        pass
    assert not any(stream.tasks for stream in device.streams)
    return device.wrong_reads


def test_no_kernel_reads_contents_too_early_or_too_late() -> None:
    assert [wrong_reads(seed) for seed in range(300)] == [0] * 300


WAITS = {  # the waits of the engine, each with the method that is replaced to omit it
    "a copy starts after the kernels launched before it": "_after_compute",
    "a value is read after its fetch": "wait_for_fetch",
    "memory is freed after the copies that use it": "release",
    "a step that ends early waits for its copies": "__del__",
}


@pytest.mark.parametrize("name", WAITS.values(), ids=WAITS.keys())
def test_every_wait_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "__del__":

        def end(session: Any) -> None:
            session._engine.pool.put_back(session._slab)

        monkeypatch.setattr(StreamSession, "__del__", end)
    else:
        monkeypatch.setattr(StreamSession, name, lambda session, *_: session._device.current_stream())
    assert sum(wrong_reads(seed) for seed in range(300)) > 0


@pytest.mark.parametrize("name", ["batch-norm", "dropout", "tied-weights", "lstm"])
def test_steps_are_bit_equal_however_late_copies_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args, kwargs = CASE[name].make()
    exported = with_link(remat.export(model.train(), args, kwargs, costs="roofline"))
    problem = exported.problem
    reference = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    for seed in range(4):
        device = EagerDevice(seed, eager=seed / 4)
        monkeypatch.setattr(program, "make_engine", lambda _, __, sizes, d=device: StreamEngine(d, sizes))
        plan = random_plan(problem, seed)
        assert validate(problem, plan) == []
        net = remat.apply(exported, plan)
        for _ in range(2):  # the slab is used again
            assert compare_steps(run_step(net, args, kwargs, exported), reference).equal
        assert device.copies > 10
        assert len(device.streams) == 2


def test_two_steps_in_flight_have_a_slab_each() -> None:
    device = EagerDevice(0, eager=0)
    engine = StreamEngine(device, {0: 8})
    a, b = torch.arange(8, dtype=torch.uint8), torch.arange(8, 16, dtype=torch.uint8)
    first, second = engine.begin(), engine.begin()
    first.offload(0, a)
    second.offload(0, b)
    for session, tensor in ((first, a), (second, b)):
        session.release(0, tensor)
        content = session.fetch(0)
        session.wait_for_fetch(0)
        assert torch.equal(torch.as_tensor(content), tensor)


def test_the_next_step_writes_after_the_last_one_has_read() -> None:
    """This is so even if it computes on another stream, which has not waited for the fetches of the step before."""
    device = EagerDevice(1, eager=0)
    engine = StreamEngine(device, {0: 4})
    value = torch.full((4,), 1, dtype=torch.uint8)
    session = engine.begin()
    session.offload(0, value)
    session.release(0, value)
    session.fetch(0)
    session.wait_for_fetch(0)
    fetched = engine.to_device.end  # type: ignore[attr-defined]
    del session
    engine.begin()
    (wait,) = engine.to_host.tasks  # type: ignore[attr-defined]
    assert (wait.stream, wait.position) == (engine.to_device, fetched)


def test_missing_pinned_memory_is_an_error_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EagerDevice(0, eager=0)

    def refuse(size_bytes: int) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "allocate_pinned", refuse)
    engine: OffloadEngine = StreamEngine(device, {0: 4096})
    with pytest.raises(OffloadError, match=r"host failed for 4096 bytes: no pinned memory"):
        engine.begin()


def test_an_abandoned_fetch_delays_the_stream_that_its_memory_belongs_to() -> None:
    """Another stream may be current when the graph is freed."""
    device = QueueDevice(0)
    engine = StreamEngine(device, {0: 16})
    side, default = device.new_stream(), device.compute_stream
    device.eager = 0
    device.compute_stream = side
    session = engine.begin()
    value = device.allocate(16)
    session.offload(0, value)
    session.release(0, value)
    before = side.end
    session.fetch(0)
    device.compute_stream = default
    waiting = default.end
    del session
    assert side.end > before
    assert default.end == waiting
