"""Rockmate: an exact solver inside blocks, dynamic programming over them.

Zhao, Le Hellard, Eyraud-Dubois, Gusak, Beaumont: Rockmate: an efficient, fast, automatic and generic tool for
re-materialization in PyTorch. ICML 2023, PMLR 202.

1. The step is cut into a sequence of blocks, where little passes from one to the next: here the stages of a chain.
2. rk-Checkmate: each block is solved as an integer program for several pairs of budgets, its peak and the bytes that
   its forward leaves to its backward. A solution is an option: the values to keep, and a backward that recomputes the
   others. Identical blocks are solved once. `blocks.py` describes this part.
3. rk-Rotor: the recurrence of rotor with a choice of option wherever a stage is saved. With f, b, x̄ and leaf_i of
   option o, in the words of `toolkit/chains/persistent.py`:

       C(m, i, i) = min over o of  f_i^o + b_i^o                                     if m >= leaf_i^o
       C(m, i, j) = min of rotor's cases, and over o of
           f_i^o + b_i^o + C(m - x̄_(i+1)^o, i+1, j)                                    if m >= leaf_i^o and o fits

What is open in the paper, and what is done here:

- Budgets: `peaks` x `saves` pairs per block, by default the 3 x 10 of the authors' code.
- Keeping everything is always an option, so that no table is worse than rotor's. Options that another one equals or
  beats in time, saved bytes and both peaks are left out.
- Plans are judged by their replay, as rotor's are; rotor's own plan, with one option per block, is tried first.
- The blocks: larger ones leave more to the exact solver and less to the chain. So chains of at most `stages` blocks,
  of a fourth and of an eighth as many (`granularities`) are tried in turn, for both forms of cuts; a coarser chain only
  where all of its blocks can be solved exactly. Blocks that are identical across chains are solved once as well.
- Time: every chain has an equal share of the time left, and every block an equal share of that, less the part for the
  search over the chain. Every program has at most `program_seconds`. A program that reaches its limit gives its best
  solution; only then does the result depend on the machine, and the reason says so.
- The method is optimal for its blocks and its chain, not for all plans, so it reports no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.recompute.rockmate.blocks import Block, BlockSearch, block_of, option_of
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.chains.chain import MAX_SLOTS, MAX_STAGES, Chain, chain_view
from remat_solvers.toolkit.chains.costs import chain_costs
from remat_solvers.toolkit.chains.persistent_search import try_keeping_nothing, try_persistent_schedules
from remat_solvers.toolkit.chains.schedule import SaveOption, keep_everything
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.programs.pulp_backend import Backend
from remat_solvers.toolkit.trials import TrialMethod, Trials

BlockCuts: TypeAlias = Literal["renewed", "minima"]

CUTS: tuple[BlockCuts, ...] = ("renewed", "minima")
DIVISORS = (1, 4, 8)  # of `stages`, per granularity
BLOCK_SHARE = 0.8  # of a chain's time; the rest is for the search over the chain
MAX_BUDGETS = 100  # of either kind, per block
MIN_PROGRAM_S = 0.001


@dataclass(frozen=True)
class Rockmate(TrialMethod):
    """The best memory-persistent schedule of a chain of blocks, each with a choice of exact options."""

    slots: int = 500  # parts into which memory is divided
    stages: int = 100  # most blocks
    cuts: BlockCuts | None = None  # where the step is cut, see `cuts`; None: both kinds
    granularities: int = 3  # the number of chains: of `stages` blocks at most, of a fourth, of an eighth as many
    peaks: int = 3  # peak budgets per block
    saves: int = 10  # saved budgets for each of them
    exact_ops: int = 64  # larger blocks are contracted to as many ops
    program_seconds: float = 5.0  # for one integer program
    backend: Backend = "highs"  # which solves the programs

    name: ClassVar[str] = "rockmate"
    version: ClassVar[str] = "1"
    ranges: ClassVar[Ranges] = {
        "slots": (1, MAX_SLOTS),
        "stages": (1, MAX_STAGES),
        "granularities": (1, len(DIVISORS)),
        "peaks": (1, MAX_BUDGETS),
        "saves": (1, MAX_BUDGETS),
        "program_seconds": (MIN_PROGRAM_S, inf),
    }

    def try_plans(self, trials: Trials) -> None:
        """Try the schedules of each chain of solved blocks; where none fits, the plan that keeps nothing.

        The reason says which blocks were solved, and names the plan that keeps nothing.
        """
        blocks, fallback = Blocks(self, trials), ""  # the reason where nothing is kept
        try:
            chains = self._chains(trials.problem)
            for chain in chains:
                if not trials.expired:
                    try_persistent_schedules(chain, self.slots, trials)
            for left, chain in zip(range(len(chains), 0, -1), chains, strict=True):
                if not trials.expired:
                    blocks.solve(chain, left)
                    known = trials.best
                    try_persistent_schedules(chain, self.slots, trials, blocks.save_options(chain))
                    fallback = fallback if trials.best is known else ""
                    fallback = try_keeping_nothing(chain, trials, blocks.smallest_peak_options(chain)) or fallback
        finally:
            trials.reason = ", ".join([blocks.summary(), *([fallback] if fallback else [])])

    def _chains(self, problem: Problem) -> list[Chain]:
        """The distinct chains, those of small blocks first."""
        chains: list[Chain] = []
        for divisor in DIVISORS[: self.granularities]:
            for cuts in (self.cuts,) if self.cuts else CUTS:
                chain = chain_view(problem, cuts=cuts, max_stages=max(1, self.stages // divisor))
                largest = max(len(stage.ops) + len(stage.backward) for stage in chain.stages)
                if chain not in chains and (divisor == 1 or largest <= self.exact_ops):
                    chains.append(chain)
        return chains


class Blocks:
    """The blocks of all chains of one problem, with their schedules."""

    def __init__(self, method: Rockmate, trials: Trials) -> None:
        self.method = method
        self.trials = trials
        self.searches: dict[Block, BlockSearch] = {}
        self.chains = 0
        self.stages = 0  # of all chains
        self.options = 0  # of all stages
        self.cut_short = 0  # blocks for which their chain's share of the time limit did not last

    def solve(self, chain: Chain, chains_left: int) -> None:
        """Find the schedules of the blocks of `chain` that no earlier chain has."""
        watch = self.trials.watch
        end = None if watch.remaining is None else watch.seconds + BLOCK_SHARE * watch.remaining / chains_left
        room_bytes = self.trials.budget_bytes - chain.problem.static_bytes
        rooms: dict[Block, int] = {}  # per block, the most bytes that one of its stages has
        for block, stage in zip(self._of(chain), chain.stages, strict=True):
            rooms[block] = max(rooms.get(block, 0), room_bytes - chain.bytes(stage.state))
        unsolved = [block for block in rooms if block not in self.searches]
        for left, block in zip(range(len(unsolved), 0, -1), unsolved, strict=True):
            self.searches[block] = BlockSearch(block, self.method.backend, self.method.exact_ops)
            until = None if end is None else watch.seconds + (end - watch.seconds) / left
            self._solve(self.searches[block], rooms[block], until)

    def save_options(self, chain: Chain) -> Sequence[Sequence[SaveOption]]:
        """Per stage its options, of which the first keeps everything."""
        options = [
            [*plain, *(option_of(chain, k, block, schedule) for schedule in self.searches[block].schedules[1:])]
            for k, (block, plain) in enumerate(zip(self._of(chain), keep_everything(chain), strict=True))
        ]
        options = undominated(chain, options)
        self.chains += 1
        self.stages += len(options)
        self.options += sum(map(len, options))
        return options

    def smallest_peak_options(self, chain: Chain) -> Sequence[Sequence[SaveOption]]:
        """Per stage the one option of the smallest peak."""
        return [
            [option_of(chain, k, block, min(self.searches[block].schedules, key=lambda s: (s.peak_bytes, s.time_ns)))]
            for k, block in enumerate(self._of(chain))
        ]

    def _of(self, chain: Chain) -> list[Block]:
        return [block_of(chain, k) for k in range(len(chain.stages))]

    def summary(self) -> str:
        """The numbers of chains, blocks, options and programs, for people."""
        searches = self.searches.values()
        parts = [
            f"{self.chains} chains",
            f"{self.stages} blocks in them",
            f"{len(searches)} different blocks",
            f"{self.options} options",
            f"{sum(found.programs for found in searches)} integer programs",
        ]
        unproven = sum(found.unproven for found in searches)
        contracted = sum(found.contracted for found in searches)
        parts += [f"{unproven} of them stopped by a limit of their own"] if unproven else []
        parts += [f"{self.cut_short} blocks cut short by a share of the time limit"] if self.cut_short else []
        parts += [f"{contracted} blocks contracted, so not solved exactly"] if contracted else []
        return ", ".join(parts)

    def _solve(self, block: BlockSearch, room_bytes: int, until: float | None) -> None:
        for peak, saved in block.pairs(room_bytes, self.method.peaks, self.method.saves):
            left = inf if until is None else until - self.trials.watch.seconds
            if left <= 0:
                self.cut_short += 1
                break
            block.solve(peak, saved, min(left, self.method.program_seconds))
            if block.interrupted:
                raise KeyboardInterrupt


def undominated(chain: Chain, options: Sequence[Sequence[SaveOption]]) -> list[list[SaveOption]]:
    """The first option of each stage, and the others that no option equals or beats in every cost."""
    costs = chain_costs(chain, options)
    table = np.stack(
        [
            costs.save_ns,
            costs.leaf_ns,
            costs.repeat_ns,
            costs.backward_ns,
            costs.saved - costs.released,
            costs.save_peak,
            costs.resave_peak,
            costs.leaf_peak,
            costs.back_peak,
        ]
    )
    return [[options[k][w] for w in _minimal_columns(table[:, : len(options[k]), k])] for k in range(len(options))]


def _minimal_columns(costs: Ints) -> list[int]:
    """The first column, and those that no other column is below and no earlier one is equal to."""
    kept = [0]
    for column in range(1, costs.shape[1]):
        no_more = np.all(costs <= costs[:, [column]], axis=0)
        equal = np.all(costs == costs[:, [column]], axis=0)
        if not np.any(no_more & ~equal) and not np.any(equal[:column]):
            kept.append(column)
    return kept
