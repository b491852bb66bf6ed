"""Offloading from an accelerator: one copy stream per direction, events, and pinned memory. The host never waits.

- A copy starts after the work that the compute stream was given before it: the copy stream waits for an event that is
  recorded there.
- Memory that a fetch fills is allocated on the compute stream. The allocator may hand out memory that earlier kernels
  still use; the wait of the copy stream covers these kernels too.
- Before a value is read, or its memory freed, the compute stream waits for the copy's event. So memory returns to the
  allocator in the order of the compute stream, and no `record_stream` is needed.
- The session holds the memory of every copy until the compute stream waits for it, so that a step that fails midway
  frees nothing under a running copy.
- A pinned slab, with its events, serves one step after another. The first copy of the next step into it waits for the
  last fetch from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from remat.execute.offload.session import OffloadEngine, Session
from remat.execute.offload.storage import Content, Storages, layout_of, storages_of
from remat_solvers.errors import OffloadError
from remat_solvers.units import format_bytes


class Event(Protocol):
    """A point in the work of a stream."""

    def record(self, stream: Any) -> None:
        """Move the event to the end of the work that `stream` has been given so far."""


class Stream(Protocol):
    """A queue of work on the device."""

    def wait_event(self, event: Any) -> None:
        """Run work that is given from now on after `event`."""


class StreamDevice(Protocol):
    """The operations of an accelerator that the engine needs."""

    def current_stream(self) -> Stream:
        """Return the compute stream: the one that runs the kernels of the calling thread."""

    def new_stream(self) -> Stream:
        """Return a new stream."""

    def new_event(self) -> Event:
        """Return a new event."""

    def allocate(self, size_bytes: int) -> Tensor:
        """Return uninitialised bytes on the device, allocated on the compute stream."""

    def allocate_pinned(self, size_bytes: int) -> Tensor:
        """Return uninitialised bytes of the host that the device copies to and from directly."""

    def copy(self, stream: Any, target: Tensor, source: Tensor) -> None:
        """Give `stream` a copy, and return at once."""


class CudaDevice:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def current_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def new_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def new_event(self) -> torch.cuda.Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def allocate(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    def allocate_pinned(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, stream: torch.cuda.Stream, target: Tensor, source: Tensor) -> None:
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        with context:
            target.copy_(source, non_blocking=True)


@dataclass
class _Slab:
    """Pinned memory, and the events of the copies to and from it."""

    pinned: Tensor
    offloaded: dict[int, Event] = field(default_factory=dict)  # per value: the end of its latest offload
    fetched: dict[int, Event] = field(default_factory=dict)  # per value: the end of its latest fetch
    last_fetch: Event | None = None  # of the step that used the slab before


class StreamEngine(OffloadEngine[_Slab]):
    """Creates sessions that copy to pinned memory."""

    def __init__(self, device: StreamDevice, size_bytes: Mapping[int, int]) -> None:
        super().__init__(size_bytes)
        self.device = device
        self.to_host, self.to_device = device.new_stream(), device.new_stream()

    def _new_slab(self) -> _Slab:
        try:
            return _Slab(self.device.allocate_pinned(self.slab_bytes))
        except RuntimeError as error:
            message = f"no pinned memory ({format_bytes(self.slab_bytes)}): {error}"
            raise OffloadError("host", self.slab_bytes, message) from error

    def _new_session(self, slab: _Slab) -> Session:
        return StreamSession(self, slab)


class StreamSession(Session):
    def __init__(self, engine: StreamEngine, slab: _Slab) -> None:
        super().__init__()
        self._engine = engine
        self._device = engine.device
        self._slab = slab
        self._offloading: dict[int, Storages] = {}  # memory that copies under way read, until compute waits for them
        self._fetching: dict[int, Storages] = {}  # memory that copies under way fill, until compute waits for them
        self._streams: dict[int, Stream] = {}  # per value: the stream that its memory belongs to
        self._last_fetch: Event | None = None
        if slab.last_fetch is not None:
            engine.to_host.wait_event(slab.last_fetch)

    def offload(self, value: int, content: Content) -> None:
        stream = self._engine.to_host
        self._streams[value] = self._after_compute(stream)
        if value in self._fetching:
            stream.wait_event(self._slab.fetched[value])
        self._layouts[value] = layout_of(content)
        self._offloading[value] = storages_of(content)
        for host, storage in self._pairs(value, self._offloading[value]):
            self._device.copy(stream, host, storage)
        self._record(self._slab.offloaded, value, stream)

    def fetch(self, value: int) -> Content:
        layout = self._layouts[value]
        storages = [self._device.allocate(size) for size in layout.sizes]
        stream = self._engine.to_device
        self._streams[value] = self._after_compute(stream)
        self._fetching[value] = storages
        for host, storage in self._pairs(value, storages):
            self._device.copy(stream, storage, host)
        self._last_fetch = self._record(self._slab.fetched, value, stream)
        return layout.content(storages)

    def wait_for_fetch(self, value: int) -> None:
        self._wait(value, self._fetching, self._slab.fetched)

    def wait_for_offload(self, value: int) -> None:
        self._wait(value, self._offloading, self._slab.offloaded)

    def _wait(self, value: int, copies: dict[int, Storages], ends: dict[int, Event]) -> None:
        if value in copies:
            self._device.current_stream().wait_event(ends[value])
            del copies[value]

    def _after_compute(self, stream: Stream) -> Stream:
        """Let `stream` wait for the work that the compute stream has been given, and return the compute stream."""
        event, compute = self._device.new_event(), self._device.current_stream()
        event.record(compute)
        stream.wait_event(event)
        return compute

    def _pairs(self, value: int, storages: Storages) -> list[tuple[Tensor, Tensor]]:
        """Return, per storage of a value, its bytes in the slab and on the device."""
        offset = self._engine.offsets[value]
        pairs = []
        for storage in storages:
            pairs.append((self._slab.pinned[offset : offset + storage.numel()], storage))
            offset += storage.numel()
        return pairs

    def _record(self, ends: dict[int, Event], value: int, stream: Stream) -> Event:
        event = ends.setdefault(value, self._device.new_event())
        event.record(stream)
        return event

    def __del__(self) -> None:
        # The last reference may be dropped where another stream is current, so the wait names the stream.
        for value in self._offloading:
            self._streams[value].wait_event(self._slab.offloaded[value])
        for value in self._fetching:
            self._streams[value].wait_event(self._slab.fetched[value])
        self._offloading.clear()
        self._fetching.clear()
        self._slab.last_fetch = self._last_fetch
        self._engine.pool.put_back(self._slab)
