"""Warm starts for `auto`: the plans of the quick published methods, the quickest method first.

So `auto` has a plan at once on graphs of thousands of ops, and is never worse than any of these by more than the gap at
which it stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import create, entry
from remat_solvers.result import Outcome, Stopped

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
OFFLOAD_METHODS = ("capuchin", "pofo")  # for problems with a link
METHOD_SHARE = 0.2  # of the remaining time, for one method


def warm_starts(
    problem: Problem, budget_bytes: int, watch: Stopwatch, seed: int, methods: Sequence[str] = METHODS
) -> Iterator[tuple[str, Outcome]]:
    """Run one method after another and yield its outcome. Raise KeyboardInterrupt if one was interrupted."""
    for name in methods:
        if watch.expired:
            return
        if entry(name).needs_backward and not problem.backward_ops:
            continue
        limits = watch.share(METHOD_SHARE)
        outcome = create(name).solve(problem, budget_bytes, limits=limits, on_progress=None, seed=seed)
        yield name, outcome
        if outcome.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt
