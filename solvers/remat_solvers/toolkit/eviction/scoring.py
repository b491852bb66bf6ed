"""The base of evictors that give every candidate a score: the value of the smallest score is evicted."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.eviction.memory import Memory
from remat_solvers.toolkit.eviction.neighbourhoods import Components, Neighbourhoods


class ScoringEvictor(ABC):
    """Evicts the candidate of the smallest score, and keeps `neighbours`, if given, up to date."""

    def __init__(self, memory: Memory, neighbours: Neighbourhoods | Components | None = None) -> None:
        self.memory = memory
        self.bytes = np.array(memory.size, dtype=np.float64)
        self._neighbours = neighbours

    @abstractmethod
    def score(self, candidates: Indices) -> Floats:
        """The scores of the candidates, in their order."""

    def choose(self, candidates: Indices) -> int:
        """See `Evictor`."""
        return int(candidates[np.argmin(self.score(candidates))])

    def evicted(self, value: int) -> None:
        """See `Evictor`."""
        if self._neighbours is not None:
            self._neighbours.evict(value)

    def released(self, value: int) -> None:
        """See `Evictor`."""
        if self._neighbours is not None:
            self._neighbours.restore(value)

    def computed(self, op: int, fresh: list[int]) -> None:
        """See `Evictor`."""
        for value in fresh:
            self.released(value)
