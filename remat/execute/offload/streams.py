"""Offloading from an accelerator: one stream per direction, events, pinned memory. The host never waits.

- A copy starts after what the compute stream has been given so far: an event recorded there, waited for by the lane.
- Memory that a fetch fills is allocated on the compute stream. The allocator may hand out memory that kernels given
  earlier still use; the lane's wait covers these too.
- Before a value is read, or its memory let go of, the compute stream waits for the copy's event. So memory goes back
  to the allocator only in the compute stream's order, and no `record_stream` is needed.
- Whatever a copy uses is held here until the compute stream waits for it, so that a step that fails midway frees
  nothing under a running copy.
- A pinned slab, with its events, serves one step after another. The next step's first copy into it waits for the last
  fetch out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from remat.execute.offload.session import OffloadEngine, Session, SlabPool, slab_offsets
from remat.execute.offload.storage import Content, Layout, Storages, free_tape, layout_of, storages_of
from remat_solvers.errors import OffloadError
from remat_solvers.units import format_bytes

__all__ = ["CudaDevice", "Event", "Stream", "StreamDevice", "StreamEngine"]


class Event(Protocol):
    """A moment in a stream."""

    def record(self, stream: Any) -> None:
        """Now, after what `stream` has been given so far."""


class Stream(Protocol):
    """A queue of work on the device."""

    def wait_event(self, event: Any) -> None:
        """What is given from now on runs after `event`."""


class StreamDevice(Protocol):
    """What the engine needs of an accelerator."""

    def compute(self) -> Stream:
        """The stream that the calling thread gives its kernels to."""

    def stream(self) -> Stream:
        """A new stream."""

    def event(self) -> Event:
        """A new event."""

    def room(self, size_bytes: int) -> Tensor:
        """Uninitialised bytes on the device, allocated on the compute stream."""

    def pinned(self, size_bytes: int) -> Tensor:
        """Uninitialised bytes of the host that the device copies to and from directly."""

    def copy(self, stream: Any, into: Tensor, source: Tensor) -> None:
        """Give `stream` a copy; returns at once."""


class CudaDevice:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def compute(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def room(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    def pinned(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, stream: torch.cuda.Stream, into: Tensor, source: Tensor) -> None:
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        with context:
            into.copy_(source, non_blocking=True)


@dataclass
class _Slab:
    """Pinned memory, and the events of the copies to and from it."""

    room: Tensor
    left: dict[int, Event] = field(default_factory=dict)  # per value, the end of its latest offload
    came: dict[int, Event] = field(default_factory=dict)  # per value, the end of its latest fetch
    last_fetch: Event | None = None  # of the step that used it before


class StreamEngine(OffloadEngine):
    """Sessions that copy to pinned memory. `size_bytes`: per value that is offloaded, its bytes."""

    def __init__(self, device: StreamDevice, size_bytes: Mapping[int, int]) -> None:
        self.device = device
        self.places, self.slab_bytes = slab_offsets(size_bytes)
        self.to_host, self.to_device = device.stream(), device.stream()
        self.pool: SlabPool[_Slab] = SlabPool()

    def begin(self) -> Session:
        slab = self.pool.take()
        if slab is None:
            try:
                slab = _Slab(self.device.pinned(self.slab_bytes))
            except RuntimeError as error:
                self.pool.put_back(None)
                raise OffloadError(
                    "host", self.slab_bytes, f"no pinned memory ({format_bytes(self.slab_bytes)}): {error}"
                ) from error
        return _StreamSession(self, slab)


class _StreamSession(Session):
    def __init__(self, engine: StreamEngine, slab: _Slab) -> None:
        self._engine = engine
        self._device = engine.device
        self._slab = slab
        self._layouts: dict[int, Layout] = {}
        self._leaving: dict[int, Storages] = {}  # what copies under way read, until compute waits for them
        self._coming: dict[int, Storages] = {}  # what copies under way fill, until compute waits for them
        self._streams: dict[int, Stream] = {}  # per value, the stream its memory belongs to
        self._last_fetch: Event | None = None
        if slab.last_fetch is not None:
            engine.to_host.wait_event(slab.last_fetch)

    def offload(self, value: int, content: Content) -> None:
        lane = self._engine.to_host
        self._streams[value] = self._after_compute(lane)
        if value in self._coming:
            lane.wait_event(self._slab.came[value])
        self._layouts[value] = layout_of(content)
        self._leaving[value] = storages_of(content)
        for room, part in self._pairs(value, self._leaving[value]):
            self._device.copy(lane, room, part)
        self._end(self._slab.left, value, lane)

    def fetch(self, value: int) -> Content:
        layout = self._layouts[value]
        parts = [self._device.room(size) for size in layout.sizes]
        lane = self._engine.to_device
        self._streams[value] = self._after_compute(lane)
        self._coming[value] = parts
        for room, part in self._pairs(value, parts):
            self._device.copy(lane, part, room)
        self._last_fetch = self._end(self._slab.came, value, lane)
        return layout.content(parts)

    def wait_for_fetch(self, value: int) -> None:
        if self._coming.get(value) is not None:
            self._device.compute().wait_event(self._slab.came[value])
            del self._coming[value]

    def release(self, value: int, content: Content) -> None:
        if self._leaving.get(value) is not None:
            self._device.compute().wait_event(self._slab.left[value])
            del self._leaving[value]
        self.wait_for_fetch(value)
        if value in self._layouts:
            free_tape(content)

    def _after_compute(self, lane: Stream) -> Stream:
        event, compute = self._device.event(), self._device.compute()
        event.record(compute)
        lane.wait_event(event)
        return compute

    def _pairs(self, value: int, parts: Storages) -> list[tuple[Tensor, Tensor]]:
        place = self._engine.places[value]
        pairs = []
        for part in parts:
            pairs.append((self._slab.room[place : place + part.numel()], part))
            place += part.numel()
        return pairs

    def _end(self, events: dict[int, Event], value: int, lane: Stream) -> Event:
        event = events.setdefault(value, self._device.event())
        event.record(lane)
        return event

    def __del__(self) -> None:
        # The last reference may go wherever another stream is current.
        for value in self._leaving:
            self._streams[value].wait_event(self._slab.left[value])
        for value in self._coming:
            self._streams[value].wait_event(self._slab.came[value])
        self._leaving.clear()
        self._coming.clear()
        self._slab.last_fetch = self._last_fetch
        self._engine.pool.put_back(self._slab)
