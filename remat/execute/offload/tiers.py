"""Where offloaded values go on a machine whose device is the CPU: memory outside torch's allocator, or a file.

A slab holds all that one step offloads, each value at its own place; it is used again by later steps. Copies run on
worker threads, and release the interpreter while they move bytes.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import OffloadError

__all__ = ["Bytes", "DiskTier", "HostTier", "Slab", "Tier"]

Bytes = NDArray[np.uint8]


class Slab(ABC):
    """Room for what one step offloads. It is given back when the last reference to it goes."""

    @abstractmethod
    def write(self, place: int, source: Bytes) -> None:
        """Keep `source` at byte `place`. Raises OffloadError."""

    @abstractmethod
    def read(self, place: int, into: Bytes) -> None:
        """Fill `into` with what was written at byte `place`. Raises OffloadError unless it is exactly that."""


class Tier(ABC):
    """A kind of memory beside the device's."""

    name: str

    @abstractmethod
    def slab(self, size_bytes: int) -> Slab:
        """A slab of `size_bytes`. Raises OffloadError where there is no room."""


class HostTier(Tier):
    """Main memory that torch's allocator knows nothing of."""

    name = "host"

    def slab(self, size_bytes: int) -> Slab:
        try:
            return _HostSlab(np.empty(size_bytes, dtype=np.uint8))
        except MemoryError as error:
            raise OffloadError(self.name, size_bytes, f"no memory: {error}") from error


class _HostSlab(Slab):
    def __init__(self, room: Bytes) -> None:
        self._room = room

    def write(self, place: int, source: Bytes) -> None:
        np.copyto(self._room[place : place + len(source)], source)

    def read(self, place: int, into: Bytes) -> None:
        np.copyto(into, self._room[place : place + len(into)])


@dataclass(frozen=True)
class DiskTier(Tier):
    """Files in `folder` (None: where the system keeps temporary files).

    A file has no name (or loses it at once), so nothing is left behind however the process ends. Its room is taken
    when it is made, so that a full disk is found before the step and not in its middle. What is written is synced and
    dropped from the page cache: the bytes are on the disk, not in memory under another name. Every value is read back
    whole and with the checksum (CRC-32) that it was written with.
    """

    folder: Path | None = None

    name = "disk"

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))

    def slab(self, size_bytes: int) -> Slab:
        try:
            with tempfile.TemporaryFile(prefix="remat-", dir=self.folder, buffering=0) as file:
                slab = _DiskSlab(os.dup(file.fileno()))
        except OSError as error:
            raise OffloadError(self.name, size_bytes, f"no scratch file in {self.where}: {_why(error)}") from error
        try:
            _reserve(slab.fd, size_bytes)
        except OSError as error:
            raise OffloadError(self.name, size_bytes, f"no room in {self.where}: {_why(error)}") from error
        return slab

    @property
    def where(self) -> Path:
        """The folder."""
        return self.folder if self.folder is not None else Path(tempfile.gettempdir())


class _DiskSlab(Slab):
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._checksums: dict[int, int] = {}

    def write(self, place: int, source: Bytes) -> None:
        view, done = source.data, 0
        if not len(view):
            return  # its place is also the next value's
        self._checksums.pop(place, None)
        try:
            while done < len(view):
                count = os.pwrite(self.fd, view[done:], place + done)
                if count == 0:
                    raise OSError("the disk takes no more")
                done += count
            _to_disk(self.fd, place, len(view))
        except OSError as error:
            raise OffloadError("disk", len(view), f"writing failed after {done} bytes: {_why(error)}") from error
        self._checksums[place] = zlib.crc32(view)

    def read(self, place: int, into: Bytes) -> None:
        view, done = into.data, 0
        if not len(view):
            return
        try:
            while done < len(view):
                count = os.preadv(self.fd, [view[done:]], place + done)
                if count == 0:
                    raise OffloadError("disk", len(view), f"the scratch file ends after {done} bytes")
                done += count
        except OSError as error:
            raise OffloadError("disk", len(view), f"reading failed after {done} bytes: {_why(error)}") from error
        if zlib.crc32(view) != self._checksums.get(place):
            raise OffloadError("disk", len(view), "what was read back is not what was written (checksums differ)")

    def __del__(self) -> None:
        os.close(self.fd)


def _reserve(fd: int, size_bytes: int) -> None:
    if size_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size_bytes)
    else:
        os.ftruncate(fd, size_bytes)


def _to_disk(fd: int, place: int, size_bytes: int) -> None:
    """Write out what the system holds back, and let its memory go."""
    if hasattr(os, "posix_fadvise"):
        os.fdatasync(fd)
        os.posix_fadvise(fd, place, size_bytes, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(fd)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
