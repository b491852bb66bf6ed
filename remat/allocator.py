"""What torch's allocator really holds, to the byte: how workspaces and peaks are measured.

On CPU the profiler reports every allocation and release of torch's allocator, kernel scratch included; not what
oneDNN or MKL allocate by themselves, nor the release of what was allocated before the recording. On CUDA the
caching allocator counts requested bytes; its peak is read.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

__all__ = ["Recording", "peak_of", "peak_while", "recording", "warmed"]

BLOCK_BYTES = 2**16  # below what glibc maps apart from its heap
HEADER_BYTES = 32  # at most, between two of its blocks
MOST_HOLES = 1000  # of an allocator that puts no block next to another, no more is asked for


class Recording:
    """Changes of held bytes on the CPU, in time order; filled when the `recording` ends."""

    def __init__(self) -> None:
        self.changes: list[int] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Record every change of the bytes that torch's CPU allocator holds."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    record = Recording()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        yield record
    results: Any = profiler.profiler.kineto_results
    cpu = torch._C._autograd.DeviceType.CPU
    events = [e for e in results.events() if e.name() == "[memory]" and e.device_type() == cpu]
    record.changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak_of(changes: Sequence[int]) -> int:
    """The most bytes held at any moment, above what was held at the start."""
    return max(accumulate(changes, initial=0))


def peak_while(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes above the start while `run` runs on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_stats(device)["requested_bytes.all.peak"] - before)
    with recording() as record:
        run()
    return peak_of(record.changes)


@contextmanager
def warmed(size_bytes: int) -> Iterator[None]:
    """Meanwhile the heap of the C library has a free piece of `size_bytes` that the system has given already.

    Large blocks are mapped afresh and given back when they are freed, and so is the top of the heap. What was given
    just now is slow to fill: the system finds and clears it page by page, which may take longer than the op that fills
    it. A step in a training loop finds the memory that the step before has left; an op run on its own does not. Here
    small blocks, which always come from the heap, are touched, one above the other, and all but the highest are freed:
    they become one piece, and the highest keeps it from going back. Other C libraries than glibc take no harm.
    """
    blocks: list[bytearray] = []
    begin = end = holes = 0
    while end - begin < size_bytes and holes < MOST_HOLES:
        block = bytearray(BLOCK_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        if not 0 <= address - end <= HEADER_BYTES:  # the hole that the last ones filled is full
            begin = address
            holes += 1
        end = address + BLOCK_BYTES
        blocks.append(block)
    del blocks[:-1]
    yield
    blocks.clear()
