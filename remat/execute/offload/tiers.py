"""Tiers for offloaded values on a machine whose device is the CPU: memory outside torch's allocator, or a file.

A slab holds all values that one step offloads, each at its own offset; later steps use it again. Copies run on worker
threads, and release Python's interpreter lock while they move bytes.
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

Bytes = NDArray[np.uint8]

BLOCK_BYTES = 2**12  # direct access to files needs whole blocks; a multiple of the block size of disks
CHUNK_BYTES = 2**21  # of aligned memory, through which bytes pass to and from files


class Slab(ABC):
    """Memory for the values that one step offloads. It is freed with the last reference to the slab."""

    @abstractmethod
    def write(self, offset: int, source: Bytes) -> None:
        """Store `source` at byte `offset`. Raises OffloadError where that fails."""

    @abstractmethod
    def read(self, offset: int, target: Bytes) -> None:
        """Fill `target` with the bytes written at `offset`. Raises OffloadError where they cannot be read exactly."""


class Tier(ABC):
    """A kind of memory beside that of the device."""

    name: str

    @abstractmethod
    def slab(self, size_bytes: int) -> Slab:
        """Return a slab of `size_bytes`. Raises OffloadError where the tier has no room."""


class HostTier(Tier):
    """Main memory outside torch's allocator."""

    name = "host"

    def slab(self, size_bytes: int) -> Slab:
        try:
            return _HostSlab(np.empty(size_bytes, dtype=np.uint8))
        except MemoryError as error:
            raise OffloadError(self.name, size_bytes, f"no memory: {error}") from error


class _HostSlab(Slab):
    def __init__(self, memory: Bytes) -> None:
        self._memory = memory

    def write(self, offset: int, source: Bytes) -> None:
        np.copyto(self._memory[offset : offset + len(source)], source)

    def read(self, offset: int, target: Bytes) -> None:
        np.copyto(target, self._memory[offset : offset + len(target)])


@dataclass(frozen=True)
class DiskTier(Tier):
    """Files in `folder` (None: the system's folder for temporary files).

    A file has no name (or loses it at once), so nothing remains however the process ends. Its disk space is reserved
    when it is created, so that a full disk is noticed before the step and not in its middle. Bytes bypass the system's
    page cache (O_DIRECT), which would occupy a core that compute needs. Where the file system does not support that,
    bytes are written through the cache, and synced pages are dropped from it, so that they do not stay in memory.
    Every value is read back whole, and its checksum (CRC-32) is compared with that of the bytes written.
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
        """Return the folder."""
        return self.folder if self.folder is not None else Path(tempfile.gettempdir())


class _DiskSlab(Slab):
    """A file of whole blocks. The bytes of a value before its first and after its last whole block stay in memory.

    Direct access needs aligned memory, which torch's is not: bytes pass through one chunk per direction, each of which
    is used by one thread.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._direct = enable_direct_access(fd)
        self._outgoing, self._incoming = (np.frombuffer(mmap.mmap(-1, CHUNK_BYTES), np.uint8) for _ in range(2))
        self._edges: dict[int, tuple[Bytes, Bytes]] = {}
        self._checksums: dict[int, int] = {}

    def write(self, offset: int, source: Bytes) -> None:
        if not len(source):
            return  # its offset is also that of the next value
        self._checksums.pop(offset, None)
        done, end = _whole_blocks(offset, len(source))
        self._edges[offset] = source[:done].copy(), source[end:].copy()
        begin, checksum = done, zlib.crc32(source[:done].data)
        try:
            while done < end:
                chunk = self._outgoing[: end - done]
                np.copyto(chunk, source[done : done + len(chunk)])
                count = _blocks(os.pwrite(self.fd, chunk.data, offset + done))
                if count == 0:
                    raise OSError("the disk accepted no bytes")
                checksum = zlib.crc32(chunk[:count].data, checksum)
                done += count
            if not self._direct:
                _to_disk(self.fd, offset + begin, end - begin)
        except OSError as error:
            raise OffloadError("disk", len(source), f"writing failed after {done} bytes: {_why(error)}") from error
        self._checksums[offset] = zlib.crc32(source[end:].data, checksum)

    def read(self, offset: int, target: Bytes) -> None:
        if not len(target):
            return
        done, end = _whole_blocks(offset, len(target))
        if offset in self._edges:
            target[:done], target[end:] = self._edges[offset]
        checksum = zlib.crc32(target[:done].data)
        try:
            while done < end:
                chunk = self._incoming[: end - done]
                count = _blocks(os.preadv(self.fd, [chunk.data], offset + done))
                if count == 0:
                    raise OffloadError("disk", len(target), f"the scratch file ends after {done} bytes")
                np.copyto(target[done : done + count], chunk[:count])
                checksum = zlib.crc32(chunk[:count].data, checksum)
                done += count
        except OSError as error:
            raise OffloadError("disk", len(target), f"reading failed after {done} bytes: {_why(error)}") from error
        if zlib.crc32(target[end:].data, checksum) != self._checksums.get(offset):
            raise OffloadError("disk", len(target), "the bytes read back are not those written (checksums differ)")

    def __del__(self) -> None:
        os.close(self.fd)


def enable_direct_access(fd: int) -> bool:
    """Switch the file to direct access, and return whether that works.

    Some file systems accept the flag and then refuse the first block, so one block is written.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    import fcntl  # not available on every platform

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


def _whole_blocks(offset: int, size_bytes: int) -> tuple[int, int]:
    """Return where, within `size_bytes` at byte `offset` of a file, the whole blocks begin and end."""
    begin = min(-offset % BLOCK_BYTES, size_bytes)
    return begin, begin + _blocks(size_bytes - begin)


def _blocks(size_bytes: int) -> int:
    """Round `size_bytes` down to whole blocks."""
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES


def _reserve(fd: int, size_bytes: int) -> None:
    if size_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size_bytes)
    else:
        os.ftruncate(fd, size_bytes)


def _to_disk(fd: int, offset: int, size_bytes: int) -> None:
    """Write the cached pages of a range to the disk, and drop them from the cache."""
    if hasattr(os, "posix_fadvise"):
        os.fdatasync(fd)
        os.posix_fadvise(fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(fd)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
