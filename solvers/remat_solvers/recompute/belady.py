"""Belady's rule for activations: when memory is short, evict what is needed again farthest in the future.

Belady (A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5, 1966) proved it optimal
for pages of one size that cost the same to bring back. A training step is known in advance, so its future is known;
but values differ in size and in what it takes to compute them again. Hence the choices of `weight`, where d(v) is the
computed time from now to the next reader of v in the problem's order, m(v) its bytes, and c(v) the time of its producer
and of all evicted ancestors, which would have to run again with it:

none    d(v)                  the rule itself
size    d(v) m(v)
cost    d(v) m(v) / c(v)      far, large and cheap goes first
saving  m(v) / c(v) where d(v) is more than the time until the most crowded moment; then as `cost`: what is needed
        again before memory is at its fullest is of no help there

The value of the largest score is evicted. Only readers in the problem's order count as uses: what is read for the sake
of a recomputation is not foreseen. A value without a reader left has d = infinity; deallocate="eager" drops it at once,
"ignore" when its turn comes, None tries both. The rest is `eviction.py`. weight=None tries all, and the fastest plan
within the budget is the answer; there is no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.eviction.neighbourhoods import Graph, Neighbourhoods
from remat_solvers.toolkit.eviction.replay import NEVER, Deallocate, Evictor, Memory, Way, try_ways
from remat_solvers.toolkit.options import check_options

__all__ = ["WEIGHTS", "Belady"]

Weight: TypeAlias = Literal["none", "size", "cost", "saving"]

WEIGHTS: tuple[Weight, ...] = ("saving", "cost", "size", "none")
FAR = 1e18  # ns: farther than any step is long


@dataclass(frozen=True)
class Belady:
    """Evict what is needed again farthest in the future."""

    weight: Weight | None = None  # what the distance is weighed with; None: each in turn
    deallocate: Deallocate | None = None  # what has no reader left: dropped, or left to the rule; None: both

    name: ClassVar[str] = "belady"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of the rules asked for. See `registry.Solver`."""
        deallocations: tuple[Deallocate, ...] = ("eager", "ignore")
        fullest = _fullest(problem)
        ways = [
            Way(f"{weight}, {deallocate}", _evictor(weight, fullest), deallocate)
            for deallocate in (deallocations if self.deallocate is None else (self.deallocate,))
            for weight in (WEIGHTS if self.weight is None else (self.weight,))
        ]
        return try_ways(problem, budget_bytes, ways, limits, on_progress)


def _evictor(weight: Weight, fullest: int) -> Callable[[Memory], Evictor]:
    return partial(_Farthest, weight=weight, fullest=fullest)


def _fullest(problem: Problem) -> int:
    """The op during which the unmodified step holds most."""
    plan = store_all(problem)
    action = plan[simulate(problem, plan).peak_action] if plan else None
    return getattr(action, "op", 0)


class _Farthest:
    def __init__(self, memory: Memory, *, weight: Weight, fullest: int) -> None:
        self.memory = memory
        self.weight = weight
        self.fullest = fullest
        self.bytes = np.array(memory.size, dtype=np.float64)
        self.starts = np.array([0, *accumulate(max(1, t) for t in memory.time)], dtype=np.float64)
        self.around: Neighbourhoods | None = None
        if weight in ("cost", "saving"):
            self.around = Neighbourhoods(Graph(memory.problem), descendants=False)

    def choose(self, candidates: Indices) -> int:
        position = self.memory.position
        uses = np.array(list(map(self.memory.next_use.__getitem__, candidates.tolist())), dtype=np.int64)
        never = uses == NEVER
        uses[never] = 0
        score: Floats = self.starts[uses] - self.starts[position]
        score[never] = FAR
        if self.weight != "none":
            score *= self.bytes[candidates]
        if self.around is not None:
            cost = np.maximum(1, self.around.refresh(candidates))
            score /= cost
            if self.weight == "saving" and position < self.fullest:
                beyond = (uses > self.fullest) | never
                if beyond.any():
                    score[beyond] = self.bytes[candidates][beyond] / cost[beyond]
                    score[~beyond] = -1.0
        return int(candidates[np.argmax(score)])

    def evicted(self, value: int) -> None:
        if self.around is not None:
            self.around.evict(value)

    def gone(self, value: int) -> None:
        if self.around is not None:
            self.around.restore(value)

    def computed(self, op: int, fresh: list[int]) -> None:
        for value in fresh:
            self.gone(value)
