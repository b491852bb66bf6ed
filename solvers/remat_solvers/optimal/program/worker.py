"""The lazy loop (loop.py): in a process of its own, which works while we search and can be killed, or in this one.

HiGHS has been seen to be deaf to its limits, so nobody waits for it here. The child is a fresh interpreter, which needs
nothing of the caller's `__main__`. It is told of plans through its standard input and answers through its standard
output, each message a pickle behind its length; what a backend prints goes nowhere. It is in a session of its own, so
that Ctrl-C is for the caller, and ends by itself when the caller is gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import IO, Any

from remat_solvers.optimal.program.driver import Loop, Question
from remat_solvers.optimal.program.refinement import Step

__all__ = ["Bounder", "Bounding", "child"]

CHILD = "from remat_solvers.optimal.program.worker import child; child()"
LENGTH = struct.Struct("<Q")
FIRST_SLICE_S = 4.0  # for a program, before moments are added
FIRST_SLICE_HERE_S = 0.5


class Bounding:
    """The loop in this process, a turn for every `poll`; for small problems."""

    def __init__(self, question: Question, nodes: int | None = None) -> None:
        self._loop = Loop(question, FIRST_SLICE_HERE_S, nodes)

    @property
    def busy(self) -> bool:
        """Whether more may come without being told of a better plan."""
        return not self._loop.done

    def tell(self, sequence: Sequence[int], time_ns: int) -> None:
        """See `Loop.tell`."""
        self._loop.tell(sequence, time_ns)

    def poll(self, seconds: float) -> list[Step]:
        """Up to so many seconds of work."""
        return [self._loop.turn(seconds)] if self.busy else []

    def close(self) -> None:
        """Nothing to end."""


class Bounder:
    """Bounds and points of the lazy loop, from another process. `close` it, or use it in a `with`."""

    def __init__(self, question: Question) -> None:
        """Start the child; it begins at once."""
        self._heard: SimpleQueue[Step] = SimpleQueue()
        self._done = False
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self._say(question)

    def __enter__(self) -> Bounder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether more may come without being told of a better plan."""
        if self._process is None:
            return False
        return not self._heard.empty() or (not self._done and self._process.poll() is None)

    def tell(self, sequence: Sequence[int], time_ns: int) -> None:
        """See `Loop.tell`."""
        self._done = False
        self._say((list(sequence), time_ns))

    def poll(self, seconds: float = 0.0) -> list[Step]:
        """What has come since the last time; waits up to so many seconds for something to come."""
        steps = []
        with contextlib.suppress(Empty):
            steps.append(self._heard.get(timeout=seconds) if seconds > 0 else self._heard.get_nowait())
            while True:
                steps.append(self._heard.get_nowait())
        if steps:
            self._done = steps[-1].done
        return steps

    def close(self) -> None:
        """Kill the child."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _say(self, message: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended
                _write(self._process.stdin, message)

    def _listen(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed
            while (step := _read(pipe)) is not None:
                self._heard.put(step)


def _drive(loop: Loop, inbox: SimpleQueue[Any], send: Callable[[Step], None]) -> None:
    """Turn after turn; where nothing more can come, wait to be told."""

    def hear(*, wait: bool = False) -> None:
        with contextlib.suppress(Empty):
            while True:
                loop.tell(*inbox.get(block=wait))
                wait = False

    def on_news(step: Step) -> bool:
        send(step)
        hear()
        known_ns = loop.stages.known_ns
        return known_ns is not None and loop.stages.bound_ns >= known_ns - loop.stages.within_ns

    while True:
        hear(wait=loop.done)
        if not loop.done:
            send(loop.turn(on_news=on_news))


def child() -> None:
    """What the other process does."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    question: Question = _read(source)
    inbox: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        while (message := _read(source)) is not None:
            inbox.put(message)
        os._exit(0)  # the caller is gone; whatever HiGHS does

    threading.Thread(target=listen, daemon=True).start()
    _drive(Loop(question, FIRST_SLICE_S), inbox, lambda step: _write(sink, step))


def _write(pipe: IO[bytes], message: object) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(LENGTH.pack(len(content)) + content)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    """The next message; None at the end."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    content = pipe.read(LENGTH.unpack(head)[0])
    return pickle.loads(content)
