"""Minimises a sum of many small tables over finite variables, and computes equal tables once.

Variable elimination (nonserial dynamic programming, Bertele and Brioschi 1972): take a variable, add up the tables that
mention it, replace them by one table over its neighbours with the minimum over the variable. The order of elimination
decides how large the tables get. Here the next variable is the one whose neighbours lack the fewest edges among
themselves, weighted by the sizes of the variables (min-fill, Kjaerulff 1990). In a chain of layers, each of small
width, all tables stay small.

Why 96 identical layers cost as much as one: a table has a name, either given (two tables of one name hold the same
numbers) or composed of the names of the tables that were added and how their variables meet. A table whose name is
known already is not computed again. For that the same variable of every layer must be eliminated in the same turn:
ties between variables are broken by `rank`, which is equal for corresponding variables of identical layers.

The program is compiled once, and evaluated for other numbers under the same names any number of times.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Any

import numpy as np

from remat_solvers.toolkit.arrays import Floats, Indices
from remat_solvers.toolkit.graphs.bit_sets import indices_of, set_of

LARGE = 4096  # entries
Table = Floats


class TooLargeError(Exception):
    """The network is too entangled: a table would have too many entries."""


@dataclass(frozen=True, slots=True)
class Join:
    """A table computed from others: their sum, minimised over one axis."""

    parts: tuple[tuple[int, tuple[int, ...]], ...]  # table, and its shape among the axes of the sum
    axis: int  # over which it is minimised


@dataclass(slots=True)
class Elimination:
    """A compiled network."""

    given: list[Hashable] = field(default_factory=list)  # names of the tables 0, 1, ...
    terms: int = 0  # number of tables that are added up
    joins: list[Join] = field(default_factory=list)  # the tables after them
    turns: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)  # variable, join, its neighbours
    unused: list[int] = field(default_factory=list)  # variables in no table
    constants: list[int] = field(default_factory=list)  # tables without variables; the minimum is their sum

    def minimum(self, given: Sequence[Table]) -> tuple[float, dict[int, int]]:
        """The minimum, and a state per variable that attains it; `given` are the tables in the order of the names."""
        tables = list(given)
        choices: list[Indices | None] = []
        for join in self.joins:
            first, *others = join.parts
            total = tables[first[0]].reshape(first[1])
            for part, shape in others:
                total = total + tables[part].reshape(shape)
            if total.size < LARGE:
                choice = total.argmin(axis=join.axis)
                choices.append(choice)
                minimum = np.take_along_axis(total, np.expand_dims(choice, join.axis), join.axis).squeeze(join.axis)
            else:
                choices.append(None)  # computed only where it is needed: argmin is slow
                minimum = total.min(axis=join.axis)
            tables.append(minimum)
        chosen = dict.fromkeys(self.unused, 0)
        for variable, number, neighbours in reversed(self.turns):
            states = [chosen[n] for n in neighbours]
            choice_of = choices[number]
            best = self._choice(number, states, tables) if choice_of is None else choice_of[tuple(states)]
            chosen[variable] = int(best)
        return float(sum(float(tables[t]) for t in self.constants)), chosen

    def _choice(self, number: int, states: list[int], tables: list[Table]) -> int:
        """The best state of the variable that a join eliminates, for these states of its neighbours."""
        join = self.joins[number]
        index: list[Any] = [*states[: join.axis], slice(None), *states[join.axis :]]
        total = np.zeros(1)
        for part, shape in join.parts:
            cell = tuple(0 if size == 1 else state for size, state in zip(shape, index, strict=True))
            total = total + tables[part].reshape(shape)[cell]
        return int(total.argmin())


def eliminate(
    sizes: Sequence[int], tables: Sequence[tuple[Hashable, tuple[int, ...]]], rank: Sequence[int], largest: float
) -> Elimination:
    """Compile a network: `sizes` of the variables, and `tables` as (name, variables in ascending order).

    rank: ties between variables are broken by it. Raises TooLargeError if a table would have more than 2**largest
    entries.
    """
    return _Compiler(sizes, rank, largest).compile(tables)


class _Compiler:
    def __init__(self, sizes: Sequence[int], rank: Sequence[int], largest: float) -> None:
        self.sizes, self.rank, self.largest = sizes, rank, largest
        self.bits = [log2(size) for size in sizes]
        self.out = Elimination()
        self.scopes: list[tuple[int, tuple[int, ...]]] = []  # of every table so far: its number and its variables
        self.mentions: list[set[int]] = [set() for _ in sizes]  # per variable, the scopes that are left with it
        self.neighbours = [1 << v for v in range(len(sizes))]  # per variable, as bits: itself and those it meets
        self.same_bits = [(b, set_of(v for v, own in enumerate(self.bits) if own == b)) for b in sorted(set(self.bits))]
        self.join_numbers: dict[Hashable, int] = {}  # by name

    def compile(self, tables: Sequence[tuple[Hashable, tuple[int, ...]]]) -> Elimination:
        names: dict[Hashable, int] = {}
        for name, _ in tables:
            names.setdefault(name, len(names))
        self.out.given, self.out.terms = list(names), len(tables)
        for name, variables in tables:
            self._add_table(names[name], variables)
        fill = [self._fill(v) for v in range(len(self.sizes))]
        queue = [(fill[v], self.rank[v], v) for v in range(len(self.sizes))]
        heapq.heapify(queue)
        eliminated = [False] * len(self.sizes)
        while queue:
            fill_before, _, variable = heapq.heappop(queue)
            if eliminated[variable] or fill_before != fill[variable]:
                continue
            eliminated[variable] = True
            if not self.mentions[variable]:
                self.out.unused.append(variable)
                continue
            for other in self._remove(variable):
                fill[other] = self._fill(other)
                heapq.heappush(queue, (fill[other], self.rank[other], other))
        return self.out

    def _fill(self, variable: int) -> float:
        """The fill of its elimination: the sum over newly joined pairs of the product of their bits."""
        neighbours, total = self.neighbours[variable] & ~(1 << variable), 0.0
        for one in indices_of(neighbours):
            unjoined = neighbours & ~self.neighbours[one]
            if unjoined:
                total += self.bits[one] * sum(bits * (unjoined & same).bit_count() for bits, same in self.same_bits)
        return round(total / 2, 6)

    def _add_table(self, table: int, variables: tuple[int, ...]) -> None:
        if not variables:
            self.out.constants.append(table)
            return
        scope_bits = set_of(variables)
        for v in variables:
            self.mentions[v].add(len(self.scopes))
            self.neighbours[v] |= scope_bits
        self.scopes.append((table, variables))

    def _remove(self, variable: int) -> list[int]:
        """Eliminate a variable, and return its neighbours."""
        scope = list(indices_of(self.neighbours[variable]))
        if sum(self.bits[v] for v in scope) > self.largest:
            raise TooLargeError
        axis = {v: k for k, v in enumerate(scope)}
        parts = sorted(
            (tuple([axis[v] for v in self.scopes[t][1]]), self.scopes[t][0]) for t in self.mentions[variable]
        )
        axes = tuple([self.sizes[v] for v in scope])
        name = (tuple(parts), axes, axis[variable])
        join = self.join_numbers.get(name)
        if join is None:
            join = self.join_numbers[name] = len(self.out.joins)
            self.out.joins.append(
                Join(tuple((table, _shape(axes, positions)) for positions, table in parts), axis[variable])
            )
        for table in self.mentions[variable]:
            for v in self.scopes[table][1]:
                if v != variable:
                    self.mentions[v].discard(table)
        rest = tuple(v for v in scope if v != variable)
        for v in rest:
            self.neighbours[v] &= ~(1 << variable)
        self.out.turns.append((variable, join, rest))
        self._add_table(len(self.out.given) + join, rest)
        return list(rest)


def _shape(axes: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size if k in positions else 1 for k, size in enumerate(axes))
