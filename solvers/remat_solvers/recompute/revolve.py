"""revolve: binomial checkpointing, optimal for chains of equal steps.

Griewank: Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation.
Optimization Methods and Software 1, 1992. Griewank, Walther: Algorithm 799: revolve. ACM TOMS 26(1), 2000.

With s snapshots (the one of the start included) and every step advanced at most r times, beta(s, r) = binom(s + r, s)
steps can be reversed. l steps, beta(s, r - 1) < l <= beta(s, r), take r l - beta(s + 1, r - 1) advances, the least
there is; with the one inside each backward step

    l + r l - binom(s + r, s + 1)

Where the next snapshot goes, in closed form (`advance`): with l steps ahead and s snapshots free, that of the start
counted, so far that both parts can be reversed with their repetitions,

    beta(s, r - 2)                         if l <= beta(s, r - 1) + beta(s - 2, r - 1)
    beta(s, r - 1)                         if l >= beta(s, r) - beta(s - 3, r)
    l - beta(s - 1, r - 1) - beta(s - 2, r - 1)      otherwise

On a training step, the steps are the stages of the chain view, snapshots their states: once with the stages of the
recurrent time steps (`renewed`), once with all of them (`minima`). Sizes differ there, so the number of snapshots is
searched: the most whose replayed peak is within the budget. No bound is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import ClassVar

from remat_solvers.errors import InputError
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.chains.chain import Chain, chain_view
from remat_solvers.toolkit.chains.schedule import Advance, Step, least_memory, sequence_of
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.trials import Trials

__all__ = ["Revolve", "advance", "forward_steps", "repetitions", "schedule"]

MOST_MINIMA = 100  # stages where the step is cut at all minima
MOST_RUNS = 64  # average runs of a stage in a schedule worth building


def forward_steps(steps: int, snapshots: int) -> int:
    """Forward steps of the whole, the one inside each backward step included.

    Raises InputError for a negative number of steps or fewer than 1 snapshot.
    """
    for option, number, least in (("steps", steps, 0), ("snapshots", snapshots, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"revolve: {option} must be an integer of at least {least}, not {number!r}")
    r = repetitions(steps, snapshots)
    return steps + r * steps - comb(snapshots + r, snapshots + 1)


def repetitions(steps: int, snapshots: int) -> int:
    """The least r with steps <= beta(snapshots, r)."""
    r = 0
    reversible = 1
    while reversible < steps:
        r += 1
        reversible = reversible * (snapshots + r) // r
    return r


def _beta(s: int, r: int) -> int:
    """Steps that s snapshots reverse with at most r repetitions."""
    return comb(s + r, s) if s >= 0 and r >= 0 else 0


def advance(steps: int, snapshots: int) -> int:
    """How far to advance before the next snapshot: at least 2 steps ahead, 2 snapshots with that of the start."""
    s, r = snapshots, repetitions(steps, snapshots)
    if steps <= _beta(s, r - 1) + _beta(s - 2, r - 1):
        return _beta(s, r - 2)
    if steps >= _beta(s, r) - _beta(s - 3, r):
        return _beta(s, r - 1)
    return steps - _beta(s - 1, r - 1) - _beta(s - 2, r - 1)


def schedule(steps: int, snapshots: int) -> list[Step]:
    """The binomial schedule."""
    made: list[Step] = []
    todo: list[tuple[int, int, int] | Step] = [(0, steps, snapshots)]
    while todo:
        item = todo.pop()
        if not isinstance(item, tuple):
            made.append(item)
            continue
        first, length, free = item
        if length <= 1 or free == 1:
            made += least_memory(first, first + length)
            continue
        far = advance(length, free)
        todo += [(first, far, free), (first + far, length - far, free - 1), Advance(first, first + far)]
    return made


@dataclass(frozen=True)
class Revolve:
    """Binomial checkpointing of the stages."""

    snapshots: int | None = None  # states held, that of the start counted; None: the most that the budget allows
    steps: int = 1024  # most stages of the chain view

    name: ClassVar[str] = "revolve"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest schedule within the budget. See `registry.Solver`."""
        if missing := missing_requirement(problem, self.name, "backward pass"):
            return missing
        trials = Trials(problem, budget_bytes, limits, on_progress)
        with trials:
            chains = [
                chain_view(problem, cuts="renewed", most=self.steps),
                chain_view(problem, cuts="minima", most=min(self.steps, MOST_MINIMA)),
            ]
            for chain in chains[:1] if chains[0] == chains[1] else chains:
                if not trials.expired:
                    self._search(chain, trials)
        return trials.outcome()

    def _search(self, chain: Chain, trials: Trials) -> None:
        length = len(chain.stages)
        numbers = [m for m in range(1, length + 1) if forward_steps(length, m) <= MOST_RUNS * length]
        if self.snapshots is not None:
            numbers = [min(length, self.snapshots)]
        trials.search(numbers, lambda m: sequence_of(chain, schedule(length, m)), "snapshots:")
