"""The recording of allocated bytes, on traces written by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remat.allocator import peak_of, peak_while, recording

CPU = torch.device("cpu")
KIB = 1024


def new(size_bytes: int) -> torch.Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8)


def overlapping() -> None:
    first = new(3 * KIB)
    second = new(5 * KIB)
    del first
    third = new(2 * KIB)
    del second, third


def one_after_the_other() -> None:
    for _ in range(5):
        new(7 * KIB)


def view_keeps_its_base() -> None:
    view = new(9 * KIB)[:10]
    second = new(KIB)
    del view, second


def resized() -> None:
    grown = new(KIB)
    grown.resize_(6 * KIB)  # a new block while the old one is copied
    del grown


def kept() -> torch.Tensor:
    return new(4 * KIB)


def inside_backward() -> None:
    class Allocates(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.detach().view_as(x)

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            new(30 * KIB)
            return grad

    x = torch.ones((), requires_grad=True)
    Allocates.apply(x).backward()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (overlapping, 8 * KIB),
        (one_after_the_other, 7 * KIB),
        (view_keeps_its_base, 10 * KIB),
        (resized, 7 * KIB),
        (kept, 4 * KIB),
        (lambda: None, 0),
    ],
)
def test_peaks_of_traces_written_by_hand(run: Callable[[], object], expected: int) -> None:
    assert peak_while(run, CPU) == expected


def test_the_backward_is_recorded() -> None:
    assert 30 * KIB <= peak_while(inside_backward, CPU) <= 31 * KIB


def test_memory_allocated_before_is_not_recorded() -> None:
    """Its release does not lower the recorded bytes. A step starts with gradients that are None."""
    held = [new(50 * KIB)]

    def run() -> None:
        held.clear()
        held.append(new(20 * KIB))

    assert peak_while(run, CPU) == 20 * KIB


def test_changes_are_in_order() -> None:
    with recording() as record:
        overlapping()
    assert record.changes == [3 * KIB, 5 * KIB, -3 * KIB, 2 * KIB, -5 * KIB, -2 * KIB]


@given(st.lists(st.tuples(st.integers(1, 2000), st.booleans()), max_size=30))
def test_peaks_of_random_traces(trace: list[tuple[int, bool]]) -> None:
    """Compared with a running sum: every step allocates a tensor, and first frees the oldest one where `frees`."""
    held = peak = 0
    sizes: list[int] = []
    for size, frees in trace:
        if frees and sizes:
            held -= sizes.pop(0)
        sizes.append(size)
        held += size
        peak = max(peak, held)

    def run() -> None:
        tensors: list[torch.Tensor] = []
        for size, frees in trace:
            if frees and tensors:
                tensors.pop(0)
            tensors.append(new(size))

    assert peak_while(run, CPU) == peak


@given(st.lists(st.integers(-100, 100)))
def test_peak_of(changes: list[int]) -> None:
    sums = [sum(changes[:i]) for i in range(len(changes) + 1)]
    assert peak_of(changes) == max(sums)
    assert all(b - a == c for (a, b), c in zip(pairwise(sums), changes, strict=True))


@contextmanager
def other_thread() -> Iterator[None]:
    """Run another thread that allocates and frees tensors all the time."""
    done = threading.Event()
    started = threading.Event()

    def work() -> None:
        while not done.is_set():
            tensors = [new(100 * KIB) for _ in range(5)]
            started.set()
            del tensors

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_other_threads_do_not_count() -> None:
    with other_thread():
        for _ in range(5):
            assert peak_while(overlapping, CPU) == 8 * KIB


def test_work_handed_to_torchs_own_threads_counts() -> None:
    threads = torch.get_num_threads()
    x = torch.ones(1 << 20)
    try:
        torch.set_num_threads(2)
        assert peak_while(lambda: x + 1, CPU) >= 4 << 20
    finally:
        torch.set_num_threads(threads)


def test_recordings_one_after_the_other_are_independent() -> None:
    first = [peak_while(overlapping, CPU) for _ in range(3)]
    assert first == [8 * KIB] * 3
