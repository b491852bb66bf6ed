"""What torch's allocator really holds, to the byte: how workspaces and peaks are measured.

On CPU the profiler reports every allocation and release of torch's allocator, kernel scratch included; not what
oneDNN or MKL allocate by themselves, nor the release of what was allocated before the recording. On CUDA the
caching allocator counts requested bytes; its peak is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

__all__ = ["Recording", "peak_of", "peak_while", "recording"]


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
