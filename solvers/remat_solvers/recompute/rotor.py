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

from dataclasses import dataclass, replace
from typing import ClassVar

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.chains.chain import MAX_SLOTS, MAX_STAGES, distinct_chains
from remat_solvers.toolkit.chains.cuts import Cuts
from remat_solvers.toolkit.chains.persistent_search import try_keeping_nothing, try_persistent_schedules
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.trials import Trials

__all__ = ["Rotor"]

CUTS: tuple[Cuts, ...] = ("minima", "renewed", "every")


@dataclass(frozen=True)
class Rotor:
    """The optimal memory-persistent schedule of a heterogeneous chain."""

    slots: int = 500  # parts into which memory is divided
    stages: int = 100  # most stages of the chain
    cuts: Cuts | None = None  # where the step is cut, see `toolkit/chains/chain.py`; None: each form

    name: ClassVar[str] = "rotor"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self, slots=(1, MAX_SLOTS), stages=(1, MAX_STAGES))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest schedule of the tables whose replayed peak is within the budget. See `registry.Solver`.

        Where none is, the plan that keeps nothing, if that fits, and the reason says so.
        """
        if missing := missing_requirement(problem, self.name, "backward pass"):
            return missing
        trials = Trials(problem, budget_bytes, limits, on_progress)
        forms = (self.cuts,) if self.cuts else CUTS
        reason = ""
        with trials:
            for chain in distinct_chains(problem, [(cuts, self.stages) for cuts in forms]):
                if trials.expired:
                    break
                known = trials.best
                try_persistent_schedules(chain, self.slots, trials)
                reason = try_keeping_nothing(chain, trials) or (reason if trials.best is known else "")
        return replace(trials.outcome(), reason=reason)
