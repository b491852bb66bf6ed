"""Belady's rule for activations: when memory is short, evict the value whose next use is farthest in the future.

Belady (A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5, 1966) proved it optimal
for pages of one size that cost the same to bring back. A training step is known in advance, so its future is known;
but values differ in size and in the cost of recomputing them. Hence the choices of `weight`, where d(v) is the computed
time from now to the next reader of v in the problem's order, m(v) its bytes, and c(v) the time of its producer and of
all evicted ancestors, which would have to be recomputed with it:

none    d(v)                  the rule itself
size    d(v) m(v)
cost    d(v) m(v) / c(v)      far, large and cheap values are evicted first
saving  m(v) / c(v) where d(v) is more than the time until the peak of the unmodified step; then as `cost`: evicting a
        value that is needed again before memory is at its fullest does not help there

The value of the largest score is evicted. Only readers in the problem's order count as uses; reads for the sake of a
recomputation are not foreseen. A value without a reader left has d = infinity; deallocate="eager" drops it at once,
"ignore" leaves it to the rule, None tries both. `toolkit/eviction/replay.py` does the rest. weight=None tries all
weights, and the fastest plan within the budget is returned; there is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.schedule import baseline, store_all
from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.eviction.memory import NEVER, Deallocate, Memory
from remat_solvers.toolkit.eviction.neighbourhoods import Neighbourhoods, ValueGraph
from remat_solvers.toolkit.eviction.scoring import ScoringEvictor
from remat_solvers.toolkit.eviction.settings import DEALLOCATIONS, EvictionSetting, try_settings
from remat_solvers.toolkit.options import check_options

Weight: TypeAlias = Literal["none", "size", "cost", "saving"]

WEIGHTS: tuple[Weight, ...] = ("saving", "cost", "size", "none")
FAR = 1e18  # ns: farther than any step is long


@dataclass(frozen=True)
class Belady:
    """Evict the value whose next use is farthest in the future."""

    weight: Weight | None = None  # how the distance is weighed; None: each weight in turn
    deallocate: Deallocate | None = None  # a value without a reader left is dropped, or left to the rule; None: both

    name: ClassVar[str] = "belady"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of the chosen weights. See `registry.Solver`."""
        peak_op = _peak_op(problem)
        settings = [
            EvictionSetting(f"{weight}, {deallocate}", partial(_Farthest, weight=weight, peak_op=peak_op), deallocate)
            for deallocate in (DEALLOCATIONS if self.deallocate is None else (self.deallocate,))
            for weight in (WEIGHTS if self.weight is None else (self.weight,))
        ]
        return try_settings(problem, budget_bytes, settings, limits, on_progress)


def _peak_op(problem: Problem) -> int:
    """The op during which the unmodified step holds most."""
    plan = store_all(problem)
    action = plan[baseline(problem).peak_action] if plan else None
    return getattr(action, "op", 0)


class _Farthest(ScoringEvictor):
    """Scores a value by minus its weighed distance."""

    def __init__(self, memory: Memory, *, weight: Weight, peak_op: int) -> None:
        graph = ValueGraph(memory.problem)
        self.neighbourhoods = Neighbourhoods(graph, descendants=False) if weight in ("cost", "saving") else None
        super().__init__(memory, self.neighbourhoods)
        self.weight = weight
        self.peak_op = peak_op
        self.starts = np.array([0, *accumulate(max(1, t) for t in memory.time)], dtype=np.float64)

    def score(self, candidates: Indices) -> Floats:
        position = self.memory.position
        uses = np.array(list(map(self.memory.next_use.__getitem__, candidates.tolist())), dtype=np.int64)
        never = uses == NEVER
        uses[never] = 0
        distance: Floats = self.starts[uses] - self.starts[position]
        distance[never] = FAR
        if self.weight != "none":
            distance *= self.bytes[candidates]
        if self.neighbourhoods is not None:
            cost = np.maximum(1, self.neighbourhoods.refresh(candidates))
            distance /= cost
            if self.weight == "saving" and position < self.peak_op:
                beyond = (uses > self.peak_op) | never
                if beyond.any():
                    distance[beyond] = self.bytes[candidates][beyond] / cost[beyond]
                    distance[~beyond] = -1.0
        return -distance
