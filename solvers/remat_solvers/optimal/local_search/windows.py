"""Where memory is tight: one stage of the best sequence after another, improved alone.

Cut a sequence at two moments. Given what is on the device at both, and what is read behind the second, the part between
them is a problem of its own: from these values to those, within the budget, as fast as possible. Stages that do not
overlap are independent of each other. So

    repeat
        cut the best sequence at the first runs of two ops
        anneal what lies between (search.py; moves begin only there), and leave the rest as it is
        go on from the result where the whole is faster

An annealing of everything ends as the sum of what luck gave to each part; here each part keeps its best. The cuts move,
so that what is on the device at a moment is given for one stage and open for the next. Nor is it held fast: a move may
make a life longer or shorter beyond the cuts, and is judged by the profile of the whole sequence. A stage is cooled for
as many moves as its length asks for, so that there are hundreds of stages in the time of a few cycles over everything.

It proves nothing: stages are independent only given what is on the device between them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from remat_solvers.optimal.local_search.annealing import Search
from remat_solvers.problem import MAX_INT, Problem

__all__ = ["Decomposed"]

SHORTEST, LONGEST = 0.02, 0.5  # stages, as shares of the ops; spread evenly on a logarithmic scale
LEAST_OPS = 5  # that first run in a stage
HEATS = (0.0002, 0.0006)  # of the time of all ops
MOVES_PER_OP, MOVES = 100, 2000  # for every op that runs in a stage, and for any stage


class Decomposed(Search):
    """A search that goes from stage to stage as soon as there is a plan within the budget.

    The same problem, budget, seed, offers and numbers of moves give the same sequences; a limit of seconds does not.
    """

    def __init__(self, problem: Problem, budget_bytes: int, *, free_order: bool, seed: int) -> None:
        super().__init__(problem, budget_bytes, free_order=free_order, seed=seed)
        self._random = random.Random(seed)
        self._left = 0  # moves of the stage at hand

    def offer(self, sequence: Sequence[int]) -> None:
        """A sequence to go on from. It must be valid: `validate` its plan before."""
        self._left = 0
        super().offer(sequence)

    def run(self, *, moves: int | None = None, seconds: float | None = None) -> int:
        """Makes moves until one of the limits, `stop()`, or until nothing can be gained; how many were made."""
        deadline = math.inf if seconds is None else time.perf_counter() + seconds
        wanted = MAX_INT if moves is None else moves
        made = 0
        while made < wanted:
            if self._left == 0:
                self._left = self._next_stage()
            asked = min(self._left, wanted - made)
            now = super().run(moves=asked, seconds=None if seconds is None else deadline - time.perf_counter())
            made += now
            self._left -= now
            if now < asked:
                break
        return made

    def _next_stage(self) -> int:
        """Cut the best sequence anywhere; how many moves the stage is worth. Without one, everything is the stage."""
        best = self.best
        if best is None or not best.sequence:
            return MOVES
        first_run: dict[int, int] = {}
        for place, op in enumerate(best.sequence):
            first_run.setdefault(op, place)
        ops = list(first_run)
        share = SHORTEST * (LONGEST / SHORTEST) ** self._random.random()
        length = min(len(ops) - 1, max(LEAST_OPS, round(share * len(ops))))
        begin = self._random.randrange(len(ops) - length)
        first, last = ops[begin], ops[begin + length]
        moves = MOVES_PER_OP * (first_run[last] - first_run[first] + 1) + MOVES
        self.cool(first, last, moves, self._random.choice(HEATS))
        return moves
