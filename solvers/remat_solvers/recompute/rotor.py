"""rotor: optimal checkpointing for heterogeneous chains, by dynamic programming.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains: how to train deep
neural networks with limited memory. RR-9302 and arXiv 1911.13214, 2019; ACM TOMS 2024.

`toolkit/chains/persistent.py` states the recurrence over memory-persistent schedules and what a training step adds to
the paper's chain; `toolkit/chains/persistent_search.py` says how the replay chooses among the schedules of its tables.
Memory is counted in `slots` parts, 500 as in the paper, of half as much again as the budget leaves.

What is open in the paper, and what is done here:

- Where the step is cut: all three forms of cuts are tried in turn, unless one is given (`cuts`).
- Where no schedule of any table fits, each stage is recomputed from the start, nothing is kept, and the reason says so.

The method is optimal for its chain only, so it reports no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.toolkit.chains.chain import MAX_SLOTS, MAX_STAGES, distinct_chains
from remat_solvers.toolkit.chains.cuts import Cuts
from remat_solvers.toolkit.chains.persistent_search import try_keeping_nothing, try_persistent_schedules
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.trials import TrialMethod, Trials

CUTS: tuple[Cuts, ...] = ("minima", "renewed", "every")


@dataclass(frozen=True)
class Rotor(TrialMethod):
    """The optimal memory-persistent schedule of a heterogeneous chain."""

    slots: int = 500  # parts into which memory is divided
    stages: int = 100  # most stages of the chain
    cuts: Cuts | None = None  # where the step is cut, see `toolkit/chains/chain.py`; None: each form

    name: ClassVar[str] = "rotor"
    version: ClassVar[str] = "1"
    ranges: ClassVar[Ranges] = {"slots": (1, MAX_SLOTS), "stages": (1, MAX_STAGES)}

    def try_plans(self, trials: Trials) -> None:
        """Try the schedules of each chain's tables; where none fits, the plan that keeps nothing."""
        forms = (self.cuts,) if self.cuts else CUTS
        for chain in distinct_chains(trials.problem, [(cuts, self.stages) for cuts in forms]):
            if trials.expired:
                break
            known = trials.best
            try_persistent_schedules(chain, self.slots, trials)
            trials.reason = try_keeping_nothing(chain, trials) or (trials.reason if trials.best is known else "")
