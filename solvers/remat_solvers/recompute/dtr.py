"""Kirisame et al.: Dynamic Tensor Rematerialization. ICLR 2021. Run offline, as a planner.

DTR needs no plan: when an allocation fails it evicts the tensor t with the smallest h(t), and it recomputes a missing
value when the value is read (`toolkit/eviction/replay.py`). Here the runtime is replayed on the problem's order, under
the budget, and its actions are the plan. Its heuristics, with c0(t) the time of t's producer, m(t) bytes and s(t) the
time since the last access, are:

h        [c0(t) + sum of c0 over e*(t)] / (m(t) s(t)).  e*(t), the evicted neighbourhood: the evicted tensors that must
         be recomputed to compute t, and the evicted tensors that need t, through evicted ones only
h_eq     the same with connected components in place of e*: evicted tensors are kept in a union-find, undirected, each
         component with the running sum of its c0, and t counts every component it touches. When a tensor is recomputed
         its c0 is subtracted and it moves to a component of its own; the others stay connected (phantom links)
h_local  c0(t) / (m(t) s(t))
lru      1 / s(t)
size     1 / m(t)
msps     [c0(t) + sum of c0 over e_R(t)] / m(t), e_R: the evicted ancestors only (Capuchin's metric)

What is open in the paper, and what is done here:

- Time since last access counts computed time, every op at least 1 ns. A value is accessed when it is read or computed.
- An op with several outputs counts once in e*. Values of 0 bytes are never evicted.
- deallocate: "eager" (the paper's default), "ignore", or None: both, and the better plan is returned. A value that
  nothing can need any more is in no neighbourhood; `toolkit/eviction/replay.py` says when that is. "banish" is applied
  to outputs of ops that are not recomputable.
- heuristic=None tries h_eq, the paper's choice, then the others; the fastest plan within the budget is returned.
- DTR's prototype looks at sqrt(n) random tensors and skips small ones, to be fast; a planner looks at all of them.

Success is not monotone in the budget (section 4 of the paper), and there is no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.eviction.memory import Deallocate, Evictor, Memory
from remat_solvers.toolkit.eviction.neighbourhoods import Components, Neighbourhoods, ValueGraph
from remat_solvers.toolkit.eviction.scoring import ScoringEvictor
from remat_solvers.toolkit.eviction.settings import DEALLOCATIONS, EvictionSetting, try_settings
from remat_solvers.toolkit.options import check_options

Heuristic: TypeAlias = Literal["h", "h_eq", "h_local", "lru", "size", "msps"]

HEURISTICS: tuple[Heuristic, ...] = ("h_eq", "h", "h_local", "msps", "lru", "size")


@dataclass(frozen=True)
class DTR:
    """Evict by a heuristic when memory is short, recompute on demand."""

    heuristic: Heuristic | None = None  # None: each in turn
    deallocate: Deallocate | None = None  # a value without a reader is dropped, or left to the heuristic; None: both

    name: ClassVar[str] = "dtr"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of the chosen heuristics. See `registry.Solver`."""
        heuristics = HEURISTICS if self.heuristic is None else (self.heuristic,)
        settings = [
            EvictionSetting(f"{heuristic}, {deallocate}", EVICTORS[heuristic], deallocate)
            for heuristic in heuristics
            for deallocate in (DEALLOCATIONS if self.deallocate is None else (self.deallocate,))
        ]
        return try_settings(problem, budget_bytes, settings, limits, on_progress)


class _ByAccess(ScoringEvictor):
    """Keeps when each value was accessed last."""

    def __init__(self, memory: Memory, neighbours: Neighbourhoods | Components | None = None) -> None:
        super().__init__(memory, neighbours)
        self.accessed = np.zeros(len(memory.size))

    def staleness(self, candidates: Indices) -> Floats:
        """s(t): the time since each candidate was accessed, at least 1 ns."""
        return np.maximum(1.0, self.memory.now_ns - self.accessed[candidates])

    def computed(self, op: int, fresh: list[int]) -> None:
        super().computed(op, fresh)
        self.accessed[list(self.memory.reads[op])] = self.memory.now_ns
        self.accessed[list(self.memory.problem.ops[op].outputs)] = self.memory.now_ns


class _LRU(_ByAccess):
    def score(self, candidates: Indices) -> Floats:
        return self.accessed[candidates]


class _Size(ScoringEvictor):
    def score(self, candidates: Indices) -> Floats:
        return -self.bytes[candidates]


class _HLocal(_ByAccess):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.cost = np.array(ValueGraph(memory.problem).c0, dtype=np.float64)

    def score(self, candidates: Indices) -> Floats:
        return self.cost[candidates] / (self.bytes[candidates] * self.staleness(candidates))


class _H(_ByAccess):
    def __init__(self, memory: Memory) -> None:
        self.neighbourhoods = Neighbourhoods(ValueGraph(memory.problem), descendants=True)
        super().__init__(memory, self.neighbourhoods)

    def score(self, candidates: Indices) -> Floats:
        return self.neighbourhoods.refresh(candidates) / (self.bytes[candidates] * self.staleness(candidates))


class _HEq(_ByAccess):
    def __init__(self, memory: Memory) -> None:
        self.components = Components(ValueGraph(memory.problem))
        super().__init__(memory, self.components)

    def score(self, candidates: Indices) -> Floats:
        return self.components.cost_ns[candidates] / (self.bytes[candidates] * self.staleness(candidates))


class _MSPS(ScoringEvictor):
    def __init__(self, memory: Memory) -> None:
        self.neighbourhoods = Neighbourhoods(ValueGraph(memory.problem), descendants=False)
        super().__init__(memory, self.neighbourhoods)

    def score(self, candidates: Indices) -> Floats:
        return self.neighbourhoods.refresh(candidates) / self.bytes[candidates]


EVICTORS: dict[Heuristic, Callable[[Memory], Evictor]] = {
    "h": _H,
    "h_eq": _HEq,
    "h_local": _HLocal,
    "lru": _LRU,
    "size": _Size,
    "msps": _MSPS,
}
