"""The engine for accelerators on devices that reorder all they may: only waits that are asked for hold them back.

`EagerDevice` runs kernels at once, on the CPU, so that whole models run on it; copies run as late as they can, or at
any moment before. `QueueDevice` also queues kernels, and hands out memory again as soon as nobody on the host holds it,
as a caching allocator does; kernels and copies know addresses only. On it every wait of the engine is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import remat
from remat.execute import program
from remat.execute.offload import streams
from remat.execute.offload.session import OffloadEngine
from remat.execute.offload.streams import StreamEngine
from remat.verification import compare_steps, run_step
from remat_solvers.errors import OffloadError
from remat_solvers.generate import random_plan
from remat_solvers.problem import Link
from remat_solvers.schedule import store_all
from remat_solvers.validate import validate
from tests.remat.models.table import CASES

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

    def __init__(self, device: EagerDevice) -> None:
        super().__init__()
        self.device = device

    def wait_event(self, event: FakeEvent) -> None:
        moment = event.moment()
        while not moment.over:
            self.device.advance()


class EagerDevice:
    """Kernels run when they are given."""

    def __init__(self, seed: int, *, eager: float) -> None:
        self.random = Random(seed)
        self.eager = eager  # how often a copy runs before it must
        self.streams: list[FakeStream] = []
        self.compute_stream: FakeStream = ComputeStream(self)
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
        self.copies += 1
        stream.tasks.append(self.copying(into, source))

    def copying(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        to, data = into.numpy(), source.numpy()
        return lambda: np.copyto(to, data)

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


class QueueDevice(EagerDevice):
    """Kernels queue like copies; memory that nobody holds any more is handed out at once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, eager=0.3)
        self.compute_stream = self.stream()
        self.blocks: list[NDArray[np.uint8]] = []
        self.lent: list[tuple[StorageWeakRef, NDArray[np.uint8]]] = []
        self.wrong = 0

    def room(self, size_bytes: int) -> Tensor:
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
        """What lies at the address of `tensor`, whoever it belongs to by then."""
        address = tensor.data_ptr()
        block = next(b for b in self.blocks if b.ctypes.data <= address < b.ctypes.data + len(b))
        start = address - block.ctypes.data
        return block[start : start + tensor.numel()]

    def copying(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        to, data = self.memory(into), self.memory(source)
        return lambda: np.copyto(to, data)

    def write(self, tensor: Tensor, number: int) -> None:
        """A kernel that fills `tensor`."""
        place = self.memory(tensor)
        self.compute_stream.tasks.append(lambda: place.fill(number))

    def check(self, tensor: Tensor, number: int) -> None:
        """A kernel that reads `tensor`."""
        place = self.memory(tensor)

        def read() -> None:
            self.wrong += bool((place != number).any())

        self.compute_stream.tasks.append(read)


def random_step(device: QueueDevice, engine: OffloadEngine, random: Random, *, abandon: bool) -> None:
    """Values are made, read, sent, dropped and fetched at random, by the rules that every emitted graph keeps."""
    session = engine.begin()
    here: dict[int, tuple[Tensor, int]] = {}  # value -> (tensor, what it is full of)
    away: dict[int, int] = {}
    sent: dict[int, int] = {}
    for _ in range(40):
        value, choice = random.randrange(6), random.random()
        if value in here:
            tensor, number = here[value]
            if choice < 0.4:
                session.wait_for_fetch(value)
                device.check(tensor, number)
            elif choice < 0.7:
                session.offload(value, tensor)
                sent[value] = number
            else:
                session.release(value, tensor)
                del here[value]
                if sent.get(value) == number:
                    away[value] = number
            del tensor
        elif value in away and choice < 0.8:
            content = session.fetch(value)
            assert isinstance(content, Tensor)
            here[value] = content, away.pop(value)
            del content
        elif value not in sent:
            tensor = device.room(16)
            here[value] = tensor, random.randrange(1, 200)
            device.write(tensor, here[value][1])
            del tensor
    for value in () if abandon else list(here):
        session.release(value, here[value][0])


def wrong_reads(seed: int) -> int:
    """How many kernels of a few random steps read what they should not."""
    random, device = Random(seed), QueueDevice(seed)
    engine = StreamEngine(device, dict.fromkeys(range(6), 16))
    for _ in range(6):
        random_step(device, engine, random, abandon=random.random() < 0.3)
    while device.advance():
        pass
    assert not any(stream.tasks for stream in device.streams)
    return device.wrong


def test_no_kernel_reads_what_is_not_there_yet_or_no_more() -> None:
    assert [wrong_reads(seed) for seed in range(300)] == [0] * 300


class Careless:
    """The engine with one wait left out."""

    WAITS: ClassVar[dict[str, str]] = {
        "a copy starts after the kernels given before it": "_after_compute",
        "a value is read after its fetch": "wait_for_fetch",
        "memory goes back after the copies that use it": "release",
        "a step that ends early waits for its copies": "__del__",
    }


@pytest.mark.parametrize("name", Careless.WAITS.values(), ids=Careless.WAITS.keys())
def test_every_wait_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "__del__":

        def end(session: Any) -> None:
            session._engine.pool.put_back(session._slab)

        monkeypatch.setattr(streams._StreamSession, "__del__", end)
    else:
        monkeypatch.setattr(streams._StreamSession, name, lambda session, *_: session._device.compute())
    assert sum(wrong_reads(seed) for seed in range(300)) > 0


@pytest.mark.parametrize("name", ["batch-norm", "dropout", "tied-weights", "lstm"])
def test_steps_are_bit_equal_however_late_copies_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs, costs="roofline")
    problem = replace(exported.problem, link=Link(10**9, 10**9))
    exported = replace(exported, problem=problem)
    kept = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    for seed in range(4):
        device = EagerDevice(seed, eager=seed / 4)
        monkeypatch.setattr(program, "make_engine", lambda _, __, sizes, d=device: StreamEngine(d, sizes))
        plan = random_plan(problem, seed)
        assert validate(problem, plan) == []
        net = remat.apply(exported, plan)
        for _ in range(2):  # the slab is used again
            assert compare_steps(run_step(net, args, kwargs, exported), kept).equal
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
        back = session.fetch(0)
        session.wait_for_fetch(0)
        assert torch.equal(torch.as_tensor(back), tensor)


def test_the_next_step_writes_after_the_last_one_has_read() -> None:
    """Also where it computes on another stream, which has not waited for the fetches of the one before."""
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
    assert (wait.stream, wait.place) == (engine.to_device, fetched)


def test_no_pinned_memory_is_told_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EagerDevice(0, eager=0)

    def refuse(size_bytes: int) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "pinned", refuse)
    engine: OffloadEngine = StreamEngine(device, {0: 4096})
    with pytest.raises(OffloadError, match=r"host failed for 4096 bytes: no pinned memory"):
        engine.begin()


def test_an_abandoned_fetch_holds_back_the_stream_that_its_memory_belongs_to() -> None:
    """The graph may die where another stream is current."""
    device = QueueDevice(0)
    engine = StreamEngine(device, {0: 16})
    side, default = device.stream(), device.compute_stream
    device.eager = 0
    device.compute_stream = side
    session = engine.begin()
    value = device.room(16)
    session.offload(0, value)
    session.release(0, value)
    before = side.end
    session.fetch(0)
    device.compute_stream = default
    waiting = default.end
    del session
    assert side.end > before
    assert default.end == waiting
