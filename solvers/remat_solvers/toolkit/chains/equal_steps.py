"""The chains of a training step on which methods for equal steps (revolve, Gruslys et al.) are tried."""

from __future__ import annotations

from collections.abc import Iterator

from remat_solvers.problem import Problem
from remat_solvers.toolkit.chains.chain import Chain, distinct_chains

MAX_MINIMA = 100  # stages where the step is cut at all minima
MAX_RUNS = 64  # average runs of a stage in a schedule worth building: with one slot, at most 127 steps


def equal_step_chains(problem: Problem, max_stages: int) -> Iterator[Chain]:
    """The chain of the recurrent time steps, and the chain of all minima where that is another one."""
    return distinct_chains(problem, [("renewed", max_stages), ("minima", min(max_stages, MAX_MINIMA))])
