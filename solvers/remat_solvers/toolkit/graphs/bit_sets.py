"""Represents sets of small indices as integers, with one bit per index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def set_of(indices: Iterable[int]) -> int:
    """The set of these indices, as an integer."""
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits


def indices_of(bits: int) -> Iterator[int]:
    """The indices in a set, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
