"""Tests of child processes: answers in a folder, messages over pipes, and an end that leaves no process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remat_solvers.processes.child import FolderChild, PipeChild
from tests.paths import child_environment

PATIENCE_S = 60.0  # on a busy machine
TARGETS = """
import os, subprocess, sys, time
from remat_solvers.processes.child import connect_to_caller, leave_answer

def answer(folder, *arguments):
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    leave_answer(folder, {"arguments": arguments})
    leave_answer(folder, {"arguments": arguments, "input": open(os.path.join(folder, "input")).read()})

def crash(folder):
    raise RuntimeError("no such luck")

def hang(folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    leave_answer(folder, other.pid)
    time.sleep(600)

def echo():
    connection = connect_to_caller()
    print("this is not a message", flush=True)
    connection.send(os.getpid())
    while True:
        for message in connection.receive(None):
            connection.send([message])

def large():
    connection = connect_to_caller()
    first = connection.receive_one()
    connection.send(first)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)


def wait_until_gone(pid: int) -> None:
    """Fails where the process still runs after a while; a zombie counts as ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def test_the_latest_answer_and_the_output_are_kept() -> None:
    with FolderChild("child_targets:answer") as child:
        (child.folder / "input").write_text("for the child")
        assert child.answer() is None
        child.start("one", "two")
        assert child.wait(PATIENCE_S) == 0
        assert child.answer() == {"arguments": ("one", "two"), "input": "for the child"}
        assert child.output() == "to stdout\nto stderr\n"
        assert not child.running
    assert not child.folder.exists()


def test_a_crash_has_no_answer() -> None:
    with FolderChild("child_targets:crash") as child:
        child.start()
        assert child.wait(PATIENCE_S) == 1
        assert child.answer() is None
        assert child.output().strip().endswith("RuntimeError: no such luck")


def test_closing_kills_what_the_child_started() -> None:
    with FolderChild("child_targets:hang") as child:
        child.start()
        deadline = time.monotonic() + PATIENCE_S
        while child.answer() is None and time.monotonic() < deadline:
            assert child.wait(0.05) is None
        other = child.answer()
        assert child.running
    wait_until_gone(other)
    child.close()  # a second call does nothing


def test_messages_arrive_in_order_and_apart_from_output() -> None:
    with PipeChild("child_targets:echo") as child:
        assert child.connection.receive_one() > 0
        assert child.connection.receive() == []
        for number in range(3):
            child.connection.send(number)
        received: list[object] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(received) < 3 and time.monotonic() < deadline:
            received += child.connection.receive(1.0)
        assert received == [[0], [1], [2]]
        assert not child.connection.pending
        assert child.running
    child.connection.send("lost")


def test_a_message_larger_than_a_pipe_does_not_block() -> None:
    content = b"x" * 10_000_000
    with PipeChild("child_targets:large") as child:
        child.connection.send(content)
        assert child.connection.receive_one() == content


def test_a_child_ends_with_its_caller() -> None:
    """The caller is killed, so it cannot close the child."""
    code = (
        "import os, signal; from remat_solvers.processes.child import PipeChild\n"
        "child = PipeChild('child_targets:echo')\n"
        "print(child.connection.receive_one(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = os.pathsep.join([sys.path[0], child_environment()["PYTHONPATH"]])
    caller = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(PYTHONPATH=path),
        capture_output=True,
        check=False,
        text=True,
    )
    wait_until_gone(int(caller.stdout))
