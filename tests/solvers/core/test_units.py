"""Tests of budgets, links and sizes in the forms that people write."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remat_solvers.errors import BudgetError, InputError
from remat_solvers.problem import Link
from remat_solvers.units import format_bytes, format_ns, parse_budget, parse_link, parse_size


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (8_000_000_000, 8_000_000_000),
        (np.int64(5), 5),
        ("8000", 8000),
        ("8GiB", 8 * 2**30),
        ("800MB", 800_000_000),
        (" 1.5 gib ", 3 * 2**29),
        ("2kb", 2000),
        ("1TiB", 2**40),
        ("0.3KB", 300),  # exactly, though 0.3 * 1000 is not an integer in floating point
        ("60%", 600),
        ("12.55 %", 125),  # floor
        ("29%", 290),  # 0.29 * 1000 is below 290 in floating point
        ("250%", 2500),  # more than store-all is no error
    ],
)
def test_budgets(budget: str | int, expected: int) -> None:
    assert parse_budget(budget, 1000) == expected


@pytest.mark.parametrize(
    "budget",
    [
        *("", "lots", "8GiBB", "8 G", "%", "-", "60MB%", "60B%", "6 0%", "1e9", "nan", "inf", "NaN%", "0x10", "1_000"),
        *("٣GB", "--5", "5-", "8.GB", ".5GB", "9" * 100, "1" + "0" * 5000),
        *(1.5, float("nan"), float("inf"), 8e9, True, None, [8], b"8GiB", 10**4000),
    ],
)
def test_budgets_that_do_not_parse(budget: str) -> None:
    with pytest.raises(BudgetError, match="8GiB"):
        parse_budget(budget, 1000)


@pytest.mark.parametrize("budget", [0, -1, "0", "0%", "-5", "-8GiB", "-60%", "0.0GB", "0.01%", "0.5B", -(10**4000)])
def test_budgets_below_one_byte(budget: str | int) -> None:
    with pytest.raises(BudgetError, match="less than one byte"):
        parse_budget(budget, 1000)


@given(st.integers(1, 2**40), st.integers(1, 300), st.integers(0, 99))
def test_a_share_is_the_floor_of_exact_arithmetic(peak: int, percent: int, hundredths: int) -> None:
    expected = peak * (percent * 100 + hundredths) // 10_000
    if expected:
        assert parse_budget(f"{percent}.{hundredths:02}%", peak) == expected


@pytest.mark.parametrize("text", ["25GB/s", " 25 GB / s", "25000MB/s", "0.025TB/s", "25000000000B/s"])
def test_links(text: str) -> None:
    assert parse_link(text) == Link(25 * 10**9, 25 * 10**9)


@pytest.mark.parametrize("text", ["", "25", "25GB", "GB/s", "25GB/h", "-1GB/s", "0GB/s", "0.1B/s", "nanGB/s", "25/s"])
def test_links_that_do_not_parse(text: str) -> None:
    with pytest.raises(InputError, match="25GB/s"):
        parse_link(text)


def test_bits_are_not_bytes() -> None:
    with pytest.raises(InputError, match="bits"):
        parse_link("100Gb/s")


def test_formatted_sizes() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 5 * 2**20, 3 * 2**29)] == [
        *("0 B", "1023 B", "1.00 KiB", "5.00 MiB", "1.50 GiB")
    ]
    assert [format_ns(n) for n in (0, 1500, 9_999_000, 12_345_678, 3_600_000_000_000)] == [
        *("0.000 ms", "0.002 ms", "9.999 ms", "12.3 ms", "3,600,000.0 ms")
    ]
    assert parse_size("no size") is None
