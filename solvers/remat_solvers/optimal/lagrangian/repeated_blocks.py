"""Finds repeated layers in the graph alone, without module names or targets.

A run is a series of blocks of ops with the same times, sizes and wiring. Blocks are numbered along the run; a block
holds its forward ops and their backward counterparts. An input of an op of a block is described by its producer: the
number of blocks between them and the position in that block; outside the run, the op; or a constant, which is always
on the device and so needs no name. Two blocks are identical when these descriptions agree at every position.

How they are found (in the manner of tandem repeats in strings): every op gets a colour from its cost, its sizes and
the colours of what it reads, a few levels up; a run is a stretch where the colours of one phase repeat with a period.
Of the positions where a period may start, the one with the fewest values crossing is taken: that is where people would
draw the line between layers. A backward block belongs to the forward block that it reads most. The rest is checked
position by position, and the run is cut to its longest stretch of blocks that agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Ints

LEVELS = 1  # of producers above an op that its colour takes into account
PERIODS = 24  # most frequent distances between equal colours that are tried
Block = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of ops that are identical up to a shift along the run."""

    blocks: tuple[Block, ...]  # per block its ops, forward ones first; equal positions correspond

    def places(self) -> dict[int, tuple[int, int]]:
        """Op to (block, position)."""
        return {op: (b, p) for b, block in enumerate(self.blocks) for p, op in enumerate(block)}


def find_repeats(problem: Problem) -> tuple[Run, ...]:
    """The runs of two and more identical blocks, those that cover most ops first; no op is in two of them."""
    colour = _colours(problem)
    forward = list(_stretches(problem, problem.forward_ops, colour))
    backward = list(_stretches(problem, problem.backward_ops, colour))
    runs = [
        Run(blocks) for series in _paired(problem, forward, backward) if len(blocks := _identical(problem, series)) > 1
    ]
    return tuple(sorted(runs, key=lambda run: -sum(map(len, run.blocks))))


def _colours(problem: Problem) -> Ints:
    """Per op a number; equal for ops of equal cost, sizes and uses whose inputs are equal, too, `LEVELS` levels up."""
    values, results = problem.values, set(problem.results)
    sources = _sources(problem)
    names: dict[object, int] = {}

    def number(name: object) -> int:
        return names.setdefault(name, len(names))

    def description(value: int) -> object:
        return values[value].bytes, values[value].kind, len(problem.consumers[value]), value in results

    own = [
        number((op.phase, op.time_ns, op.workspace_bytes, op.recomputable, op.effects, *map(description, op.outputs)))
        for op in problem.ops
    ]
    colour = own
    for _ in range(LEVELS):
        colour = [
            number((own[i], *((colour[producer], slot) if producer >= 0 else None for producer, slot in read)))
            for i, read in enumerate(sources)
        ]
    return np.array(colour, dtype=np.int64)


def _sources(problem: Problem) -> list[list[tuple[int, int]]]:
    """Per op and input: the producer (-1: a constant) and which of its outputs it is."""
    slot = {v: k for op in problem.ops for k, v in enumerate(op.outputs)}
    return [[(problem.producer[v], slot.get(v, 0)) for v in op.inputs] for op in problem.ops]


def _stretches(problem: Problem, ops: Sequence[int], colour: Ints) -> Iterator[list[Block]]:
    """Disjoint series of consecutive groups of `ops` with equal colours, the longest first."""
    index = np.array(ops, dtype=np.int64)
    marks = colour[index]
    crossing = _crossing(problem, ops)
    while (best := _longest(marks)) is not None:
        start, end, period = best
        choices = min(period, end - start - 2 * period + 1)
        first = start + int(np.argmin(crossing[start : start + choices]))
        yield [tuple(map(int, index[at : at + period])) for at in range(first, end - period + 1, period)]
        marks[start:end] = -1 - np.arange(start, end)  # equal to nothing


def _longest(marks: Ints) -> tuple[int, int, int] | None:
    """(start, end, period) of the longest stretch that repeats at least once, the shortest period of those."""
    order = np.argsort(marks, kind="stable")
    same = np.diff(marks[order]) == 0
    distances = Counter(np.diff(order)[same].tolist())
    best: tuple[int, int, int] | None = None
    for period in sorted(p for p, _ in distances.most_common(PERIODS)):
        equal = np.concatenate(([False], marks[period:] == marks[:-period], [False]))
        edges = np.flatnonzero(np.diff(equal.astype(np.int8)))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            end = stop + period
            if stop - start >= period and (best is None or end - start > best[1] - best[0]):
                best = (start, end, period)
    return best


def _crossing(problem: Problem, ops: Sequence[int]) -> Ints:
    """Per op, the number of values of these ops that are computed before it and read by it or a later one of them."""
    place = {op: at for at, op in enumerate(ops)}
    change = np.zeros(len(ops) + 2, dtype=np.int64)
    for at, op in enumerate(ops):
        for value in problem.ops[op].outputs:
            readers = [place[c] for c in problem.consumers[value] if c in place]
            if readers:
                change[at + 1] += 1
                change[readers[-1] + 1] -= 1
    return np.cumsum(change)[: len(ops)]


def _paired(problem: Problem, forward: list[list[Block]], backward: list[list[Block]]) -> Iterator[list[Block]]:
    """Series of whole blocks: every series of forward groups with the backward groups that read it, else alone."""
    home = {op: (s, b) for s, series in enumerate(forward) for b, group in enumerate(series) for op in group}
    partners: dict[int, dict[int, Block]] = {}
    for series in backward:
        reads = [Counter(home[p] for op in group for p in _producers(problem, op) if p in home) for group in series]
        owners = Counter(s for read in reads for s, _ in read)
        owner = owners.most_common(1)[0][0] if owners else None
        if owner is None or owner in partners:
            yield list(reversed(series))
            continue
        partners[owner] = {}
        for group, read in zip(series, reads, strict=True):
            mine = [(count, b) for (s, b), count in read.items() if s == owner]
            if mine:
                partners[owner].setdefault(max(mine)[1], group)
    for s, series in enumerate(forward):
        mates = partners.get(s)
        if mates is None:
            yield series
        else:
            start, end = _longest_stretch(["paired" if b in mates else None for b in range(len(series))])
            yield [series[b] + mates[b] for b in range(start, end)]


def _producers(problem: Problem, op: int) -> list[int]:
    return [problem.producer[v] for v in problem.ops[op].inputs]


def _identical(problem: Problem, blocks: list[Block]) -> tuple[Block, ...]:
    """The longest stretch of `blocks` whose wiring agrees, each described relative to its own place in the run."""
    place = {op: (b, p) for b, block in enumerate(blocks) for p, op in enumerate(block)}
    sources = _sources(problem)

    def source(b: int, producer: int, slot: int) -> object:
        if producer < 0:
            return None
        if producer in place:
            other, position = place[producer]
            return other - b, position, slot
        return "outside", producer, slot

    descriptions = [
        tuple(tuple(source(b, *read) for read in sources[op]) for op in block) for b, block in enumerate(blocks)
    ]
    start, end = _longest_stretch(descriptions)
    return tuple(blocks[start:end])


def _longest_stretch(keys: Sequence[object]) -> tuple[int, int]:
    """(start, end) of the longest stretch of equal keys; None is no key."""
    best = at = 0, 0
    for key, group in groupby(keys):
        at = at[1], at[1] + len(list(group))
        if key is not None and at[1] - at[0] > best[1] - best[0]:
            best = at
    return best
