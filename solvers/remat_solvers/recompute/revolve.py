"""revolve: binomial checkpointing, optimal for chains of equal steps.

Griewank: Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation.
Optimization Methods and Software 1, 1992. Griewank, Walther: Algorithm 799: revolve. ACM TOMS 26(1), 2000.
`toolkit/chains/binomial.py` holds the schedules and their closed forms.

On a training step, the steps are the stages of the chain view and the snapshots are their states: once with the stages
of the recurrent time steps (`renewed`), once with all of them (`minima`). Sizes differ there, so the number of
snapshots is searched: it is the largest number whose replayed peak is within the budget. No bound is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.toolkit.chains.binomial import binomial_schedule, forward_steps
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.equal_steps import MAX_RUNS, equal_step_chains
from remat_solvers.toolkit.chains.schedule import sequence_of
from remat_solvers.toolkit.trials import TrialMethod, Trials

__all__ = ["Revolve", "forward_steps"]


@dataclass(frozen=True)
class Revolve(TrialMethod):
    """Binomial checkpointing of the stages."""

    snapshots: int | None = None  # states held, the one of the start included; None: the most that the budget allows
    steps: int = 1024  # most stages of the chain view

    name: ClassVar[str] = "revolve"
    version: ClassVar[str] = "1"

    def try_plans(self, trials: Trials) -> None:
        """Try the binomial schedules with as many snapshots as fit."""
        for chain in equal_step_chains(trials.problem, self.steps):
            if not trials.expired:
                self._search(chain, trials)

    def _search(self, chain: Chain, trials: Trials) -> None:
        length = len(chain.stages)
        numbers = [m for m in range(1, length + 1) if forward_steps(length, m) <= MAX_RUNS * length]
        if self.snapshots is not None:
            numbers = [min(length, self.snapshots)]
        trials.search(numbers, lambda m: sequence_of(chain, binomial_schedule(length, m)), "snapshots:")
