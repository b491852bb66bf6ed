"""Simulated annealing of one window of the best sequence after another, which helps most when memory is tight.

Cut a sequence at two moments. Given the values on the device at both, and the values that are read after the second,
the window between them is a problem of its own: to compute the latter from the former, within the budget, as fast as
possible. Windows that do not overlap are independent of each other. So

    repeat
        cut the best sequence at the first computations of two ops
        anneal the window between them (annealing.py; moves begin only there), and leave the rest as it is
        continue from the result if the whole sequence is faster

Annealing the whole sequence leaves each of its parts with a random result. Annealing windows one at a time keeps the
best result of each. The cuts move, so that the values resident at a moment are given for one window and open for the
next. Lifetimes may still extend across a window's ends: a move is judged by the profile of the whole sequence. The
number of moves in a window is in proportion to its length, so that there are hundreds of windows in the time of a few
cycles over the whole sequence.

It proves nothing: windows are independent only given the values that are on the device between them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from remat_solvers.optimal.local_search.annealing import SequenceSearch
from remat_solvers.problem import MAX_INT, Problem

SHORTEST, LONGEST = 0.02, 0.5  # windows, as shares of the ops; spread evenly on a logarithmic scale
MIN_OPS = 5  # first computations in a window
HEATS = (0.0002, 0.0006)  # temperatures at the begin of a window, as parts of the time of all ops
MOVES_PER_OP, MOVES = 100, 2000  # for every op that runs in a window, and for any window


class WindowSearch(SequenceSearch):
    """A search that anneals window after window as soon as it has a plan within the budget.

    The same problem, budget, seed, offers and numbers of moves give the same sequences; a limit of seconds does not.
    """

    def __init__(self, problem: Problem, budget_bytes: int, *, free_order: bool, seed: int) -> None:
        super().__init__(problem, budget_bytes, free_order=free_order, seed=seed)
        self._random = random.Random(seed)
        self._moves_left = 0  # in the window at hand

    def offer(self, sequence: Sequence[int]) -> None:
        """Continue from a sequence. It must be valid: `validate` its plan before."""
        self._moves_left = 0
        super().offer(sequence)

    def run(self, *, moves: int | None = None, seconds: float | None = None) -> int:
        """Make moves until a limit, `stop()`, or until no gain is possible; return the number of moves."""
        deadline = math.inf if seconds is None else time.perf_counter() + seconds
        limit = MAX_INT if moves is None else moves
        done = 0
        while done < limit:
            if self._moves_left == 0:
                self._moves_left = self._next_window()
            wanted = min(self._moves_left, limit - done)
            seconds_left = None if seconds is None else deadline - time.perf_counter()
            window_moves = super().run(moves=wanted, seconds=seconds_left)
            done += window_moves
            self._moves_left -= window_moves
            if window_moves < wanted:
                break
        return done

    def _next_window(self) -> int:
        """Cut a window from the best sequence; return the number of moves for it. Without one, the window is all."""
        best = self.best
        if best is None or not best.sequence:
            return MOVES
        first_position: dict[int, int] = {}
        for position, op in enumerate(best.sequence):
            first_position.setdefault(op, position)
        ops = list(first_position)
        share = SHORTEST * (LONGEST / SHORTEST) ** self._random.random()
        length = min(len(ops) - 1, max(MIN_OPS, round(share * len(ops))))
        begin = self._random.randrange(len(ops) - length)
        first, last = ops[begin], ops[begin + length]
        moves = MOVES_PER_OP * (first_position[last] - first_position[first] + 1) + MOVES
        self.anneal_window(first, last, moves, self._random.choice(HEATS))
        return moves
