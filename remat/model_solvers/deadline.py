"""Sets a time limit for code that does not check the clock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

POLL_S = 0.01  # between attempts, until the code may be interrupted
REPEAT_S = 1.0  # until the next attempt, where code has caught the error by mistake


class DeadlineError(BaseException):
    """The time is up. It is no Exception, so that the interrupted code does not handle it as one of its own."""


@contextmanager
def deadline(seconds: float | None, within: tuple[ModuleType, ...]) -> Iterator[None]:
    """Raise DeadlineError in the block once `seconds` have passed (None: never).

    It is raised only while code of the modules `within`, or of their packages, runs: elsewhere, as in a finalizer, an
    error would be lost or leave work half done. A timer signal interrupts the block. Python delivers signals to the
    main thread only; in another thread, and on a system without such a timer, nothing happens.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
        yield
        return
    paths = tuple(str(Path(str(m.__file__)).parent if hasattr(m, "__path__") else m.__file__) for m in within)
    is_active = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_active and frame is not None and frame.f_code.co_filename.startswith(paths):
            signal.setitimer(signal.ITIMER_REAL, REPEAT_S, REPEAT_S)
            raise DeadlineError

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, POLL_S), POLL_S)
    try:
        yield
    finally:
        is_active = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
