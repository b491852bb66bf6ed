"""Runs a backend in a thread, so that Ctrl-C reaches us at once, and the backend ends with what it has found.

The main thread waits on a queue. A `Thread.join` that Ctrl-C breaks off takes the thread for ended from then on (up to
Python 3.12), and a process that ends while a backend still works is aborted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TypeVar

POLL_S = 0.05
START_S = 5.0  # more than a thread takes to start
T = TypeVar("T")


def run_interruptibly(work: Callable[[], T], stop: Callable[[], None]) -> tuple[T, bool]:
    """The result of `work`, and whether the user pressed Ctrl-C before it returned.

    `stop` asks the backend to end; it is called repeatedly until that has happened. An error of `work` is raised here.
    """
    outcome: list[tuple[list[T], BaseException | None]] = []
    ended: SimpleQueue[None] = SimpleQueue()  # only wakes us: Ctrl-C can come between the get and the assignment
    begun = threading.Event()

    def run() -> None:
        begun.set()
        try:
            outcome.append(([work()], None))
        except BaseException as error:
            outcome.append(([], error))
        ended.put(None)

    thread = threading.Thread(target=run, daemon=True)
    interrupted = False
    try:
        thread.start()
    except KeyboardInterrupt:
        interrupted = True
        if not begun.wait(START_S):  # it came before the thread existed
            raise
    while True:
        try:  # around the loop: Ctrl-C can come between any two lines of it
            while not outcome:
                if interrupted:
                    stop()
                with suppress(Empty):
                    ended.get(timeout=POLL_S)
            thread.join()
            break
        except KeyboardInterrupt:
            interrupted = True
    result, error = outcome[0]
    if error is not None:
        raise error
    return result[0], interrupted


def import_uninterrupted(name: str) -> None:
    """Import a module, unless that is done already, and raise KeyboardInterrupt only after it.

    A Ctrl-C that breaks off the first import of an extension module makes this import, and every later one, an
    ImportError.
    """
    _, interrupted = run_interruptibly(lambda: import_module(name), lambda: None)
    if interrupted:
        raise KeyboardInterrupt
