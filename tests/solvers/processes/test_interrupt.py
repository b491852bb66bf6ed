"""Tests of Ctrl-C as a real signal, while a backend works in a thread or a method in a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from remat_solvers.formats import load_plan
from remat_solvers.processes.interrupt import import_uninterrupted, run_interruptibly
from tests.paths import CORPUS, child_environment


def test_ctrl_c_stops_the_work_and_keeps_what_it_returns() -> None:
    stopped = threading.Event()
    calls: list[int] = []

    def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(60)
        return "the best so far"

    def stop() -> None:
        """Ignores the first call, as a backend that has not started does."""
        calls.append(1)
        if len(calls) > 1:
            stopped.set()

    assert run_interruptibly(work, stop) == ("the best so far", True)
    assert run_interruptibly(lambda: 5, stop) == (5, False)


def test_ctrl_c_at_the_very_end_loses_nothing() -> None:
    """The signal and the result arrive at the same time, in either order."""
    calls = 0

    def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 7

    def stop() -> None:
        nonlocal calls
        calls += 1
        assert calls < 200, "the result was lost"

    for _ in range(300):
        calls = 0
        assert run_interruptibly(work, stop) == (7, True)


SLOW_MODULE = """
    import time

    for _ in range(100):
        time.sleep(0.005)
    complete = True
"""


def test_ctrl_c_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives in the middle of the import; the module is complete afterwards."""
    (tmp_path / "slow_module.py").write_text(textwrap.dedent(SLOW_MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        import_uninterrupted("slow_module")
    timer.join()
    assert sys.modules.pop("slow_module").complete
    import_uninterrupted("json")


def test_an_error_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0, lambda: None)


@pytest.mark.parametrize(
    ("solver", "problem", "budget", "seconds"), [("moccasin", "unet", "90%", 200), ("checkmate", "gpt", "70%", 30)]
)
def test_ctrl_c_ends_a_search_with_its_plan(
    solver: str, problem: str, budget: str, seconds: int, tmp_path: Path
) -> None:
    """The signal arrives after the first report of progress; the process exits by itself, not by a signal."""
    plan = tmp_path / "plan.json"
    command = [sys.executable, "-m", "remat", "solve", str(CORPUS / f"{problem}.json"), "--budget", budget]
    command += ["--solver", solver, "--time-limit", str(seconds), "-o", str(plan)]
    with subprocess.Popen(
        command, env=child_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert "best" in first, first + stderr
    assert process.returncode == 0, stderr
    assert "The user interrupted." in stdout
    assert load_plan(plan).peak_bytes > 0
