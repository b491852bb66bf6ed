"""Searches the memory-persistent schedules of a chain for the fastest whose replayed peak is within the budget.

Memory is counted in equal slots of half as much again as the budget leaves. One table (`persistent`) answers all
memories up to the largest, and the replay decides: of the costs in the table's last cell, the one of the largest memory
whose replayed peak is within the budget is taken, also where it is above what the discretisation says the budget
allows. A second table has the case of disjoint states everywhere, which may count too little; its schedules are tried
too.
"""

from __future__ import annotations

import numpy as np

from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.costs import chain_costs
from remat_solvers.toolkit.chains.persistent import (
    DiscretisedChain,
    cost_table,
    discretised,
    disjoint_states,
    persistent_schedule,
)
from remat_solvers.toolkit.chains.schedule import SaveOptions, keep_nothing_steps, sequence_of
from remat_solvers.toolkit.trials import Trials

BEYOND_BUDGET = 1.5  # the largest memory in the table, as a multiple of the budget without the static bytes
PATIENCE = 6  # memories beyond the fastest that fits, in a row, whose replays do not


def try_persistent_schedules(chain: Chain, slots: int, trials: Trials, options: SaveOptions | None = None) -> None:
    """Replay the schedules in the last cells of both tables, one per cost; `trials` keeps the fastest that fits."""
    memory_bytes = int(max(1, trials.budget_bytes - chain.problem.static_bytes) * BEYOND_BUDGET)
    disjoint = disjoint_states(chain, options)
    for discrete in (
        discretised(chain_costs(chain, options), memory_bytes, slots, disjoint),
        discretised(disjoint.costs, memory_bytes, slots),
    ):
        if not trials.expired:
            _search_table(chain, discrete, trials, options)


def _search_table(chain: Chain, discrete: DiscretisedChain, trials: Trials, options: SaveOptions | None) -> None:
    cost = cost_table(discrete)
    chain_ns = cost[0, -1]  # of the whole chain, by slots of memory
    faster = [m == 0 or chain_ns[m] < chain_ns[m - 1] for m in range(len(chain_ns))]
    memories = [m for m in range(len(chain_ns)) if np.isfinite(chain_ns[m]) and faster[m]]
    if not memories:
        return

    def sequence(memory: int) -> list[int]:
        return sequence_of(chain, persistent_schedule(discrete, cost, memory), options)

    trials.search(memories, sequence, "memory of")
    forward_ns = sum(chain.problem.ops[op].time_ns for op in chain.problem.forward_ops)
    missed = 0
    for memory in memories:
        if trials.best is None or missed == PATIENCE or trials.expired:
            break
        if chain_ns[memory] + forward_ns < trials.best.time_ns:
            missed = 0 if trials.fits(sequence(memory), f"memory of {memory}") else missed + 1


def try_keeping_nothing(chain: Chain, trials: Trials, options: SaveOptions | None = None) -> str:
    """If no plan fits yet, replay the one that recomputes every stage from the start.

    Returns the reason to report if that one fits, and an empty text otherwise.
    """
    if trials.best is not None or trials.expired:
        return ""
    fits = trials.fits(sequence_of(chain, keep_nothing_steps(0, len(chain.stages)), options), "nothing kept")
    return "no schedule of the tables fits; nothing is kept, every stage is recomputed from the start" if fits else ""
