"""OpCosts costs: each distinct op signature is run alone, on synthetic tensors, on the real device.

The time of an op is the least of several runs in warm memory: what it allocates is there already, as a step in a
training loop finds what the step before has freed (`memory.warmed`; CUDA's caching allocator does so by itself). Memory
that the system has to give afresh is slower, by more than the op takes where the op is cheap, and how much of it a step
needs depends on the C library and not on the op. An op's workspace is what the allocator held at most during one run
beyond the outputs. Only one op's tensors exist at a time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from remat.allocator import recording, warmed
from remat.capture.costs.cache import Row, read_rows, write_rows
from remat.capture.costs.roofline import cpu_name
from remat.capture.joint import device_of, target_name, tensors_of
from remat.capture.rnn.ops import RUNTIME_CALLS, is_tape
from remat_solvers.errors import ExportError

__all__ = ["READS_WHOLE_STORAGE", "OpCosts", "measure_memory", "measure_ops", "signature_of", "synthetic_call"]

READS_WHOLE_STORAGE: frozenset[Any] = frozenset({torch.ops.aten.copy.default})
"""Ops that read all of the storage their first argument lies in."""

_LEAST_RUNS, _MOST_RUNS, _ENOUGH_NS = 3, 9, 10_000_000
_SLACK = 2**16  # bytes that are warm beside what an op allocates, for the allocator's own
_START, _END = 1_000_003, 1_000_033  # bytes of marker allocations around an op; primes no tensor is likely to have


@dataclass(frozen=True)
class OpCosts:
    """Costs of one execution of an op."""

    time_ns: int  # least of several runs
    spread_ns: int  # median minus least
    workspace_bytes: int
    kept_bytes: int  # held after the op, its outputs alive


def measure_ops(nodes: Sequence[fx.Node]) -> dict[fx.Node, OpCosts]:
    """Costs per node; nodes with equal signatures are measured once, known ones are read from the cache."""
    keys = {node: signature_of(node) for node in nodes}
    first = {key: node for node, key in reversed(keys.items())}
    rows = read_rows(first)
    missing = {key: node for key, node in first.items() if key not in rows}
    generators = _save_generators(missing.values())
    try:
        fresh = _measure_all(missing)
    finally:
        _restore_generators(generators)
    if fresh:
        write_rows(fresh)
        rows |= fresh
    return {node: OpCosts(*rows[key]) for node, key in keys.items()}


def signature_of(node: fx.Node) -> str:
    """What the costs of an op depend on: op, shapes, strides, dtypes, other arguments, device, threads, torch."""
    device = device_of(node)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()} x{torch.get_num_threads()}"
    arguments = [_words(a) for a in (*node.args, *sorted(node.kwargs.items()))]
    if node.target in READS_WHOLE_STORAGE:
        arguments.append(tensors_of(node.all_input_nodes[0])[0].untyped_storage().nbytes())
    return json.dumps([target_name(node), arguments, where, torch.__version__])


def _words(argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        return _words(argument.meta["val"]) if "val" in argument.meta else str(argument.target)
    if isinstance(argument, Tensor):
        return [list(argument.shape), list(argument.stride()), str(argument.dtype), str(argument.device)]
    if isinstance(argument, (list, tuple)):
        return [_words(a) for a in argument]
    return "generator" if isinstance(argument, torch.Generator) else repr(argument)


def _measure_all(nodes: dict[str, fx.Node]) -> dict[str, Row]:
    memory: dict[str, tuple[int, int]] = {}
    on_cpu = {key: node for key, node in nodes.items() if device_of(node).type != "cuda"}
    if on_cpu:
        with recording() as record:
            for node in on_cpu.values():
                _run_between_markers(node)
        memory = dict(zip(on_cpu, _windows(record.changes), strict=True))
    for key in nodes.keys() - on_cpu.keys():
        memory[key] = _cuda_memory(nodes[key])
    rows: dict[str, Row] = {}
    for key, node in nodes.items():
        peak, kept = memory[key]
        times = _timed(node, peak + _SLACK if key in on_cpu else 0)
        rows[key] = (*times, max(0, peak - _created_bytes(node)), kept)
    return rows


def _timed(node: fx.Node, room_bytes: int) -> tuple[int, int]:
    """(least, median - least) of several runs, in ns; each begins with `room_bytes` of the heap free and warm."""
    device = device_of(node)
    clock = _cuda_clock(device) if device.type == "cuda" else _clock
    call = synthetic_call(node, repeatable=True)
    runs: list[int] = []
    call()
    while len(runs) < _LEAST_RUNS or (len(runs) < _MOST_RUNS and sum(runs) < _ENOUGH_NS):
        with warmed(room_bytes):
            runs.append(clock(call))
    return min(runs), int(statistics.median(runs)) - min(runs)


def _clock(call: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


def _cuda_clock(device: torch.device) -> Callable[[Callable[[], object]], int]:
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
    """(peak, kept) bytes of one execution, inputs not counted."""
    if device_of(node).type == "cuda":
        return _cuda_memory(node)
    with recording() as record:
        _run_between_markers(node)
    return _windows(record.changes)[0]


def _run_between_markers(node: fx.Node) -> None:
    call = synthetic_call(node)
    torch.empty(_START, dtype=torch.uint8)
    made = call()
    torch.empty(_END, dtype=torch.uint8)
    del made


def _windows(changes: Sequence[int]) -> list[tuple[int, int]]:
    """(peak, kept) bytes between each pair of markers."""
    windows: list[tuple[int, int]] = []
    begin = -1
    for index, change in enumerate(changes):
        if change == _START:
            begin = index + 2  # after its release
        elif change == _END and begin >= 0:
            held = list(accumulate(changes[begin:index], initial=0))
            windows.append((max(held), held[-1]))
            begin = -1
    return windows


def _cuda_memory(node: fx.Node) -> tuple[int, int]:
    device = device_of(node)
    call = synthetic_call(node)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
    made = call()
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    del made
    return stats["requested_bytes.all.peak"] - before, stats["requested_bytes.all.current"] - before


def _created_bytes(node: fx.Node) -> int:
    """Bytes of the storages a node makes, as fake tensors tell."""
    known = {t.untyped_storage()._cdata for read in node.all_input_nodes for t in tensors_of(read)}
    made = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in tensors_of(node)
        if t.untyped_storage()._cdata not in known
    }
    return sum(made.values())


def synthetic_call(node: fx.Node, *, repeatable: bool = False) -> Callable[[], object]:
    """The op on synthetic inputs of its own; with `repeatable` ready to be called several times."""
    target: Any = RUNTIME_CALLS.get(node.target, node.target)
    made: dict[fx.Node, Any] = {}

    def value_of(read: fx.Node) -> Any:
        if read not in made:
            whole = node.target in READS_WHOLE_STORAGE and read is node.args[0]
            made[read] = _whole(read.meta["val"]) if whole else _synthetic(read, repeatable)
        return made[read]

    args = _with_own_generators(fx.map_arg(node.args, value_of))
    kwargs = _with_own_generators(fx.map_arg(node.kwargs, value_of))

    def call() -> object:
        try:
            with torch.no_grad(), torch._C._DisableAutocast():
                return target(*args, **kwargs)
        except Exception as error:
            raise ExportError(
                f"{node.target} could not be timed on synthetic inputs ({error}); use costs='roofline'"
            ) from error

    return call


def _with_own_generators(arguments: Any) -> Any:
    """Generators of the user's replaced by others: measuring draws."""
    own = lambda g: torch.Generator(g.device)  # noqa: E731
    return torch.utils._pytree.tree_map_only(torch.Generator, own, arguments)


def _synthetic(node: fx.Node, repeatable: bool) -> Any:
    if node.op == "get_attr":
        held: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        return held
    if is_tape(node):
        forward = node.args[0]
        assert isinstance(forward, fx.Node)
        tape = synthetic_call(forward)()[-1]  # type: ignore[index]
        tape.keep = repeatable
        return tape
    return torch.utils._pytree.tree_map_only(Tensor, _like, node.meta["val"])


def _whole(fake: Tensor) -> Tensor:
    """As `_like`, at its place in a storage as large as the one it lies in."""
    base = torch.zeros(fake.untyped_storage().nbytes() // fake.element_size(), dtype=fake.dtype, device=fake.device)
    return base.as_strided(fake.shape, fake.stride(), fake.storage_offset())


def _like(fake: Tensor) -> Tensor:
    """A real tensor of the same shape, strides, dtype and device; valid as an index, harmless as a number."""
    extent = 1 + sum((n - 1) * s for n, s in zip(fake.shape, fake.stride(), strict=True)) if fake.numel() else 0
    base = torch.empty(extent, dtype=fake.dtype, device=fake.device)
    base.fill_(0.5 if fake.is_floating_point() or fake.is_complex() else fake.dtype is torch.bool)
    return base.as_strided(fake.shape, fake.stride())


def _save_generators(nodes: Iterable[fx.Node]) -> tuple[Tensor, dict[torch.device, Tensor]]:
    devices = {device for device in map(device_of, nodes) if device.type == "cuda"}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


def _restore_generators(saved: tuple[Tensor, dict[torch.device, Tensor]]) -> None:
    torch.set_rng_state(saved[0])
    for device, state in saved[1].items():
        torch.cuda.set_rng_state(state, device)
