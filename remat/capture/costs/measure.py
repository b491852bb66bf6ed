"""Measured costs: each distinct op signature is run alone, on synthetic tensors, on the real device.

The time of an op is the minimum of several runs in warm memory: the memory that the op allocates is already mapped, as
in a training loop, where a step reuses the memory that the step before has freed (`warm_heap` provides it; the
caching allocator of CUDA does so by itself). Memory that the system has to map first is slower, by more than the time
of a cheap op, and how much of it a step needs depends on the C library and not on the op. The workspace of an op is the
peak of allocated bytes during one run, minus its outputs. The tensors of only one op exist at a time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from remat.allocator import cuda_memory_of, recording, warm_heap
from remat.capture.costs.cache import Row, device_name, read_rows, write_rows
from remat.capture.costs.synthetic import READS_WHOLE_STORAGE, synthetic_call
from remat.capture.joint import device_of, storage_of, target_name, tensors_of

_MIN_RUNS, _MAX_RUNS = 3, 9
_ENOUGH_NS = 10_000_000  # no further run where the runs took so long together
_ALLOCATOR_BYTES = 2**16  # warm memory for the allocator's own use, beside the op's
_START_BYTES, _END_BYTES = 1_000_003, 1_000_033  # sizes of marker allocations: primes that no tensor is likely to have


@dataclass(frozen=True)
class OpCosts:
    """Costs of one execution of an op."""

    time_ns: int  # minimum of several runs
    spread_ns: int  # median minus minimum
    workspace_bytes: int
    kept_bytes: int  # allocated after the op, while its outputs are alive


def measure_ops(nodes: Sequence[fx.Node]) -> dict[fx.Node, OpCosts]:
    """Return the costs of each node.

    Nodes with equal signatures are measured once, and costs that the cache knows are not measured. The states of the
    random generators do not change. Raises ExportError where an op cannot be run on synthetic inputs.
    """
    keys = {node: signature_of(node) for node in nodes}
    first = {key: node for node, key in reversed(keys.items())}
    rows = read_rows(first)
    missing = {key: node for key, node in first.items() if key not in rows}
    devices = {device_of(node) for node in missing.values()}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        measured = _measure_missing(missing)
    if measured:
        write_rows(measured)
        rows |= measured
    return {node: OpCosts(*rows[key]) for node, key in keys.items()}


def signature_of(node: fx.Node) -> str:
    """Return a key of all that the costs of an op depend on.

    These are the op, the shapes, strides and dtypes of its tensors, its other arguments, the device, the number of
    threads, and the version of torch.
    """
    device = device_of(node)
    hardware = device_name(device) + ("" if device.type == "cuda" else f" x{torch.get_num_threads()}")
    arguments = [_describe(a) for a in (*node.args, *sorted(node.kwargs.items()))]
    if node.target in READS_WHOLE_STORAGE:
        arguments.append(tensors_of(node.all_input_nodes[0])[0].untyped_storage().nbytes())
    return json.dumps([target_name(node), arguments, hardware, torch.__version__])


def _describe(argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        return _describe(argument.meta["val"]) if "val" in argument.meta else str(argument.target)
    if isinstance(argument, Tensor):
        return [list(argument.shape), list(argument.stride()), str(argument.dtype), str(argument.device)]
    if isinstance(argument, (list, tuple)):
        return [_describe(a) for a in argument]
    return "generator" if isinstance(argument, torch.Generator) else repr(argument)


def _measure_missing(nodes: dict[str, fx.Node]) -> dict[str, Row]:
    memory: dict[str, tuple[int, int]] = {}
    on_cpu = {key: node for key, node in nodes.items() if device_of(node).type != "cuda"}
    if on_cpu:
        with recording() as record:
            for node in on_cpu.values():
                _run_between_markers(node)
        memory = dict(zip(on_cpu, _between_markers(record.changes), strict=True))
    for key in nodes.keys() - on_cpu.keys():
        memory[key] = cuda_memory_of(synthetic_call(nodes[key]), device_of(nodes[key]))
    rows: dict[str, Row] = {}
    for key, node in nodes.items():
        peak, kept = memory[key]
        times = measure_time(node, peak + _ALLOCATOR_BYTES if key in on_cpu else 0)
        rows[key] = (*times, max(0, peak - _created_bytes(node)), kept)
    return rows


def measure_time(node: fx.Node, warm_bytes: int) -> tuple[int, int]:
    """Return (minimum, median - minimum) of several runs, in ns. Each starts with `warm_bytes` of warm heap."""
    device = device_of(node)
    clock = cuda_clock(device) if device.type == "cuda" else cpu_clock
    call = synthetic_call(node, repeatable=True)
    runs: list[int] = []
    call()
    while len(runs) < _MIN_RUNS or (len(runs) < _MAX_RUNS and sum(runs) < _ENOUGH_NS):
        with warm_heap(warm_bytes):
            runs.append(clock(call))
    return min(runs), int(statistics.median(runs)) - min(runs)


def cpu_clock(call: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


def cuda_clock(device: torch.device) -> Callable[[Callable[[], object]], int]:
    def clock(call: Callable[[], object]) -> int:
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(device)
        begin.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return int(begin.elapsed_time(end) * 1e6)

    return clock


def measure_memory(node: fx.Node) -> tuple[int, int]:
    """Return (peak, kept) bytes of one execution: allocated at most, and after it, without the inputs."""
    if device_of(node).type == "cuda":
        return cuda_memory_of(synthetic_call(node), device_of(node))
    with recording() as record:
        _run_between_markers(node)
    return _between_markers(record.changes)[0]


def _run_between_markers(node: fx.Node) -> None:
    call = synthetic_call(node)
    torch.empty(_START_BYTES, dtype=torch.uint8)
    outputs = call()
    torch.empty(_END_BYTES, dtype=torch.uint8)
    del outputs


def _between_markers(changes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (peak, kept) bytes between each pair of marker allocations."""
    figures: list[tuple[int, int]] = []
    begin = -1
    for index, change in enumerate(changes):
        if change == _START_BYTES:
            begin = index + 2  # after the marker's release
        elif change == _END_BYTES and begin >= 0:
            allocated = list(accumulate(changes[begin:index], initial=0))
            figures.append((max(allocated), allocated[-1]))
            begin = -1
    return figures


def _created_bytes(node: fx.Node) -> int:
    """Return the bytes of the storages that a node creates, according to its fake tensors."""
    inputs = {storage_of(t) for read in node.all_input_nodes for t in tensors_of(read)}
    sizes = {storage_of(t): t.untyped_storage().nbytes() for t in tensors_of(node)}
    return sum(size for storage, size in sizes.items() if storage not in inputs)
