"""Rules for every test: none may be skipped, torch runs on one thread, and the user's cache is not touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    # Before torch is imported: measured workspaces and times depend on the number of threads.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if not hasattr(config, "workerinput"):  # the workers of one run share its cache
        os.environ["REMAT_CACHE_DIR"] = tempfile.mkdtemp(prefix="remat-tests-")
    # A busy machine is slow, which is no fault of a test.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("any machine")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["REMAT_CACHE_DIR"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_skipped((yield))


def _fail_if_skipped(report: Report) -> Report:
    """Count a test that is skipped or expected to fail as a failure, because it looks green without a check."""
    if report.skipped or hasattr(report, "wasxfail"):
        report.longrepr = f"Tests must run and pass here, not be skipped or expected to fail: {report.longrepr}"
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)
    return report
