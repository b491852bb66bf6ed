"""A time limit for code that has no clock of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

__all__ = ["DeadlineError", "deadline"]

POLL_S = 0.01  # until the code is where it may be interrupted
AGAIN_S = 1.0  # for code that caught the error by mistake


class DeadlineError(BaseException):
    """The time is up. No Exception, so that the interrupted code does not take it for one of its own."""


@contextmanager
def deadline(seconds: float | None, within: tuple[ModuleType, ...]) -> Iterator[None]:
    """Raise DeadlineError in the block once `seconds` have passed (None: never) and code of a module `within` is at
    work, or of one in its package. Elsewhere, as in a finalizer, an error would be lost or leave things half done.

    A timer signal interrupts the block, which Python delivers to the main thread only; in another thread, and where
    the system has no such timer, nothing happens.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
        yield
        return
    places = tuple(str(Path(str(m.__file__)).parent if hasattr(m, "__path__") else m.__file__) for m in within)
    inside = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if inside and frame is not None and frame.f_code.co_filename.startswith(places):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
            raise DeadlineError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, POLL_S), POLL_S)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
