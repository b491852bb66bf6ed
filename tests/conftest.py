"""What holds for every test: nothing is skipped, and torch runs on one thread."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure() -> None:
    # Before torch is imported: measured workspaces and times depend on the number of threads.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_skipped((yield))


def _fail_if_skipped(report: Report) -> Report:
    """A skipped or expectedly failing test looks green but has not run: count it as a failure."""
    if report.skipped or hasattr(report, "wasxfail"):
        report.longrepr = f"Tests must run and pass here, not be skipped or expected to fail: {report.longrepr}"
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)
    return report
