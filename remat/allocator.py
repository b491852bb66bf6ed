"""Measures the bytes that torch's allocator holds, exactly: for workspaces and peaks.

On a CPU the profiler reports every allocation and release of torch's allocator, the scratch memory of kernels included.
It does not report memory that oneDNN or MKL allocate by themselves, nor the release of memory that was allocated before
the recording. On CUDA the caching allocator counts requested bytes, and their peak is read.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

BLOCK_BYTES = 2**16  # less than the size from which glibc maps a block outside its heap
MAX_HEADER_BYTES = 32  # between two neighbouring blocks of the heap
MAX_FRAGMENTS = 1000  # with an allocator that never puts one block next to another, `warm_heap` gives up here


class Recording:
    """Changes of the bytes held on the CPU, in time order; filled when the `recording` ends."""

    def __init__(self) -> None:
        self.changes: list[int] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Record every change of the bytes that torch's CPU allocator holds."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    record = Recording()
    activities = [torch.profiler.ProfilerActivity.CPU]
    # Without `acc_events`, with which torch would build its tree of Python events at the end: ten times the work.
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        yield record
    results: Any = profiler.profiler.kineto_results
    cpu = torch._C._autograd.DeviceType.CPU
    events = [e for e in results.events() if e.name() == "[memory]" and e.device_type() == cpu]
    record.changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak_of(changes: Sequence[int]) -> int:
    """The most bytes held at any moment, beyond those held at the start."""
    return max(accumulate(changes, initial=0))


def peak_while(run: Callable[[], object], device: torch.device) -> int:
    """The peak, in bytes beyond those held at the start, while `run` runs on `device`."""
    if device.type == "cuda":
        return cuda_memory_of(run, device)[0]
    with recording() as record:
        run()
    return peak_of(record.changes)


def cuda_memory_of(run: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Return (peak, kept) bytes beyond those held at the start: at most, and after `run` while its result exists."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
    result = run()
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    del result
    return int(stats["requested_bytes.all.peak"] - before), int(stats["requested_bytes.all.current"] - before)


@contextmanager
def warm_heap(size_bytes: int) -> Iterator[None]:
    """Keep a free piece of `size_bytes`, which the system has provided already, in the heap of the C library.

    Large blocks are newly mapped and returned to the system when they are freed, and so is the top of the heap. Memory
    that the system has just provided is slow to fill: the system finds and clears it page by page, which may take
    longer than the op that fills it. A step in a training loop finds the memory that the previous step has freed; an op
    that runs alone does not. Here small blocks, which always come from the heap, are written one above the other, and
    all but the highest are freed: they merge into one piece, and the highest block keeps it from being returned. With
    other C libraries than glibc this has no effect.
    """
    blocks: list[bytearray] = []
    begin = end = fragments = 0
    while end - begin < size_bytes and fragments < MAX_FRAGMENTS:
        block = bytearray(BLOCK_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        if not 0 <= address - end <= MAX_HEADER_BYTES:  # the free piece that the previous blocks filled is full
            begin = address
            fragments += 1
        end = address + BLOCK_BYTES
        blocks.append(block)
    del blocks[:-1]
    yield
    blocks.clear()
