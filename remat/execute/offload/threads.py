"""Offloading where the device is the CPU: two worker threads, one per direction, each doing one copy at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from remat.execute.offload.session import Pool, Session, Transfers, places_of
from remat.execute.offload.storage import Content, Form, form_of, let_go, parts_of
from remat.execute.offload.tiers import Bytes, Slab, Tier
from remat_solvers.errors import OffloadError

__all__ = ["ThreadTransfers"]


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


class ThreadTransfers(Transfers):
    """Sessions that copy to `tier`. `size_bytes`: per value that is offloaded, its bytes."""

    def __init__(self, tier: Tier, size_bytes: Mapping[int, int]) -> None:
        self.tier = tier
        self.places, self.slab_bytes = places_of(size_bytes)
        self.pool: Pool[Slab] = Pool()

    def begin(self) -> Session:
        slab = self.pool.take()
        if slab is None:
            try:
                slab = self.tier.slab(self.slab_bytes)
            except BaseException:
                self.pool.give(None)
                raise
        return _ThreadSession(self, slab)


class _ThreadSession(Session):
    def __init__(self, transfers: ThreadTransfers, slab: Slab) -> None:
        self._transfers = transfers
        self._slab = slab
        self._forms: dict[int, Form] = {}
        self._leaving: dict[int, Future[None]] = {}
        self._coming: dict[int, Future[None]] = {}
        self._failed = False
        self._process = os.getpid()

    def offload(self, value: int, content: Content) -> None:
        if os.getpid() != self._process:
            raise self._forked(value)
        self._forms[value] = form_of(content)
        arrays = [flat.numpy() for flat in parts_of(content)]
        move = partial(_write, self._slab, self._transfers.places[value], arrays, self._coming.get(value))
        self._leaving[value] = _LANES.to_host.submit(move)

    def fetch(self, value: int) -> Content:
        form = self._forms[value]
        parts = [torch.empty(size, dtype=torch.uint8) for size in form.sizes]
        arrays = [flat.numpy() for flat in parts]
        move = partial(_read, self._slab, self._transfers.places[value], arrays)
        self._coming[value] = _LANES.to_device.submit(move)
        return form.content(parts)

    def arrive(self, value: int) -> None:
        self._wait(value, self._coming.get(value))

    def settle(self, value: int, content: Content) -> None:
        self._wait(value, self._leaving.get(value))
        self._wait(value, self._coming.get(value))
        if value in self._forms:
            let_go(content)

    def _forked(self, value: int) -> OffloadError:
        message = "the step began in the process that this one was forked from; begin a new one"
        return OffloadError(
            self._transfers.tier.name, sum(self._forms[value].sizes) if value in self._forms else 0, message
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
            self._transfers.pool.give(None)  # the slab goes with the last copy that uses it
            return
        give = partial(self._transfers.pool.give, self._slab)
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
