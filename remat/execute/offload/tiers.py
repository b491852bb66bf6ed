"""Where offloaded values go on a machine whose device is the CPU: memory outside torch's allocator, or a file.

A slab holds all that one step offloads, each value at its own place; it is used again by later steps. Copies run on
worker threads, and release the interpreter while they move bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import OffloadError

__all__ = ["BLOCK_BYTES", "CHUNK_BYTES", "Bytes", "DiskTier", "HostTier", "Slab", "Tier"]

Bytes = NDArray[np.uint8]

BLOCK_BYTES = 2**12  # a multiple of what disks write at once
CHUNK_BYTES = 2**21


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
    when it is made, so that a full disk is found before the step and not in its middle. Bytes go past the system's page
    cache (O_DIRECT), which would keep a core busy that compute needs. A file system that cannot do that writes through
    the cache, and drops what it has synced: the bytes are on the disk, not in memory under another name. Every value is
    read back whole and with the checksum (CRC-32) that it was written with.
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
    """A file of whole blocks; what a value has before its first and after its last one stays in memory.

    Direct access wants aligned memory, which torch's is not: bytes pass through a chunk per direction, one thread each.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._direct = _go_direct(fd)
        self._outgoing, self._incoming = (np.frombuffer(mmap.mmap(-1, CHUNK_BYTES), np.uint8) for _ in range(2))
        self._edges: dict[int, tuple[Bytes, Bytes]] = {}
        self._checksums: dict[int, int] = {}

    def write(self, place: int, source: Bytes) -> None:
        if not len(source):
            return  # its place is also the next value's
        self._checksums.pop(place, None)
        done, end = _whole_blocks(place, len(source))
        self._edges[place] = source[:done].copy(), source[end:].copy()
        begin, checksum = done, zlib.crc32(source[:done].data)
        try:
            while done < end:
                chunk = self._outgoing[: end - done]
                np.copyto(chunk, source[done : done + len(chunk)])
                count = _blocks(os.pwrite(self.fd, chunk.data, place + done))
                if count == 0:
                    raise OSError("the disk takes no more")
                checksum = zlib.crc32(chunk[:count].data, checksum)
                done += count
            if not self._direct:
                _to_disk(self.fd, place + begin, end - begin)
        except OSError as error:
            raise OffloadError("disk", len(source), f"writing failed after {done} bytes: {_why(error)}") from error
        self._checksums[place] = zlib.crc32(source[end:].data, checksum)

    def read(self, place: int, into: Bytes) -> None:
        if not len(into):
            return
        done, end = _whole_blocks(place, len(into))
        if place in self._edges:
            into[:done], into[end:] = self._edges[place]
        checksum = zlib.crc32(into[:done].data)
        try:
            while done < end:
                chunk = self._incoming[: end - done]
                count = _blocks(os.preadv(self.fd, [chunk.data], place + done))
                if count == 0:
                    raise OffloadError("disk", len(into), f"the scratch file ends after {done} bytes")
                np.copyto(into[done : done + count], chunk[:count])
                checksum = zlib.crc32(chunk[:count].data, checksum)
                done += count
        except OSError as error:
            raise OffloadError("disk", len(into), f"reading failed after {done} bytes: {_why(error)}") from error
        if zlib.crc32(into[end:].data, checksum) != self._checksums.get(place):
            raise OffloadError("disk", len(into), "what was read back is not what was written (checksums differ)")

    def __del__(self) -> None:
        os.close(self.fd)


def _go_direct(fd: int) -> bool:
    """Whether the file takes direct access from now on. Some file systems say so and then refuse the first block."""
    if not hasattr(os, "O_DIRECT"):
        return False
    import fcntl  # not everywhere

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        os.pwrite(fd, mmap.mmap(-1, BLOCK_BYTES), 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return False
    return True


def _whole_blocks(place: int, size_bytes: int) -> tuple[int, int]:
    """Where, of `size_bytes` at byte `place` of a file, the whole blocks begin and end."""
    begin = min(-place % BLOCK_BYTES, size_bytes)
    return begin, begin + _blocks(size_bytes - begin)


def _blocks(size_bytes: int) -> int:
    """The bytes of the whole blocks in `size_bytes`."""
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES


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
