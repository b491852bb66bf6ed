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
    ended: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()

    begun = threading.Event()

    def run() -> None:
        begun.set()
        try:
            ended.put(([work()], None))
        except BaseException as error:
            ended.put(([], error))

    thread = threading.Thread(target=run, daemon=True)
    interrupted = False
    try:
        thread.start()
    except KeyboardInterrupt:
        interrupted = True
        if not begun.wait(START_S):  # it came before the thread was made
            raise
    while True:
        try:
            if interrupted:
                stop()
            result, error = ended.get(timeout=POLL_S)
            break
        except Empty:
            pass
        except KeyboardInterrupt:
            interrupted = True
    thread.join()
    if error is not None:
        raise error
    return result[0], interrupted
