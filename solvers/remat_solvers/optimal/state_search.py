"""Solves small problems exactly by A* over the states of the step: finds the optimum, or proves that no plan fits.

A state is the set of ops computed so far and the set of resident values. From a state any op may run whose inputs are
resident: for the first time where its order allows, or as a repeat. Before it, values may be freed; of those that need
not stay, only the sets to which no value can be added are tried, since a value can be freed later at no cost. Every
plan without offload is such a path, so a shortest path is the optimum, and no path means no plan.

A* (Hart, Nilsson, Raphael 1968), where only the time of repeats is counted, with

    g = time of the repeats so far
    h = time of every op that has to be recomputed: one of its outputs is not resident, and is read by an op that has
        not run yet or by another op that has to be recomputed, or is a result

Each of these ops runs at least once more, so h is admissible; and h falls by no more than the time of the op that runs.
So the smallest g + h of all open states never falls, and is at any moment a bound on the repeats of every plan. A state
is dominated, and pruned, where another with the same ops computed has at least the same values resident and no larger
g: each path from the one is a path from the other, which may free its further values. Every other state expanded is the
one in which most ops have been computed, so that there is a plan early.

The tangents exist when backward is called, so our plans run no op between the forward and them. A bound must hold for
plans that do; `tangents_first` excludes these.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TypeAlias

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.graphs.bit_sets import indices_of, set_of

State: TypeAlias = tuple[int, int]  # bit sets: ops computed, values on the device
Entry: TypeAlias = tuple[int, int, int, int, State]  # three keys, g, and the state


class StateSearch:
    """A search over all plans without offload of one problem within one budget; `run` continues it."""

    def __init__(self, problem: Problem, budget_bytes: int, *, order: Order, tangents_first: bool) -> None:
        self.order = order
        self.tangents_first = tangents_first
        self._transitions = _Transitions(problem, budget_bytes, order, tangents_first=tangents_first)
        self._once_ns = time_bound_ns(problem)
        self.met = 0  # states met so far
        self.done = False
        self.sequence: list[int] | None = None  # the fastest found; the optimum when done, and None: no plan fits
        self._repeats_ns: int | None = None  # of the sequence
        self._min_total_ns = 0  # a lower bound on g + h of every open state
        self._predecessor: dict[State, tuple[State, int]] = {}  # the state before, and the op that ran
        self._open: dict[State, int] = {}  # g of the states to expand
        self._expanded: dict[int, dict[int, int]] = {}  # per set of ops computed: g per set of resident values
        self._by_bound: list[Entry] = []  # heaps of open states; entries that are no longer open are skipped
        self._by_progress: list[Entry] = []
        self._meetings = self._search()

    @property
    def bound_ns(self) -> int:
        """A bound on the time of every plan of this order within the budget."""
        return self._once_ns + self._min_total_ns

    def run(self, states: int) -> None:
        """Continue until so many more states have been met, or no state is left to expand."""
        for _ in islice(self._meetings, states):
            self.met += 1

    def _search(self) -> Iterator[None]:
        """Yield after each state met."""
        self._meet(0, (0, 0))
        yield
        greedy = False
        while (state := self._next(greedy=greedy)) is not None:
            computed, resident = state
            g = self._expanded[computed][resident]
            if computed == self._transitions.all_ops and not self._transitions.results & ~resident:
                self._repeats_ns, self.sequence = g, self._path(state)
            for op, after in self._transitions.moves(computed, resident):
                if self._meet(g + (self._transitions.time_ns[op] if computed >> op & 1 else 0), after):
                    self._predecessor[after] = state, op
                yield
            greedy = self.sequence is None and not greedy
        self.done = True

    def _next(self, *, greedy: bool) -> State | None:
        """The open state to expand next; None: no open state leads to a faster plan."""
        heap = self._by_progress if greedy else self._by_bound
        while heap:
            entry = heapq.heappop(heap)
            g, state = entry[-2:]
            if self._open.get(state) != g:
                continue
            if not greedy:
                self._min_total_ns = entry[0] if self._repeats_ns is None else min(entry[0], self._repeats_ns)
                if self._min_total_ns == self._repeats_ns:
                    return None
            del self._open[state]
            computed, resident = state
            expanded = self._expanded.setdefault(computed, {})
            if not any(other_g <= g and not resident & ~other for other, other_g in expanded.items()):
                expanded[resident] = g
                return state
        self._min_total_ns = max(self._min_total_ns, self._repeats_ns or 0)
        return None

    def _meet(self, g: int, state: State) -> bool:
        """Whether a state is open from now on: it was not met at so small a g, and may lead to a faster plan."""
        computed, resident = state
        known_g = self._open.get(state, self._expanded.get(computed, {}).get(resident))
        if known_g is not None and known_g <= g:
            return False
        h = self._transitions.repeats_ns(computed, resident)
        if h is None or (self._repeats_ns is not None and g + h >= self._repeats_ns):
            return False
        self._open[state] = g
        # Of otherwise equal states, the one with more resident values comes first: it may dominate others.
        minus_computed, minus_resident = -computed.bit_count(), -resident.bit_count()
        heapq.heappush(self._by_bound, (g + h, minus_computed, minus_resident, g, state))
        if self.sequence is None:
            heapq.heappush(self._by_progress, (minus_computed, g + h, minus_resident, g, state))
        return True

    def _path(self, state: State) -> list[int]:
        sequence: list[int] = []
        while state in self._predecessor:
            state, op = self._predecessor[state]
            sequence.append(op)
        return sequence[::-1]


class _Transitions:
    """The transitions from a state, on bit sets of ops and values."""

    def __init__(self, problem: Problem, budget_bytes: int, order: Order, *, tangents_first: bool) -> None:
        ops, values = problem.ops, problem.values
        constant = set_of(v for v, value in enumerate(values) if value.kind == "constant")
        self.order = order
        self.bytes = [v.bytes for v in values]
        self.room = budget_bytes - problem.static_bytes
        self.inputs = [set_of(op.inputs) & ~constant for op in ops]
        self.outputs = [set_of(op.outputs) for op in ops]
        self.producer = problem.producer
        self.fresh_bytes = [sum(self.bytes[v] for v in op.outputs) + op.workspace_bytes for op in ops]
        self.time_ns = [op.time_ns for op in ops]
        self.all_ops = (1 << len(ops)) - 1
        self.forward = set_of(problem.forward_ops)
        self.recomputable = set_of(i for i, op in enumerate(ops) if op.recomputable)
        self.effects = set_of(i for i, op in enumerate(ops) if op.effects)
        self.results = set_of(problem.results) & ~constant
        self.forward_results = self.results & _union(self.outputs, self.forward)
        self.computed_once = _union(self.outputs, self.all_ops & ~self.recomputable)  # values that are computed once
        self.tangents = tangents_op(problem) if tangents_first else None
        self.wanted = lru_cache(maxsize=None)(self._wanted)
        self.readable = lru_cache(maxsize=None)(self._readable)

    def moves(self, computed: int, resident: int) -> Iterator[tuple[int, State]]:
        """Every op that may run in a state, with each of the states after it."""
        after_forward = not self.forward & ~computed
        held = self.forward_results if after_forward else 0
        if after_forward and self.tangents is not None and not computed >> self.tangents & 1:
            yield from self._run(self.tangents, computed | 1 << self.tangents, resident, held)
            return
        for op in indices_of(self._first(computed)):
            after = computed | 1 << op
            yield from self._run(op, after, resident, self.forward_results if not self.forward & ~after else 0)
        useful = self.readable(computed) & ~resident
        for op in indices_of(computed & self.recomputable):
            if self.outputs[op] & useful:
                yield from self._run(op, computed, resident, held)

    def repeats_ns(self, computed: int, resident: int) -> int | None:
        """The time of the ops that have to be recomputed; None: one of them is not recomputable."""
        existing = _union(self.outputs, computed)
        missing = self.wanted(computed) & existing & ~resident
        seen, total_ns = 0, 0
        while missing:
            op = self.producer[(missing & -missing).bit_length() - 1]
            if not self.recomputable >> op & 1:
                return None
            total_ns += self.time_ns[op]
            seen |= self.outputs[op]
            missing = (missing | (self.inputs[op] & ~resident)) & ~seen
        return total_ns

    def _first(self, computed: int) -> int:
        """The ops that may run for the first time."""
        pending = self.all_ops & ~computed
        if self.order is Order.GIVEN:
            return pending & -pending
        if self.forward & pending:
            pending &= self.forward
        effects = self.all_ops & ~computed & self.effects
        return pending & ~(effects & (effects - 1))

    def _run(self, op: int, computed: int, resident: int, held: int) -> Iterator[tuple[int, State]]:
        """The states after `op`, when `computed` ops have been computed; the values `held` stay resident meanwhile."""
        outputs = self.outputs[op]
        stays = self.inputs[op] | (held & ~outputs)
        if stays & ~resident:
            return
        stays |= resident & (held | (self.wanted(computed) & self.computed_once))
        room = self.room - self.fresh_bytes[op] - sum(self.bytes[v] for v in indices_of(stays))
        if room < 0:
            return
        readable = self.readable(computed)
        optional = sorted(indices_of(resident & readable & ~stays & ~outputs), key=self.bytes.__getitem__)
        for kept in self._largest(optional, room):
            yield op, (computed, (stays | kept | outputs) & readable)

    def _largest(self, optional: list[int], room: int) -> Iterator[int]:
        """The maximal sets of `optional` values, which are sorted by bytes, that fit in the room."""

        def choose(index: int, kept: int, room: int, undecided: int, smallest_out: int | None) -> Iterator[int]:
            # From the largest down. At the end, not even the smallest value left out may fit.
            if undecided <= room:
                if smallest_out is None or room - undecided < smallest_out:
                    yield kept | set_of(optional[: index + 1])
                return
            if index < 0:
                return
            size = self.bytes[optional[index]]
            if size <= room:
                yield from choose(index - 1, kept | 1 << optional[index], room - size, undecided - size, smallest_out)
            yield from choose(index - 1, kept, room, undecided - size, size)

        yield from choose(len(optional) - 1, 0, room, sum(self.bytes[v] for v in optional), None)

    def _wanted(self, computed: int) -> int:
        """The values that ops which have not run yet read, and the results."""
        return _union(self.inputs, self.all_ops & ~computed) | self.results

    def _readable(self, computed: int) -> int:
        """The values that an op may still read, be it to recompute values that others may read; and the results."""
        readable = self.wanted(computed)
        held = 0 if self.forward & ~computed else self.forward_results  # never recomputed
        for op in sorted(indices_of(computed & self.recomputable), reverse=True):
            if self.outputs[op] & readable & ~held:
                readable |= self.inputs[op]
        return readable


def _union(sets: Sequence[int], indices: int) -> int:
    """The union of the sets with these indices."""
    union = 0
    for index in indices_of(indices):
        union |= sets[index]
    return union
