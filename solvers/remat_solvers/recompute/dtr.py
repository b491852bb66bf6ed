"""Kirisame et al.: Dynamic Tensor Rematerialization. ICLR 2021. Run offline, as a planner.

DTR needs no plan: when an allocation fails it evicts the tensor t with the smallest h(t), and computes again what is
missing when it is missing (`eviction.py`). Here the runtime is replayed on the problem's order, under the budget, and
what it did is the plan. Its heuristics, with c0(t) the time of t's producer, m(t) bytes, s(t) time since last access:

h        [c0(t) + sum of c0 over e*(t)] / (m(t) s(t)).  e*(t), the evicted neighbourhood: the evicted tensors that must
         be computed again to compute t, and the evicted tensors that need t, through evicted ones only
h_eq     the same with connected components in place of e*: evicted tensors are kept in a union-find, undirected, each
         component with the running sum of its c0, and t counts every component it touches. When a tensor is computed
         again its c0 is subtracted and it moves to a component of its own; the others stay connected (phantom links)
h_local  c0(t) / (m(t) s(t))
lru      1 / s(t)
size     1 / m(t)
msps     [c0(t) + sum of c0 over e_R(t)] / m(t), e_R: the evicted ancestors only (Capuchin's metric)

Where the paper leaves more open, and what is done here:

- Time since last access counts computed time, every op at least 1 ns. An access is being read or being computed.
- An op with several outputs counts once in e*. Values of 0 bytes are never evicted.
- deallocate: "eager" (the paper's default), "ignore", or None: both, and the better plan. What nothing can need any
  more is gone for all: it is in no neighbourhood. `eviction.py` says when. "banish" is what happens to outputs of ops
  that are not recomputable.
- heuristic=None tries h_eq, the paper's choice, then the others; the fastest plan within the budget is the answer.
- DTR's prototype looks at sqrt(n) random tensors and skips small ones, to be fast; a planner looks at all.

Success is not monotone in the budget (section 4 of the paper), and there is no bound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.eviction.neighbourhoods import Components, Graph, Neighbourhoods
from remat_solvers.toolkit.eviction.replay import Deallocate, Evictor, Memory, Way, try_ways
from remat_solvers.toolkit.options import check_options

__all__ = ["DTR", "HEURISTICS"]

Heuristic: TypeAlias = Literal["h", "h_eq", "h_local", "lru", "size", "msps"]

HEURISTICS: tuple[Heuristic, ...] = ("h_eq", "h", "h_local", "msps", "lru", "size")


@dataclass(frozen=True)
class DTR:
    """Evict by a heuristic when memory is short, compute again on demand."""

    heuristic: Heuristic | None = None  # None: each in turn
    deallocate: Deallocate | None = None  # what has no reader left: dropped, or left to the heuristic; None: both

    name: ClassVar[str] = "dtr"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of the heuristics asked for. See `registry.Solver`."""
        heuristics = HEURISTICS if self.heuristic is None else (self.heuristic,)
        deallocations: tuple[Deallocate, ...] = ("eager", "ignore")
        ways = [
            Way(f"{heuristic}, {deallocate}", EVICTORS[heuristic], deallocate)
            for heuristic in heuristics
            for deallocate in (deallocations if self.deallocate is None else (self.deallocate,))
        ]
        return try_ways(problem, budget_bytes, ways, limits, on_progress)


class _Scored(ABC):
    """Evicts the value of the smallest score."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.bytes = np.array(memory.size, dtype=np.float64)
        self.accessed = np.zeros(len(memory.size))

    def choose(self, candidates: Indices) -> int:
        return int(candidates[np.argmin(self.score(candidates))])

    @abstractmethod
    def score(self, candidates: Indices) -> Floats:
        """One number per candidate; the smallest goes."""

    def staleness(self, candidates: Indices) -> Floats:
        return np.maximum(1.0, self.memory.now_ns - self.accessed[candidates])

    def evicted(self, value: int) -> None:  # noqa: B027  (most scores need not know)
        """`value` left the device."""

    def gone(self, value: int) -> None:  # noqa: B027
        """`value` will not be read again."""

    def computed(self, op: int, fresh: list[int]) -> None:
        self.accessed[list(self.memory.reads[op])] = self.memory.now_ns
        self.accessed[list(self.memory.problem.ops[op].outputs)] = self.memory.now_ns


class _LRU(_Scored):
    def score(self, candidates: Indices) -> Floats:
        return self.accessed[candidates]


class _Size(_Scored):
    def score(self, candidates: Indices) -> Floats:
        return -self.bytes[candidates]


class _HLocal(_Scored):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.cost = np.array(Graph(memory.problem).c0, dtype=np.float64)

    def score(self, candidates: Indices) -> Floats:
        return self.cost[candidates] / (self.bytes[candidates] * self.staleness(candidates))


class _Neighbourly(_Scored):
    """With the cost of what is evicted around a value."""

    around: Neighbourhoods | Components

    def evicted(self, value: int) -> None:
        self.around.evict(value)

    def gone(self, value: int) -> None:
        self.around.restore(value)

    def computed(self, op: int, fresh: list[int]) -> None:
        super().computed(op, fresh)
        for value in fresh:
            self.around.restore(value)


class _H(_Neighbourly):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.around: Neighbourhoods = Neighbourhoods(Graph(memory.problem), descendants=True)

    def score(self, candidates: Indices) -> Floats:
        return self.around.refresh(candidates) / (self.bytes[candidates] * self.staleness(candidates))


class _MSPS(_Neighbourly):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.around: Neighbourhoods = Neighbourhoods(Graph(memory.problem), descendants=False)

    def score(self, candidates: Indices) -> Floats:
        return self.around.refresh(candidates) / self.bytes[candidates]


class _HEq(_Neighbourly):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.around: Components = Components(Graph(memory.problem))

    def score(self, candidates: Indices) -> Floats:
        return self.around.cost_ns[candidates] / (self.bytes[candidates] * self.staleness(candidates))


EVICTORS: dict[Heuristic, Callable[[Memory], Evictor]] = {
    "h": _H,
    "h_eq": _HEq,
    "h_local": _HLocal,
    "lru": _LRU,
    "size": _Size,
    "msps": _MSPS,
}
