"""A backend in a thread, so that Ctrl-C reaches us at once, and ends it with what it has.

Waiting is on a queue: `Thread.join` that Ctrl-C breaks off takes the thread for ended from then on (up to Python 3.12),
and a process that ends while a backend still works is aborted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

__all__ = ["interruptible"]

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
    while not outcome:
        try:
            if interrupted:
                stop()
            ended.get(timeout=POLL_S)
        except Empty:
            pass
        except KeyboardInterrupt:
            interrupted = True
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result[0], interrupted
