"""Budgets, sizes, rates and times as people write and read them: "60%", "8GiB", "25GB/s", 1.50 GiB, 12.3 ms."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final, Literal, SupportsIndex

from remat_solvers.errors import BudgetError, InputError
from remat_solvers.problem import MAX_INT, Link

MIN: Final = "min"  # the budget that stands for the smallest peak that a method reaches
ANY_PEAK_BYTES = 10**15  # checks a budget before the store-all peak is known: even 0.01 % of it is a byte

UNITS: Mapping[str, int] = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
MAX_CHARACTERS = 40  # longer is no size anyone means, and slow to read as an exact number
NS_PER_MS = 1_000_000
BUDGET_FORMS = "Write bytes (8000000000), a size (8GiB, 800MB) or a share of the store-all peak (60%)."


def parse_size(text: str) -> Fraction | None:
    """Bytes, exactly: "8GiB", "800 MB", "1.5gb", "1024"; None where `text` is not a size. 1 GB is 1000**3 bytes."""
    match = NUMBER.fullmatch(text.strip()) if len(text) <= MAX_CHARACTERS else None
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
            f"link {text[:MAX_CHARACTERS]!r} is not a rate in bytes.{bits} Write it as 25GB/s or 12.5GiB/s."
        )
    if not 1 <= rate <= MAX_INT:
        raise InputError(f"link {text!r} must copy at least one byte per second, and less than 2**63. Try 25GB/s.")
    return Link(to_host_bytes_per_s=int(rate), to_device_bytes_per_s=int(rate))


def parse_budget(budget: str | SupportsIndex, store_all_peak_bytes: int) -> int:
    """The budget in bytes, constants and reserve included: an int, "8GiB", "800MB", or "60%".

    "60%" is floor(60 % of `store_all_peak_bytes`). More than store-all needs is no error. Raises BudgetError where
    the budget does not parse or is less than one byte.
    """
    exact = _budget_from_text(budget, store_all_peak_bytes) if isinstance(budget, str) else _budget_from_int(budget)
    if exact < 1:
        raise BudgetError(f"budget {_shorten(budget)} is less than one byte. {BUDGET_FORMS}")
    if exact > MAX_INT:
        raise BudgetError(f"budget {_shorten(budget)} is more than 2**63 - 1 bytes. {BUDGET_FORMS}")
    return int(exact)


def read_budget(budget: str | SupportsIndex, store_all_peak_bytes: int) -> int | Literal["min"]:
    """The budget in bytes, or "min" for the smallest peak that a method finds a plan for. Raises BudgetError."""
    if budget == MIN:
        return MIN
    try:
        return parse_budget(budget, store_all_peak_bytes)
    except BudgetError as error:
        raise BudgetError(f"{error} Or write min, for the smallest peak that is found.") from None


def _budget_from_text(text: str, store_all_peak_bytes: int) -> Fraction:
    negative = text.strip().startswith("-")
    positive = text.strip().removeprefix("-")
    if positive.endswith("%"):
        share = positive.removesuffix("%").strip()
        number = None if share[-1:].isalpha() else parse_size(share)  # "60MB%" is neither
        exact = None if number is None else number / 100 * store_all_peak_bytes
    else:
        exact = parse_size(positive)
    if exact is None:
        raise BudgetError(f"budget {_shorten(text)} does not parse. {BUDGET_FORMS}")
    return -exact if negative else exact


def _budget_from_int(budget: SupportsIndex) -> Fraction:
    try:
        if isinstance(budget, bool):
            raise TypeError
        return Fraction(operator.index(budget))
    except TypeError:
        raise BudgetError(
            f"budget {_shorten(budget)} is neither a whole number of bytes nor text. {BUDGET_FORMS}"
        ) from None


def _shorten(budget: object) -> str:
    """The budget for an error message; an int of thousands of digits would not even print."""
    if isinstance(budget, int) and abs(budget) > MAX_INT:
        return "beyond 64 bits"
    text = repr(budget)
    return text if len(text) <= 40 else text[:37] + "..."


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
