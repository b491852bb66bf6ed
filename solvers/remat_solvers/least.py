"""The budget "min": the smallest peak that a method reaches, and its plan there."""

from __future__ import annotations

from dataclasses import replace

from remat_solvers.bounds import peak_bound
from remat_solvers.optimal.auto import Auto
from remat_solvers.optimal.min_peak import Smallest, smallest
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import Solver
from remat_solvers.result import Limits, OnProgress, Outcome, Stopped
from remat_solvers.units import format_bytes

__all__ = ["least"]

PEAK_SHARE = 0.6  # of auto's time, to find the smallest peak; what is left makes the plan faster


def least(
    problem: Problem, method: Solver, *, limits: Limits, on_progress: OnProgress | None, seed: int
) -> tuple[int, Outcome]:
    """The smallest budget in bytes that `method` has a plan for, as far as it tells, and what it answers to that.

    `auto` looks for it (optimal/smallest.py); `limits.work` is for that, and again for the plan there. Another is asked
    for the floor under every plan, and then for the smallest peak that it says it reaches.
    """
    watch = Stopwatch(limits)
    if isinstance(method, Auto):
        found = smallest(problem, limits=limits.share(PEAK_SHARE), on_progress=on_progress, seed=seed)
        if found.stopped is Stopped.INTERRUPT:
            return found.peak_bytes, found.outcome
        started = replace(method, starts=(*method.starts, found.plan))
        left = Limits(watch.remaining, limits.work)
        try:
            outcome = started.solve(problem, found.peak_bytes, limits=left, on_progress=on_progress, seed=seed)
        except KeyboardInterrupt:  # before it had anything
            outcome = replace(found.outcome, stopped=Stopped.INTERRUPT)
        return found.peak_bytes, _told(outcome if outcome.plan is not None else found.outcome, found)
    budget_bytes = max(1, peak_bound(problem).bytes)
    while True:
        left = Limits(watch.remaining)
        outcome = method.solve(problem, budget_bytes, limits=left, on_progress=on_progress, seed=seed)
        reached = outcome.smallest_peak_bytes
        if outcome.plan is not None or reached is None or reached <= budget_bytes or watch.expired:
            return budget_bytes, outcome
        budget_bytes = reached


def _told(outcome: Outcome, found: Smallest) -> Outcome:
    """The outcome with the floor, its certificate, and what forces it."""
    floor_bytes = found.peak_bound_bytes
    least = "has a smaller peak" if found.peak_bytes == floor_bytes else f"has a peak below {format_bytes(floor_bytes)}"
    return replace(
        outcome,
        reason="; ".join(filter(None, (f"no plan {least}", f"forced are {found.forced_by}", outcome.reason))),
        smallest_peak_bytes=found.peak_bytes,
        peak_bound_bytes=floor_bytes,
        certificate=found.certificate,
        stopped=found.stopped if outcome.stopped is Stopped.COMPLETE else outcome.stopped,
    )
