"""Sessions, each of which carries the offloaded values of one step, and the engines that create them.

Emitted graphs call four methods of a session:

    offload(value, content)     starts a copy of a value to the tier
    fetch(value)                allocates the value on the device and starts the copy back; returns the content
    wait_for_fetch(value)       runs before the value is read
    release(value, content)     runs before the value is freed: waits for every copy of it under way

A session belongs to one call of the module, from its forward to its backward, so several steps may be in flight. It
ends when the last graph that holds it dies, however the step ends; its slab then serves a later step.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from math import ceil
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from remat.execute.offload.storage import Content, Layout, drop_tape
from remat.execute.offload.tiers import BLOCK_BYTES

S = TypeVar("S")

RECENT_STEPS = 16  # the pool keeps as many slabs as any of these had in flight


class Session(ABC):
    """The copies of one step. Every method is called from the thread that computes."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}  # per value that was offloaded

    @abstractmethod
    def offload(self, value: int, content: Content) -> None:
        """Start the copy of `content` to the tier. Its device memory is in use until `release`."""

    @abstractmethod
    def fetch(self, value: int) -> Content:
        """Return an offloaded value in new device memory, which is filled only after `wait_for_fetch`."""

    @abstractmethod
    def wait_for_fetch(self, value: int) -> None:
        """Let compute wait for the fetch of `value`. Raises OffloadError where it failed."""

    @abstractmethod
    def wait_for_offload(self, value: int) -> None:
        """Let compute wait for the offload of `value`. Raises OffloadError where it failed."""

    def release(self, value: int, content: Content) -> None:
        """Let compute wait for every copy of `value`, whose `content` is alive at least until here.

        Raises OffloadError where a copy failed.
        """
        self.wait_for_offload(value)
        self.wait_for_fetch(value)
        if value in self._layouts:
            drop_tape(content)


class SlabPool(Generic[S]):
    """Slabs for later steps: as many as the latest steps had in flight at once."""

    def __init__(self) -> None:
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        self._free: list[S] = []
        self._used = 0
        self._recently_used: deque[int] = deque(maxlen=RECENT_STEPS)
        self._lock = Lock()

    def take(self) -> S | None:
        """Begin a step and return a slab of an earlier one; None: the step has to create one. `put_back` ends it."""
        with self._lock:
            self._used += 1
            self._recently_used.append(self._used)
            return self._free.pop() if self._free else None

    def put_back(self, slab: S | None) -> None:
        """End a step and keep its slab for a later one; None: it has no slab that can be used again."""
        with self._lock:
            self._used -= 1
            if slab is not None:
                self._free.append(slab)
            while self._free and len(self._free) + self._used > max(self._recently_used, default=0):
                self._free.pop(0)

    @staticmethod
    def forget_all() -> None:
        """Empty every pool after a fork, because the slabs belong to the parent."""
        for pool in _POOLS:
            pool._forget()


_POOLS: WeakSet[SlabPool[Any]] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SlabPool.forget_all)


class OffloadEngine(ABC, Generic[S]):
    """Creates the sessions of one program. `size_bytes`: the bytes of each value that the program offloads."""

    def __init__(self, size_bytes: Mapping[int, int]) -> None:
        self.pool: SlabPool[S] = SlabPool()
        self.offsets: dict[int, int] = {}  # per value: its first byte in a slab, where a block begins
        self.slab_bytes = 0
        for value, size in size_bytes.items():
            self.offsets[value] = self.slab_bytes
            self.slab_bytes += ceil(size / BLOCK_BYTES) * BLOCK_BYTES

    def begin(self) -> Session:
        """Return a session for one step. Raises OffloadError where the tier has no room."""
        slab = self.pool.take()
        if slab is None:
            try:
                slab = self._new_slab()
            except BaseException:
                self.pool.put_back(None)
                raise
        return self._new_session(slab)

    @abstractmethod
    def _new_slab(self) -> S:
        """Return a slab of `slab_bytes`. Raises OffloadError where the tier has no room."""

    @abstractmethod
    def _new_session(self, slab: S) -> Session:
        """Return a session that copies to `slab`, and puts it back into the pool when it ends."""
