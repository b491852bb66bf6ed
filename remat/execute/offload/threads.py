"""Offloading where the device is the CPU: two worker threads, one per direction, do one copy at a time each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from remat.execute.offload.session import OffloadEngine, Session
from remat.execute.offload.storage import Content, layout_of, storages_of
from remat.execute.offload.tiers import Bytes, Slab, Tier
from remat_solvers.errors import OffloadError


class _CopyThreads:
    """The two copying threads of this process, one per direction, each with its queue."""

    def __init__(self) -> None:
        self.restart()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.restart)  # a fork does not copy threads

    def restart(self) -> None:
        self.to_host = ThreadPoolExecutor(1, "remat-to-host")
        self.to_device = ThreadPoolExecutor(1, "remat-to-device")


_COPY_THREADS = _CopyThreads()


class ThreadEngine(OffloadEngine[Slab]):
    """Creates sessions that copy to `tier`."""

    def __init__(self, tier: Tier, size_bytes: Mapping[int, int]) -> None:
        super().__init__(size_bytes)
        self.tier = tier

    def _new_slab(self) -> Slab:
        return self.tier.slab(self.slab_bytes)

    def _new_session(self, slab: Slab) -> Session:
        return ThreadSession(self, slab)


class ThreadSession(Session):
    def __init__(self, engine: ThreadEngine, slab: Slab) -> None:
        super().__init__()
        self._engine = engine
        self._slab = slab
        self._offloads: dict[int, Future[None]] = {}  # per value: the latest copy to the tier
        self._fetches: dict[int, Future[None]] = {}  # per value: the latest copy back
        self._failed = False
        self._process = os.getpid()

    def offload(self, value: int, content: Content) -> None:
        if os.getpid() != self._process:
            raise self._forked(value)
        self._layouts[value] = layout_of(content)
        arrays = [storage.numpy() for storage in storages_of(content)]
        copy = partial(_write, self._slab, self._engine.offsets[value], arrays, self._fetches.get(value))
        self._offloads[value] = _COPY_THREADS.to_host.submit(copy)

    def fetch(self, value: int) -> Content:
        layout = self._layouts[value]
        storages = [torch.empty(size, dtype=torch.uint8) for size in layout.sizes]
        arrays = [storage.numpy() for storage in storages]
        copy = partial(_read, self._slab, self._engine.offsets[value], arrays)
        self._fetches[value] = _COPY_THREADS.to_device.submit(copy)
        return layout.content(storages)

    def wait_for_fetch(self, value: int) -> None:
        self._wait(value, self._fetches.get(value))

    def wait_for_offload(self, value: int) -> None:
        self._wait(value, self._offloads.get(value))

    def _forked(self, value: int) -> OffloadError:
        size_bytes = sum(self._layouts[value].sizes) if value in self._layouts else 0
        message = "the step began before this process was forked; begin a new step in this process"
        return OffloadError(self._engine.tier.name, size_bytes, message)

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
            self._engine.pool.put_back(None)  # the slab is freed with the last copy that uses it
            return
        put_back = partial(self._engine.pool.put_back, self._slab)
        last_fetch = next(reversed(self._fetches.values()), None)
        if last_fetch is None:  # offloads of a later step follow in the same queue as those of this one
            put_back()
        else:
            last_fetch.add_done_callback(lambda _: put_back())


def _write(slab: Slab, offset: int, arrays: list[Bytes], after: Future[None] | None) -> None:
    if after is not None:
        after.result()
    while arrays:  # the memory is freed before the copy counts as ended
        array = arrays.pop(0)
        slab.write(offset, array)
        offset += len(array)
        del array


def _read(slab: Slab, offset: int, arrays: list[Bytes]) -> None:
    while arrays:
        array = arrays.pop(0)
        slab.read(offset, array)
        offset += len(array)
        del array
