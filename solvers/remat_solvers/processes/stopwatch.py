"""Measures the time of a solver against its limit."""

from __future__ import annotations

import time

from remat_solvers.result import Limits


class Stopwatch:
    """Wall-clock time since its construction, against the seconds of some limits."""

    def __init__(self, limits: Limits) -> None:
        self._start = time.perf_counter()
        self._limit = limits.seconds

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None: there is no limit."""
        return None if self._limit is None else max(0.0, self._limit - self.seconds)

    def at_most(self, seconds: float) -> float:
        """`seconds`, but at most the remaining time."""
        return seconds if self.remaining is None else min(seconds, self.remaining)

    def share(self, part: float) -> Limits:
        """The limits of one step of several: that part of the time left."""
        return Limits(self.remaining).share(part)

    @property
    def expired(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self.seconds >= self._limit
