"""One step's traffic with a tier, and the four functions that emitted graphs call.

    offload(session, value, content)   start copying a value out
    fetch(session, value)              make its room on the device, start copying it back; gives the content
    arrive(session, value, content)    before it is read: wait for its fetch
    settle(session, value, content)    before it is freed: wait for every copy of it under way

A session belongs to one call of the module, from its forward to its backward, so several steps may be in flight. It
ends when the last graph that holds it lets go, however the step ends; its slab then serves the next step.
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

from remat.execute.offload.storage import Content
from remat.execute.offload.tiers import BLOCK_BYTES

__all__ = ["OffloadEngine", "Session", "SlabPool", "slab_offsets"]

S = TypeVar("S")

RECENT_STEPS = 16


class Session(ABC):
    """The copies of one step. Every method is called from the thread that computes."""

    @abstractmethod
    def offload(self, value: int, content: Content) -> None:
        """Start copying `content` to the tier; its device memory is needed until `settle`."""

    @abstractmethod
    def fetch(self, value: int) -> Content:
        """What was offloaded, in fresh memory of the device that fills until `arrive`."""

    @abstractmethod
    def wait_for_fetch(self, value: int) -> None:
        """Compute goes on when the fetch of `value` has ended. Raises OffloadError where it failed."""

    @abstractmethod
    def release(self, value: int, content: Content) -> None:
        """Compute goes on when no copy of `value` is under way. Raises OffloadError where one failed."""


class OffloadEngine(ABC):
    """Where the sessions of one program come from."""

    @abstractmethod
    def begin(self) -> Session:
        """A session for one step. Raises OffloadError where the tier has no room."""


class SlabPool(Generic[S]):
    """Slabs that wait for the next step: as many as the latest steps had in flight together."""

    def __init__(self) -> None:
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        self._free: list[S] = []
        self._out = 0
        self._together: deque[int] = deque(maxlen=RECENT_STEPS)
        self._lock = Lock()

    def take(self) -> S | None:
        """A slab used before, or None where the step has to make one. Every take is followed by a give."""
        with self._lock:
            self._out += 1
            self._together.append(self._out)
            return self._free.pop() if self._free else None

    def put_back(self, slab: S | None) -> None:
        """The step is over; keep `slab`, if it has one that is fit for use, for a later one."""
        with self._lock:
            self._out -= 1
            if slab is not None:
                self._free.append(slab)
            while self._free and len(self._free) + self._out > max(self._together, default=0):
                self._free.pop(0)

    @staticmethod
    def forget_all() -> None:
        """After a fork: the slabs are the parent's."""
        for pool in _POOLS:
            pool._forget()


_POOLS: WeakSet[SlabPool[Any]] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SlabPool.forget_all)


def slab_offsets(size_bytes: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """Per value its first byte in a slab, where a block begins, and the slab's size."""
    places: dict[int, int] = {}
    end = 0
    for value, size in size_bytes.items():
        places[value] = end
        end += ceil(size / BLOCK_BYTES) * BLOCK_BYTES
    return places, end
