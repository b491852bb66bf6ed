"""The lazy loop in a process of its own: it works while we search, and can be killed.

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
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO, Any

from remat_solvers.optimal.highs import Ended
from remat_solvers.optimal.lazy import LazyStages, Step
from remat_solvers.problem import Problem
from remat_solvers.result import Order

__all__ = ["Bounder", "child", "drive"]

CHILD = "from remat_solvers.optimal.bounding import child; child()"
LENGTH = struct.Struct("<Q")
FIRST_SLICE_S = 4.0  # for a program, before moments are added
LONGER = 2.0  # times as long for the next, where nothing could be added


@dataclass(frozen=True, slots=True)
class _Question:
    problem: Problem
    budget_bytes: int
    order: Order
    within_ns: int | None


class Bounder:
    """Bounds and points of the lazy loop, from another process. `close` it, or use it in a `with`."""

    def __init__(
        self, problem: Problem, budget_bytes: int, *, order: Order = Order.GIVEN, within_ns: int | None = None
    ) -> None:
        self._question = _Question(problem, budget_bytes, order, within_ns)
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: SimpleQueue[Step] = SimpleQueue()

    def __enter__(self) -> Bounder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the child; it begins at once."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self._say(self._question)

    @property
    def running(self) -> bool:
        """Whether more may come: the child works, or waits to be told something."""
        return self._process is not None and self._process.poll() is None

    def tell(self, sequence: Sequence[int], time_ns: int) -> None:
        """A plan within the budget is known: only faster ones are of interest, and bounds that come near."""
        self._say((list(sequence), time_ns))

    def poll(self) -> list[Step]:
        """What has come since the last time; never waits."""
        steps = []
        with contextlib.suppress(Empty):
            while True:
                steps.append(self._heard.get_nowait())
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


def drive(loop: LazyStages, inbox: SimpleQueue[Any], send: Callable[[Step], None]) -> None:
    """Step and refine until nothing is left to do; then wait to be told that there is."""
    slice_s = FIRST_SLICE_S

    def hear(*, wait: bool = False) -> None:
        with contextlib.suppress(Empty):
            while True:
                sequence, time_ns = inbox.get(block=wait)
                wait = False
                if loop.known_ns is None or time_ns < loop.known_ns:
                    loop.tell(sequence)

    def on_news(step: Step) -> bool:
        send(step)
        hear()
        return loop.known_ns is not None and loop.bound_ns >= loop.known_ns - loop.within_ns

    while True:
        hear()
        step = loop.step(slice_s, on_news=on_news)
        send(step)
        if step.done:
            hear(wait=True)
        elif (step.ended is Ended.LIMIT and step.sequence is None) or not loop.refine():
            slice_s *= LONGER


def child() -> None:
    """What the other process does."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    question: _Question = _read(source)
    inbox: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        while (message := _read(source)) is not None:
            inbox.put(message)
        os._exit(0)  # the caller is gone; whatever HiGHS does

    threading.Thread(target=listen, daemon=True).start()
    loop = LazyStages(question.problem, question.budget_bytes, order=question.order, within_ns=question.within_ns)
    drive(loop, inbox, lambda step: _write(sink, step))


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
