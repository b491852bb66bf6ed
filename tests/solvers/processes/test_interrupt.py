"""Ctrl-C, as a real signal, while a backend works in its thread or its process."""

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
        return "what it has"

    def stop() -> None:
        """Deaf to the first call, as a backend that has not started is."""
        calls.append(1)
        if len(calls) > 1:
            stopped.set()

    assert run_interruptibly(work, stop) == ("what it has", True)
    assert run_interruptibly(lambda: 5, stop) == (5, False)


def test_ctrl_c_at_the_very_end_loses_nothing() -> None:
    """The signal and the result come at the same time, in either order."""
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
    whole = True
"""


def test_ctrl_c_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in the middle; the module is whole afterwards."""
    (tmp_path / "slow_module.py").write_text(textwrap.dedent(SLOW_MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        import_uninterrupted("slow_module")
    timer.join()
    assert sys.modules.pop("slow_module").whole
    import_uninterrupted("json")


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0, lambda: None)


@pytest.mark.parametrize(
    ("solver", "problem", "budget", "seconds"), [("moccasin", "unet", "90%", 200), ("checkmate", "gpt", "70%", 30)]
)
def test_ctrl_c_ends_a_search_with_its_plan(
    solver: str, problem: str, budget: str, seconds: int, tmp_path: Path
) -> None:
    """The signal comes when the first progress is told; the process ends by itself, not by a signal of its own."""
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
