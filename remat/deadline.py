"""A time limit for code that has no clock of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["DeadlineError", "deadline"]

AGAIN_S = 5.0  # code that caught the error by mistake is interrupted again


class DeadlineError(BaseException):
    """The time is up. No Exception, so that the interrupted code does not take it for one of its own."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise DeadlineError in the block once `seconds` have passed; None: never.

    A timer signal interrupts the block, which Python delivers to the main thread only; in another thread, and where
    the system has no such timer, nothing happens.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    inside = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if inside:
            raise DeadlineError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), AGAIN_S)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
