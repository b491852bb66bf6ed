"""A backend in a thread, so that Ctrl-C reaches us at once, and ends it with what it has.

Waiting is on a queue: `Thread.join` that Ctrl-C breaks off takes the thread for ended from then on (up to Python 3.12),
and a process that ends while a backend still works is aborted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TypeVar

__all__ = ["import_whole", "interruptible"]

POLL_S = 0.05
START_S = 5.0  # more than a thread takes to start
T = TypeVar("T")


def interruptible(work: Callable[[], T], stop: Callable[[], None]) -> tuple[T, bool]:
    """What `work` returns, and whether the user pressed Ctrl-C before it did.

    `stop` asks the backend to come to its end; it is called until that has happened. What `work` raises is raised here.
    """
    outcome: list[tuple[list[T], BaseException | None]] = []
    ended: SimpleQueue[None] = SimpleQueue()  # only wakes us: Ctrl-C can come between taking an item and having it
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
        if not begun.wait(START_S):  # it came before the thread was made
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


def import_whole(name: str) -> None:
    """Import a module, if need be, and let Ctrl-C wait for it.

    Where it breaks off the first import of an extension module, that is an ImportError, there and ever after.
    """
    _, interrupted = interruptible(lambda: import_module(name), lambda: None)
    if interrupted:
        raise KeyboardInterrupt
