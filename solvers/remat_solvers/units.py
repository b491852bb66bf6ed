"""Sizes and times as people write and read them: "8GiB", "25GB/s", 1.50 GiB, 12.3 ms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from remat_solvers.errors import InputError
from remat_solvers.problem import MAX_INT, Link

__all__ = ["format_bytes", "format_ns", "parse_link", "parse_size"]

UNITS: Mapping[str, int] = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
MOST_CHARACTERS = 40  # longer is no size anyone means, and slow to read as an exact number
NS_PER_MS = 1_000_000


def parse_size(text: str) -> Fraction | None:
    """Bytes, exactly: "8GiB", "800 MB", "1.5gb", "1024"; None where `text` is not a size. 1 GB is 1000**3 bytes."""
    match = NUMBER.fullmatch(text.strip()) if len(text) <= MOST_CHARACTERS else None
    if match is None or match[2].upper() not in UNITS:
        return None
    return Fraction(match[1]) * UNITS[match[2].upper()]


def parse_link(text: str) -> Link:
    """The link that copies "25GB/s" in each direction at once. Raises InputError where `text` is not a rate."""
    size, slash, second = text.strip().rpartition("/")
    rate = parse_size(size) if slash and second.strip() == "s" and size.rstrip().endswith("B") else None
    if rate is None:
        bits = " A small b means bits." if re.search(r"b\s*/", text) else ""
        raise InputError(
            f"link {text[:MOST_CHARACTERS]!r} is not a rate in bytes.{bits} Write it as 25GB/s or 12.5GiB/s."
        )
    if not 1 <= rate <= MAX_INT:
        raise InputError(f"link {text!r} must copy at least one byte per second, and less than 2**63. Try 25GB/s.")
    return Link(to_host_bytes_per_s=int(rate), to_device_bytes_per_s=int(rate))


def format_bytes(count: int) -> str:
    """Bytes for people: GiB, or the next smaller unit in which the number is at least 1."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def format_ns(duration: int) -> str:
    """Nanoseconds for people: ms."""
    ms = duration / NS_PER_MS
    return f"{ms:,.1f} ms" if ms >= 10 else f"{ms:.3f} ms"
