"""Offloading where the device is the CPU: two worker threads, one per direction, each doing one copy at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from remat.execute.offload.session import OffloadEngine, Session, SlabPool, slab_offsets
from remat.execute.offload.storage import Content, Layout, free_tape, layout_of, storages_of
from remat.execute.offload.tiers import Bytes, Slab, Tier
from remat_solvers.errors import OffloadError

__all__ = ["ThreadEngine"]


class _Lanes:
    """The two queues of this process, one per direction; each is one thread."""

    def __init__(self) -> None:
        self.restart()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.restart)  # threads stay behind in the parent

    def restart(self) -> None:
        self.to_host = ThreadPoolExecutor(1, "remat-to-host")
        self.to_device = ThreadPoolExecutor(1, "remat-to-device")


_LANES = _Lanes()


class ThreadEngine(OffloadEngine):
    """Sessions that copy to `tier`. `size_bytes`: per value that is offloaded, its bytes."""

    def __init__(self, tier: Tier, size_bytes: Mapping[int, int]) -> None:
        self.tier = tier
        self.places, self.slab_bytes = slab_offsets(size_bytes)
        self.pool: SlabPool[Slab] = SlabPool()

    def begin(self) -> Session:
        slab = self.pool.take()
        if slab is None:
            try:
                slab = self.tier.slab(self.slab_bytes)
            except BaseException:
                self.pool.put_back(None)
                raise
        return _ThreadSession(self, slab)


class _ThreadSession(Session):
    def __init__(self, engine: ThreadEngine, slab: Slab) -> None:
        self._engine = engine
        self._slab = slab
        self._layouts: dict[int, Layout] = {}
        self._leaving: dict[int, Future[None]] = {}
        self._coming: dict[int, Future[None]] = {}
        self._failed = False
        self._process = os.getpid()

    def offload(self, value: int, content: Content) -> None:
        if os.getpid() != self._process:
            raise self._forked(value)
        self._layouts[value] = layout_of(content)
        arrays = [flat.numpy() for flat in storages_of(content)]
        move = partial(_write, self._slab, self._engine.places[value], arrays, self._coming.get(value))
        self._leaving[value] = _LANES.to_host.submit(move)

    def fetch(self, value: int) -> Content:
        layout = self._layouts[value]
        parts = [torch.empty(size, dtype=torch.uint8) for size in layout.sizes]
        arrays = [flat.numpy() for flat in parts]
        move = partial(_read, self._slab, self._engine.places[value], arrays)
        self._coming[value] = _LANES.to_device.submit(move)
        return layout.content(parts)

    def wait_for_fetch(self, value: int) -> None:
        self._wait(value, self._coming.get(value))

    def release(self, value: int, content: Content) -> None:
        self._wait(value, self._leaving.get(value))
        self._wait(value, self._coming.get(value))
        if value in self._layouts:
            free_tape(content)

    def _forked(self, value: int) -> OffloadError:
        message = "the step began in the process that this one was forked from; begin a new one"
        return OffloadError(
            self._engine.tier.name, sum(self._layouts[value].sizes) if value in self._layouts else 0, message
        )

    def _wait(self, value: int, copy: Future[None] | None) -> None:
        if copy is not None:
            if not copy.done() and os.getpid() != self._process:
                raise self._forked(value)
            try:
                copy.result()
            except BaseException:
                self._failed = True
                raise

    def __del__(self) -> None:
        if os.getpid() != self._process:
            return
        if self._failed:
            self._engine.pool.put_back(None)  # the slab goes with the last copy that uses it
            return
        give = partial(self._engine.pool.put_back, self._slab)
        last = next(reversed(self._coming.values()), None)
        if last is None:  # a later step's copies to the host follow in the same queue
            give()
        else:
            last.add_done_callback(lambda _: give())


def _write(slab: Slab, place: int, arrays: list[Bytes], after: Future[None] | None) -> None:
    if after is not None:
        after.result()
    while arrays:  # the memory is let go of before the copy counts as ended
        array = arrays.pop(0)
        slab.write(place, array)
        place += len(array)
        del array


def _read(slab: Slab, place: int, arrays: list[Bytes]) -> None:
    while arrays:
        array = arrays.pop(0)
        slab.read(place, array)
        place += len(array)
        del array
