"""Beaumont, Eyraud-Dubois, Shilova: Efficient Combination of Rematerialization and Offloading for Training DNNs.

NeurIPS 2021 (POFO). On a chain of stages every input of a stage, x_i or x̄_i, is moved to the host, kept, or computed
again from an earlier one. A dynamic program over the stages of the first forward finds the fastest schedule, where
copies run beside compute in one queue per direction and may be split in time: with whole values the problem is strongly
NP-hard (the same authors, hal-02316266). program.py states its recurrence. Stages that are run on without keeping
anything get their backward from rotor's table (`toolkit/chains/persistent`), whose chain view and costs are used.

Not all of the paper's own text was at hand. These points follow the formulas of a port that calls itself approximate
(ColossalAI, ckpt_solver_pofo.py), or are chosen here where the port leaves them open:

- Backward of stages that were run on, with recomputation. The port estimates how far copies back overlap with it. Here
  they either come beside it, rotor then having that much less memory, or after it, in time of their own.
- Peaks are taken over the stages that are run, up to j; the port takes them to the end of the chain.
- The last stages may be one segment of rotor's: in the memory that values under way leave to it, with copies beside it;
  or in all of the memory, with copies exposed. So without a usable link the program's optimum is rotor's.
- Labels keep exact bytes: a short stage moves less than a slot, and rounding up would take all of that away. One stays
  per cell of a grid (`cells`); with a byte per cell that is the exact recurrence. Rotor's table rounds up as it does.
- Ties: the fewest bytes held and moved; otherwise the first found, F_all before running on, moved before kept.

From the chain to a training step: states are sets of values. A value that is in the next state too is counted with
that one, and is moved or kept with the last state that it is in. Copies have no latency in the program, and host memory
is unlimited.

The replay decides. The schedule becomes an op sequence, the moved values become idle intervals, and `schedule_copies`
times whole values under the budget. The program's memory is searched for the largest share of the memory that the
budget leaves (`SHARES`, by bisection) whose plan fits. Where latency counts, or single values are large, the program
may be far off; so rotor's own plan, which offloads nothing, is tried as well. The method is optimal for its model of a
chain only, so it reports no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.registry import create
from remat_solvers.result import Stopped
from remat_solvers.schedule import boundary_of
from remat_solvers.swap.pofo.program import ChainProgram, Decision, solve_chain
from remat_solvers.toolkit.chains.chain import MAX_SLOTS, MAX_STAGES, Chain, distinct_chains
from remat_solvers.toolkit.chains.cuts import Cuts
from remat_solvers.toolkit.chains.persistent import persistent_schedule
from remat_solvers.toolkit.chains.schedule import Advance, Back, ChainStep, Save, keep_nothing_steps, sequence_of
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import schedule_copies
from remat_solvers.toolkit.trials import TrialMethod, Trials

CUTS: tuple[Cuts, ...] = ("minima", "renewed", "every")
ROTOR_SHARE = 0.25  # of the time, at most
MOST_CELLS = 1_000  # in each of three directions
SHARES = tuple(1.05**k for k in range(-7, 9))  # of the memory that the budget leaves, tried as the program's


@dataclass(frozen=True)
class POFO(TrialMethod):
    """Choose together which stages of a chain are kept, moved or recomputed."""

    slots: int = 300  # parts of memory in rotor's table
    cells: int = 50  # cells of the labels' grid, in each of three directions
    stages: int = 40  # most stages of the chain
    cuts: Cuts | None = None  # where the step is cut, see `chain`; None: each in turn

    name: ClassVar[str] = "pofo"
    version: ClassVar[str] = "1"
    requires = ("link to the host", "backward pass")
    ranges: ClassVar[Ranges] = {"slots": (1, MAX_SLOTS), "cells": (1, MOST_CELLS), "stages": (1, MAX_STAGES)}

    def try_plans(self, trials: Trials) -> None:
        """Try the plans that only recompute, then the schedules of each chain."""
        self._without_moves(trials)
        forms = (self.cuts,) if self.cuts else CUTS
        for chain in distinct_chains(trials.problem, [(cuts, self.stages) for cuts in forms]):
            if not trials.expired:
                self._try(chain, trials)

    def _without_moves(self, trials: Trials) -> None:
        """Replay rotor's plan, which does not offload."""
        share = trials.watch.share(ROTOR_SHARE)
        rotor = create("rotor", stages=self.stages, cuts=self.cuts)
        outcome = rotor.solve(trials.problem, trials.budget_bytes, limits=share, on_progress=None, seed=0)
        if outcome.plan is not None:
            trials.replay(outcome.plan, "nothing offloaded")
        if outcome.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt

    def _try(self, chain: Chain, trials: Trials) -> None:
        problem = chain.problem
        left = max(1, trials.budget_bytes - problem.static_bytes)
        if trials.best is None:  # the schedule of the chain with the smallest peak
            trials.fits(sequence_of(chain, keep_nothing_steps(0, len(chain.stages))), "nothing kept")
        program = ChainProgram.of(chain, int(left * SHARES[-1]), self.slots)
        low, high = -1, len(SHARES)
        while high - low > 1 and not trials.expired:
            middle = (low + high) // 2
            if self._fits(program, int(left * SHARES[middle]), trials):
                low = middle
            else:
                high = middle

    def _fits(self, program: ChainProgram, memory_bytes: int, trials: Trials) -> bool:
        """Whether the plan for this memory is within the budget; a memory without a schedule asks for a larger one."""
        chain, link = program.chain, program.chain.problem.link
        assert link is not None
        found = solve_chain(program, link, memory_bytes, self.cells, trials.watch)
        if found is None:
            return True
        profile = StepProfile.of(chain.problem, sequence_of(chain, steps_of(program, found.choices)))
        plan = schedule_copies(profile, moved_values(chain, profile.sequence, found.choices), trials.budget_bytes)
        if isinstance(plan, Overflow):
            return False
        return trials.replay(plan, f"{memory_bytes} bytes for the chain").peak_bytes <= trials.budget_bytes


def steps_of(program: ChainProgram, choices: Sequence[Decision]) -> list[ChainStep]:
    """The schedule of the decisions."""
    forward: list[ChainStep] = []
    backward: list[list[ChainStep]] = []
    for choice in choices:
        last = choice.end == len(program.chain.stages)
        if choice.run_on:
            by_rotor = persistent_schedule(program.slots, program.table, choice.memory, choice.stage, choice.end - 1)
            backward.append(by_rotor)
            forward += [] if last else [Advance(choice.stage, choice.end)]
        else:
            forward.append(Save(choice.stage, onward=not last))
            backward.append([Back(choice.stage)])
    return [*forward, *(step for steps in reversed(backward) for step in steps)]


def moved_values(chain: Chain, sequence: Sequence[int], choices: Sequence[Decision]) -> list[IdleInterval]:
    """The idle intervals of the moved values: from the last use in the first forward to the first in backward."""
    moved: set[int] = set()
    for choice in choices:
        if choice.moved:
            own = set(chain.state(choice.stage))
            if choice.bar:
                before = chain.stages[choice.stage - 1]
                own |= set(before.saved).difference(before.state)
            moved |= own.difference(chain.state(choice.end))
    last_forward = boundary_of(chain.problem, sequence) - 1
    intervals = idle_intervals(chain.problem, sequence)
    return [i for i in intervals if i.value in moved and i.last <= max(0, last_forward) < i.back]
