"""The memory budget, in any of the ways people say it."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Final, Literal, SupportsIndex

from remat_solvers.errors import BudgetError
from remat_solvers.problem import MAX_INT
from remat_solvers.units import parse_size

__all__ = ["MIN", "parse_budget", "read_budget"]

MIN: Final = "min"  # the smallest peak that can be reached

FORMS = "Write bytes (8000000000), a size (8GiB, 800MB) or a share of the store-all peak (60%)."


def parse_budget(budget: str | SupportsIndex, store_all_peak_bytes: int) -> int:
    """The budget in bytes, constants and reserve included: an int, "8GiB", "800MB", or "60%".

    "60%" is floor(60 % of `store_all_peak_bytes`). More than store-all needs is no error. Raises BudgetError where
    the budget does not parse or is less than one byte.
    """
    exact = _from_text(budget, store_all_peak_bytes) if isinstance(budget, str) else _from_int(budget)
    if exact < 1:
        raise BudgetError(f"budget {_shorten(budget)} is less than one byte. {FORMS}")
    if exact > MAX_INT:
        raise BudgetError(f"budget {_shorten(budget)} is more than 2**63 - 1 bytes. {FORMS}")
    return int(exact)


def read_budget(budget: str | SupportsIndex, store_all_peak_bytes: int) -> int | Literal["min"]:
    """The same, or "min": the smallest peak that a method finds a plan for."""
    return MIN if budget == MIN else parse_budget(budget, store_all_peak_bytes)


def _from_text(text: str, store_all_peak_bytes: int) -> Fraction:
    negative = text.strip().startswith("-")
    positive = text.strip().removeprefix("-")
    if positive.endswith("%"):
        share = positive.removesuffix("%").strip()
        number = None if share[-1:].isalpha() else parse_size(share)  # "60MB%" is neither
        exact = None if number is None else number / 100 * store_all_peak_bytes
    else:
        exact = parse_size(positive)
    if exact is None:
        raise BudgetError(f"budget {_shorten(text)} does not parse. {FORMS}")
    return -exact if negative else exact


def _from_int(budget: SupportsIndex) -> Fraction:
    try:
        if isinstance(budget, bool):
            raise TypeError
        return Fraction(operator.index(budget))
    except TypeError:
        raise BudgetError(f"budget {_shorten(budget)} is neither a whole number of bytes nor text. {FORMS}") from None


def _shorten(budget: object) -> str:
    """The budget for an error message; an int of thousands of digits would not even print."""
    if isinstance(budget, int) and abs(budget) > MAX_INT:
        return "beyond 64 bits"
    text = repr(budget)
    return text if len(text) <= 40 else text[:37] + "..."
