"""Relaxes the memory rows of the stage program to prices, which leaves a network of small tables.

Put a price lambda_k >= 0 on the bytes at moment k of the program of ../program/program.py, in place of its rows (5):

    L(lambda) = min  sum time(v) R[v, k] + sum_k lambda_k (sum_d bytes(d) S[d, k] - capacity_k)
                over (1) to (4), R and S in {0, 1}

with capacity_k = budget - constants - reserve - workspace(a_k). For any prices, L(lambda) is at most the optimum of the
program (Lagrangian relaxation: a point within the rows (5) makes every term with a price at most 0), and so a lower
bound on every plan's time. For the best prices it is at least the LP's bound, and better where the LP splits ops, since
R and S stay integers (Geoffrion 1974): only the sums of memory are relaxed, every layer is solved exactly.

The rest is local. Write x_v for the stages in which v is computed, a subset of 0..K. Given x_p of its producer p and
the stages A_d in which its readers are computed, the S of a value d that costs least is also the one with fewest ones:
d is resident at moment k-1 exactly if it is read in stage k, or resident at moment k, and p is not computed in stage k.
So with a variable x_v per op, and one A_d per value of several readers that contains x_c of each, the sum is one of
tables over two variables:

    time(v) |x_v|
    bytes(d) sum_k lambda_k S[d, k]     as a function of x_p and A_d, or x_c where c is the only reader
    0 or infinity                       for x_c within A_d or not

The tables of identical layers are identical, which is all that elimination.py requires.

Lenient programs leave rows out, which allows more moments where memory is tight. Fewer rows give a lower minimum, so L
stays a bound. In them, recomputations of backward ops need no outputs of forward ops: then nothing of a layer's forward
ops is needed after its backward ops were computed, and the sets of their stages are few. And values that are small
beside the largest count as zero bytes: they are kept, and an op that produces only such values is computed once. On the
networks measured this costs a few hundredths of a percentage point.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Any

import numpy as np

from remat_solvers.optimal.lagrangian.elimination import Elimination, TooLargeError, eliminate
from remat_solvers.optimal.lagrangian.repeated_blocks import Run
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.toolkit.arrays import Floats, Ints, Mask

Scope = tuple[int, ...]
MAX_MOMENTS = 10
LARGEST, LARGEST_LENIENT = 20, 22  # log2 of the entries of a table
IMPOSSIBLE = -1
LIGHT = 1e-3  # of the largest value: up to this size, values count as zero bytes in a lenient program


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the program without memory rows."""

    computed: Ints  # per op, the stages in which it is computed, as bits
    present: Ints  # per value, the moments at which it is on the device, as bits
    time_ns: int
    used_bytes: Ints  # per moment, beside constants, reserve and workspace


@dataclass(frozen=True, slots=True)
class PricedTable:
    """A table: numbers + bytes * (the sum of the prices of some moments)."""

    numbers: Floats
    bytes: float
    moments: Ints  # sets of moments, as bits


class LagrangianProgram:
    """The program over some stages, compiled; raises TooLargeError where the graph is too entangled for it.

    Identical blocks of `repeats` share tables. `lenient`: rows are left out, so points need not be plans.
    """

    def __init__(self, stages: Stages, repeats: Sequence[Run], *, lenient: bool = False) -> None:
        if len(stages.anchors) > MAX_MOMENTS:
            raise TooLargeError
        self.stages = stages
        self.graph: OpGraph = stages.graph
        self.moments = len(stages.anchors)
        self.workspace = np.array([self.graph.problem.ops[a].workspace_bytes for a in stages.anchors], dtype=np.int64)
        self.lenient = lenient
        light = LIGHT * int(self.graph.bytes.max(initial=0)) if lenient else 0
        self.bytes = np.where(self.graph.bytes <= light, 0, self.graph.bytes)
        self.must_be_present = self._must_be_present()
        self.domains = self._domains()
        self.sizes: list[int] = []
        self.owners: list[int] = []  # per variable, its op; -1: a set of readers' stages
        self.states: list[tuple[int, ...]] = []
        self.elimination = self._compile(repeats)
        self.given = [self._given(name) for name in self.elimination.given]

    def capacity(self, budget_bytes: int) -> Ints:
        """Per moment, the bytes that values may have."""
        return budget_bytes - self.graph.static_bytes - self.workspace

    def minimum(self, prices: Floats) -> tuple[float, Point]:
        """The minimum of time + prices * bytes, in ns, and a point that attains it."""
        subsets = np.zeros(1)
        for price in prices:
            subsets = np.concatenate((subsets, subsets + price))
        value, chosen = self.elimination.minimum([g.numbers + g.bytes * subsets[g.moments] for g in self.given])
        runs = np.array([domain[0] for domain in self.domains], dtype=np.int64)
        for variable, op in enumerate(self.owners):
            if op >= 0:
                runs[op] = self.states[variable][chosen[variable]]
        return value, self.point(runs)

    def point(self, runs: Ints) -> Point:
        """The point that computes ops in these stages and keeps no more than it must."""
        graph = self.graph
        read = np.zeros(len(graph.bytes), dtype=np.int64)
        demands = np.where(self._exempt(graph.readers, graph.reads), 1 << self.stages.low[graph.readers], -1)
        np.bitwise_or.at(read, graph.reads, runs[graph.readers] & demands)
        produced = np.where(graph.produced, runs[graph.producer], -1) if len(runs) else np.zeros(0, dtype=np.int64)
        stays = self._presence(produced, read, self.must_be_present)
        used = [int(self.bytes[(stays >> k) & 1 == 1].sum()) for k in range(self.moments)]
        time = int((graph.time_ns * _count(runs)).sum())
        return Point(runs, stays, time, np.array(used, dtype=np.int64))

    def masks(self, point: Point) -> tuple[Mask, Mask]:
        """S as [moment, value] and R as [stage, op]."""
        bits = np.arange(self.moments + 1)[:, None]
        return (point.present >> bits & 1).astype(bool), (point.computed >> bits & 1).astype(bool)

    def _exempt(self, reader: Any, value: Any) -> Any:
        """Whether recomputations of the reader do not need the value on the device."""
        graph, stages = self.graph, self.stages
        crosses = graph.backward[reader] & graph.produced[value] & ~graph.backward[graph.producer[value]]
        return crosses & (stages.low[reader] == stages.high[reader]) & self.lenient

    def _must_be_present(self) -> Ints:
        """Rows (4): per value the moments, as bits."""
        graph, stages = self.graph, self.stages
        must = np.zeros(len(graph.bytes), dtype=np.int64)
        for k, anchor in enumerate(stages.anchors):
            must[graph.inputs[anchor]] |= 1 << k
            must[list(graph.problem.ops[anchor].outputs)] |= 1 << k
            if graph.backward[anchor]:
                must[graph.forward_result] |= 1 << k
        must[graph.result] |= 1 << self.moments
        return must

    def _domains(self) -> list[tuple[int, ...]]:
        """Per op, the sets of stages in which it may be computed: one or more of lo..hi, and later ones if useful."""
        stages, graph = self.stages, self.graph
        latest = self._latest()
        subsets: dict[tuple[int, int, int], tuple[int, ...]] = {}
        domains = []
        for op, (low, high) in enumerate(zip(stages.low.tolist(), stages.high.tolist(), strict=True)):
            key = low, high, min(latest[op], self.moments)
            outputs = list(graph.problem.ops[op].outputs)
            if not graph.recomputable[op] or (low == high and not self.bytes[outputs].any()):
                key = low, high, -1
            if key not in subsets:
                subsets[key] = _subsets(*key)
            domains.append(subsets[key])
        return domains

    def _latest(self) -> list[int]:
        """Per op, the last stage in which a recomputation could be of use (L in ../program/stages.py)."""
        graph, high = self.graph, self.stages.high.tolist()
        latest = [-1] * len(high)
        for op in range(len(high) - 1, -1, -1):
            for value in graph.problem.ops[op].outputs if graph.recomputable[op] else ():
                if graph.result[value]:
                    latest[op] = self.moments
                for r in graph.problem.consumers[value]:
                    exempt = self._exempt(r, value)
                    latest[op] = max(latest[op], high[r] if exempt else max(high[r], latest[r]))
        return latest

    def _compile(self, repeats: Sequence[Run]) -> Elimination:
        ops = self.graph.problem.ops
        turn = _turns(len(ops), repeats)
        variable = [-1] * len(ops)
        rank: list[int] = []
        tables: list[tuple[Hashable, Scope]] = []

        def add(states: tuple[int, ...], op: int, order: int) -> int:
            self.sizes.append(len(states))
            self.owners.append(op)
            self.states.append(states)
            rank.append(order)
            return len(self.sizes) - 1

        certain_stages, open_readers = self._demands()
        readers_variable: dict[int, int] = {}  # per value of several open readers, the variable A
        for op, item in enumerate(ops):
            if len(self.domains[op]) > 1:
                variable[op] = add(self.domains[op], op, 2 * turn[op])
            for value in item.outputs:
                certain, readers = certain_stages[value], open_readers[value]
                if len(readers) > 1:
                    readers_variable[value] = add(self._unions(readers, certain), -1, 2 * turn[op] + 1)
        for op, item in enumerate(ops):
            own: Scope = (variable[op],) if variable[op] >= 0 else ()
            tables.append((("run", self.domains[op], item.time_ns, False), own))
            for value in item.outputs:
                certain, readers = certain_stages[value], open_readers[value]
                several = value in readers_variable
                other: Scope = (readers_variable[value],) if several else tuple(variable[r] for r in readers)
                read_states = self.states[other[0]] if other else (0,)
                name = (
                    "stay",
                    self.domains[op],
                    read_states,
                    certain,
                    int(self.must_be_present[value]),
                    int(self.bytes[value]),
                )
                tables.append(_sorted(name, own, other))
                if several:
                    for r in readers:
                        tables.append(_sorted(("within", self.domains[r], read_states, certain), (variable[r],), other))
        return eliminate(self.sizes, tables, rank, LARGEST_LENIENT if self.lenient else LARGEST)

    def _demands(self) -> tuple[list[int], list[list[int]]]:
        """Per value, the stages in which a reader certainly reads it (as bits), and the readers with a choice."""
        certain: list[int] = []
        readers_with_choice: list[list[int]] = []
        fixed = self.stages.low == self.stages.high
        for value, readers in enumerate(self.graph.problem.consumers):
            certain.append(0)
            readers_with_choice.append([])
            if not self.bytes[value] and fixed[self.graph.producer[value]]:
                continue  # it is always kept
            for r in readers:
                if len(self.domains[r]) == 1 or self._exempt(r, value):
                    certain[value] |= self.domains[r][0]
                else:
                    readers_with_choice[value].append(r)
        return certain, readers_with_choice

    def _unions(self, readers: Sequence[int], certain: int) -> tuple[int, ...]:
        """The possible unions of the readers' stages, without the stages that are certain anyway."""
        in_all, in_any = 0, 0
        for r in readers:
            in_all |= reduce(and_, self.domains[r])
            in_any |= reduce(or_, self.domains[r])
        in_all, in_any = in_all & ~certain, in_any & ~certain
        return tuple(s for s in range(in_any + 1) if s & in_all == in_all and s | in_any == in_any)

    def _given(self, name: Any) -> PricedTable:
        """Compute the table of that name."""
        kind, *arguments, swapped = name
        size, sets = 0, np.zeros(1, dtype=np.int64)
        if kind == "run":
            domain, time_ns = arguments
            table = _count(np.array(domain)) * float(time_ns)
        elif kind == "stay":
            domain, read_states, certain, must, size = arguments
            stays = self._presence(np.array(domain)[:, None], np.array(read_states)[None, :] | certain, np.array(must))
            table = np.where(stays == IMPOSSIBLE, np.inf, 0.0)
            sets = np.where(stays == IMPOSSIBLE, 0, stays & ((1 << self.moments) - 1))
        else:
            inner, outer, certain = arguments
            table = np.where(np.array(inner)[:, None] & ~(np.array(outer)[None, :] | certain), np.inf, 0.0)
        numbers, sets = (np.squeeze(t.T if swapped else t) for t in (table, sets))
        return PricedTable(numbers, float(size), sets)

    def _presence(self, produced: Ints, read: Ints, must: Ints) -> Ints:
        """The moments at which a value must be resident, as bits; IMPOSSIBLE: it is read before it is computed.

        produced, read: the stages in which its producer and its readers are computed; must: the moments of rows (4).
        """
        stays = np.broadcast_to(must, np.broadcast_shapes(produced.shape, read.shape, must.shape)).astype(np.int64)
        for k in range(self.moments, -1, -1):
            before = ((stays | read) & ~produced) >> k & 1
            if k:
                stays = stays | before << (k - 1)
        return np.where(before, IMPOSSIBLE, stays)


def _sorted(name: tuple[Hashable, ...], own: Scope, other: Scope) -> tuple[Hashable, Scope]:
    """Return a table's name and its variables in ascending order; the name says whether that swaps the axes."""
    swapped = own + other != tuple(sorted(own + other))
    return (*name, swapped), tuple(sorted(own + other))


def _subsets(low: int, high: int, latest: int) -> tuple[int, ...]:
    """The sets of stages in low..latest with at least one of low..high; latest < 0: exactly one of low..high."""
    first = range(low, high + 1)
    if latest < 0:
        return tuple(1 << k for k in first)
    last = max(latest, high)
    early = sum(1 << k for k in first)
    return tuple(s << low for s in range(1, 1 << (last - low + 1)) if (s << low) & early)


def _count(sets: Ints) -> Ints:
    """The number of bits that are set."""
    return sum((sets >> k & 1 for k in range(MAX_MOMENTS + 1)), start=np.zeros_like(sets))


def _turns(ops: int, repeats: Sequence[Run]) -> list[int]:
    """A number per op, equal for corresponding ops of the blocks of a run."""
    turn = list(range(ops, 2 * ops))
    for run in repeats:
        for block in run.blocks:
            for op, first in zip(block, run.blocks[0], strict=True):
                turn[op] = first
    return turn
