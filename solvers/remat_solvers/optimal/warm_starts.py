"""Plans to start from: what the quick published methods find, the quickest first.

So `auto` has a plan at once on graphs of thousands of ops, and is never worse than any of these by more than the gap at
which it stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import create, entry
from remat_solvers.result import Outcome, Stopped

__all__ = ["METHODS", "MOVING", "starts"]

METHODS = (  # on 4,600 ops the first four take under 1 s, the last two up to 5 s
    "capuchin",
    "belady",
    "dtr",
    "selective",
    "revolve",
    "segments",
    "gruslys",
    "kusumoto",
    "chen",
    "rotor",
)
MOVING = ("capuchin", "pofo")  # where there is a link
SHARE = 0.2  # of the time that is left, for one method


def starts(
    problem: Problem, budget_bytes: int, watch: Stopwatch, seed: int, methods: Sequence[str] = METHODS
) -> Iterator[tuple[str, Outcome]]:
    """One method's answer after another; KeyboardInterrupt where one was interrupted."""
    for name in methods:
        if watch.expired:
            return
        if entry(name).needs_backward and not problem.backward_ops:
            continue
        limits = watch.share(SHARE)
        outcome = create(name).solve(problem, budget_bytes, limits=limits, on_progress=None, seed=seed)
        yield name, outcome
        if outcome.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt
