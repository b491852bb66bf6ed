"""Views any training step as a chain of stages, for the methods that treat chains.

Those methods (revolve, Gruslys et al., rotor) see a step as stages 0..L-1, each of which takes the state before it to
the state after it, and a backward of each stage, in reverse order. This file gives that view of a general joint graph:
`cuts` chooses where the forward order is cut, and has the definition of a state.

Backward. The backward ops, in their order, fall into one chunk per stage, the last stage's first. With T_c, the last
backward op that reads a value computed after the cut c, the chunk of the stages beyond c ends after T_c, and before the
first op that reads a value computed up to c that is not in the state of c. Of the places between, it is the one where
the fewest bytes of gradients are alive, and of equal ones the latest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.chains.cuts import Crossings, Cuts

MAX_SLOTS = 10_000  # parts of memory, in tables by slots over all pairs of stages
MAX_STAGES = 1_000  # of such a table


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive forward ops, and the consecutive backward ops that belong to them."""

    ops: tuple[int, ...]  # forward ops, in order
    backward: tuple[int, ...]  # backward ops, in order
    state: tuple[int, ...]  # droppable values computed before, from which this and all later stages follow
    saved: tuple[int, ...]  # droppable values that its backward ops read, of this stage or of its state


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages of a problem. The state after the last stage is empty."""

    problem: Problem
    stages: tuple[Stage, ...]
    droppable: tuple[bool, ...]  # per value

    def state(self, stage: int) -> tuple[int, ...]:
        """Values from which stage `stage` and all later ones follow; empty after the last stage."""
        return self.stages[stage].state if stage < len(self.stages) else ()

    def bytes(self, values: Sequence[int] | set[int]) -> int:
        """Sum of the sizes of `values`."""
        return sum(self.problem.values[v].bytes for v in values)


def chain_view(problem: Problem, *, cuts: Cuts = "minima", max_stages: int = 100) -> Chain:
    """The chain of at most `max_stages` stages; a single one where the problem has no forward op to cut after."""
    crossings = Crossings(problem)
    chosen = crossings.choose(cuts, max_stages)
    edges = [0, *(cut + 1 for cut in chosen), crossings.count]
    chunks = [0, *_chunk_ends(crossings, chosen)[::-1], len(crossings.reads)]  # places, the last stage's chunk first
    stages = []
    for k, (first, end) in enumerate(pairwise(edges)):
        begin, stop = chunks[len(chosen) - k], chunks[len(chosen) - k + 1]
        stages.append(
            Stage(
                ops=problem.forward_ops[first:end],
                backward=problem.backward_ops[begin:stop],
                state=crossings.state(first - 1) if first else (),
                saved=tuple(sorted({v for place in range(begin, stop) for v in crossings.reads[place]})),
            )
        )
    return Chain(problem, tuple(stages), tuple(crossings.droppable))


def distinct_chains(problem: Problem, views: Iterable[tuple[Cuts, int]]) -> Iterator[Chain]:
    """The chain of each view, given as cuts and `max_stages`; a chain that equals an earlier one is left out."""
    chains: list[Chain] = []
    for cuts, max_stages in views:
        chain = chain_view(problem, cuts=cuts, max_stages=max_stages)
        if chain not in chains:
            chains.append(chain)
            yield chain


def _chunk_ends(crossings: Crossings, cuts: Sequence[int]) -> list[int]:
    """Per cut, the place where the chunks of the stages beyond it end."""
    alive_bytes = live_gradients(crossings.problem)
    none = crossings.count + 1
    earliest = [min((crossings.end[v] for v in values), default=none) for values in crossings.reads]
    ends: list[int] = []
    previous = 0 if tangents_op(crossings.problem) is None else 1  # the tangents exist from the start of backward
    for cut in reversed(cuts):
        low = max(crossings.last[cut] + 1, previous)
        high = low
        while high < len(earliest) and earliest[high] > cut:
            high += 1
        window = alive_bytes[low : high + 1]
        previous = high - int(np.argmin(window[::-1]))
        ends.append(previous)
    return ends[::-1]


def live_gradients(problem: Problem) -> Ints:
    """Bytes that backward has computed and still needs, before each backward op (by its place) and at the end."""
    place = {op: k for k, op in enumerate(problem.backward_ops)}
    results = set(problem.results)
    change = [0] * (len(place) + 2)
    for value, producer in enumerate(problem.producer):
        if producer in place:
            size = problem.values[value].bytes
            readers = problem.consumers[value]
            change[place[producer] + 1] += size
            if value not in results:
                change[(place[readers[-1]] if readers else place[producer]) + 1] -= size
    return np.cumsum(np.array(change[:-1], dtype=np.int64))
