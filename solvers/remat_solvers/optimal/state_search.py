"""Small problems, exactly: a search over the states of the step, for the plan and for the proof that there is none.

A state is which ops have been computed, and which values are on the device. From a state any op may run whose inputs
are there: for the first time where its order allows, or again. Before it, values may be freed; of those that need not
stay, only choices to which nothing can be added are tried, since a value can be freed later at no cost. Everything that
a plan without offload can do is such a path, so a shortest one is the optimum, and no path means no plan.

A* (Hart, Nilsson, Raphael 1968), where only the time of repeats is counted, with

    g = time of the repeats so far
    h = time of every op that has to run again: it made what some op that has not run yet reads, or what is a result,
        or what another op that has to run again reads, and that is gone

Each of these ops runs at least once more, so h is admissible; and h falls by no more than what runs takes. So the least
g + h of all open states never falls, and is at any moment a bound on the repeats of every plan. A state is left out
where another with the same ops computed has at least the same values there and no larger g: what follows from the one
follows from the other, which may free what it has more. Every other state expanded is the one in which most has been
computed, so that there is a plan early.

The tangents exist when backward is called, so plans run nothing between the forward and them. A bound must hold for
plans that do; `tangents_first` leaves these out.
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

__all__ = ["StateSearch"]

State: TypeAlias = tuple[int, int]  # bit sets: ops computed, values on the device
Entry: TypeAlias = tuple[int, int, int, int, State]  # three keys, g, and the state


class StateSearch:
    """Plans without offload, of one problem within one budget; goes on where it was with every `run`."""

    def __init__(self, problem: Problem, budget_bytes: int, *, order: Order, tangents_first: bool) -> None:
        self.order = order
        self.tangents_first = tangents_first
        self._steps = _Steps(problem, budget_bytes, order, tangents_first=tangents_first)
        self._once_ns = time_bound_ns(problem)
        self.met = 0  # states
        self.done = False
        self.sequence: list[int] | None = None  # the fastest found; the optimum when done, and None: no plan fits
        self._repeats_ns: int | None = None  # of the sequence
        self._least_ns = 0  # g + h of every open state is at least this
        self._came: dict[State, tuple[State, int]] = {}  # the state before, and the op that ran
        self._open: dict[State, int] = {}  # g of states to expand
        self._expanded: dict[int, dict[int, int]] = {}  # per ops computed: g of the values there
        self._by_bound: list[Entry] = []  # heaps of open states; others in them are passed over
        self._by_progress: list[Entry] = []
        self._meetings = self._search()

    @property
    def bound_ns(self) -> int:
        """No plan of this order within the budget is faster."""
        return self._once_ns + self._least_ns

    def run(self, states: int) -> None:
        """Go on until so many more states have been met, or there is nothing left to try."""
        for _ in islice(self._meetings, states):
            self.met += 1

    def _search(self) -> Iterator[None]:
        """State after state."""
        self._meet(0, (0, 0))
        yield
        greedy = False
        while (state := self._next(greedy=greedy)) is not None:
            computed, there = state
            g = self._expanded[computed][there]
            if computed == self._steps.all_ops and not self._steps.results & ~there:
                self._repeats_ns, self.sequence = g, self._path(state)
            for op, after in self._steps.moves(computed, there):
                if self._meet(g + (self._steps.time_ns[op] if computed >> op & 1 else 0), after):
                    self._came[after] = state, op
                yield
            greedy = self.sequence is None and not greedy
        self.done = True

    def _next(self, *, greedy: bool) -> State | None:
        """The first open state; None: no faster plan follows from any."""
        heap = self._by_progress if greedy else self._by_bound
        while heap:
            entry = heapq.heappop(heap)
            g, state = entry[-2:]
            if self._open.get(state) != g:
                continue
            if not greedy:
                self._least_ns = entry[0] if self._repeats_ns is None else min(entry[0], self._repeats_ns)
                if self._least_ns == self._repeats_ns:
                    return None
            del self._open[state]
            computed, there = state
            expanded = self._expanded.setdefault(computed, {})
            if not any(other_g <= g and not there & ~other for other, other_g in expanded.items()):
                expanded[there] = g
                return state
        self._least_ns = max(self._least_ns, self._repeats_ns or 0)
        return None

    def _meet(self, g: int, state: State) -> bool:
        """Whether a state is open from now on: it was not met at so small a g, and a faster plan may follow from it."""
        computed, there = state
        known_g = self._open.get(state, self._expanded.get(computed, {}).get(there))
        if known_g is not None and known_g <= g:
            return False
        h = self._steps.repeats_ns(computed, there)
        if h is None or (self._repeats_ns is not None and g + h >= self._repeats_ns):
            return False
        self._open[state] = g
        # Where states are else alike, that with more values first: it may make others needless.
        waiting, fewer = -computed.bit_count(), -there.bit_count()
        heapq.heappush(self._by_bound, (g + h, waiting, fewer, g, state))
        if self.sequence is None:
            heapq.heappush(self._by_progress, (waiting, g + h, fewer, g, state))
        return True

    def _path(self, state: State) -> list[int]:
        sequence: list[int] = []
        while state in self._came:
            state, op = self._came[state]
            sequence.append(op)
        return sequence[::-1]


class _Steps:
    """What may follow a state, in bit sets of ops and values."""

    def __init__(self, problem: Problem, budget_bytes: int, order: Order, *, tangents_first: bool) -> None:
        ops, values = problem.ops, problem.values
        constant = set_of(v for v, value in enumerate(values) if value.kind == "constant")
        self.order = order
        self.bytes = [v.bytes for v in values]
        self.room = budget_bytes - problem.constant_bytes - problem.reserve_bytes
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
        self.lasting = _union(self.outputs, self.all_ops & ~self.recomputable)  # values that are made once
        self.tangents = tangents_op(problem) if tangents_first else None
        self.wanted = lru_cache(maxsize=None)(self._wanted)
        self.readable = lru_cache(maxsize=None)(self._readable)

    def moves(self, computed: int, there: int) -> Iterator[tuple[int, State]]:
        """Every op that may run now, with each of the states after it."""
        after_forward = not self.forward & ~computed
        held = self.forward_results if after_forward else 0
        if after_forward and self.tangents is not None and not computed >> self.tangents & 1:
            yield from self._run(self.tangents, computed | 1 << self.tangents, there, held)
            return
        for op in indices_of(self._first(computed)):
            then = computed | 1 << op
            yield from self._run(op, then, there, self.forward_results if not self.forward & ~then else 0)
        useful = self.readable(computed) & ~there
        for op in indices_of(computed & self.recomputable):
            if self.outputs[op] & useful:
                yield from self._run(op, computed, there, held)

    def repeats_ns(self, computed: int, there: int) -> int | None:
        """The time of the ops that have to run again; None: one of them cannot."""
        made = _union(self.outputs, computed)
        missing = self.wanted(computed) & made & ~there
        seen, total_ns = 0, 0
        while missing:
            op = self.producer[(missing & -missing).bit_length() - 1]
            if not self.recomputable >> op & 1:
                return None
            total_ns += self.time_ns[op]
            seen |= self.outputs[op]
            missing = (missing | (self.inputs[op] & ~there)) & ~seen
        return total_ns

    def _first(self, computed: int) -> int:
        """Ops that may run for the first time."""
        waiting = self.all_ops & ~computed
        if self.order is Order.GIVEN:
            return waiting & -waiting
        if self.forward & waiting:
            waiting &= self.forward
        effects = self.all_ops & ~computed & self.effects
        return waiting & ~(effects & (effects - 1))

    def _run(self, op: int, then: int, there: int, held: int) -> Iterator[tuple[int, State]]:
        """The states after `op`, when `then` have been computed; `held` are there while it runs, whatever is freed."""
        outputs = self.outputs[op]
        stays = self.inputs[op] | (held & ~outputs)
        if stays & ~there:
            return
        stays |= there & (held | (self.wanted(then) & self.lasting))
        room = self.room - self.fresh_bytes[op] - sum(self.bytes[v] for v in indices_of(stays))
        if room < 0:
            return
        readable = self.readable(then)
        optional = sorted(indices_of(there & readable & ~stays & ~outputs), key=self.bytes.__getitem__)
        for kept in self._largest(optional, room):
            yield op, (then, (stays | kept | outputs) & readable)

    def _largest(self, optional: list[int], room: int) -> Iterator[int]:
        """The sets of `optional` values, sorted by bytes, that have room and to which none can be added."""

        def choose(index: int, kept: int, room: int, undecided: int, least_out: int | None) -> Iterator[int]:
            # From the largest down. At the end, not even the smallest of those left out may have room.
            if undecided <= room:
                if least_out is None or room - undecided < least_out:
                    yield kept | set_of(optional[: index + 1])
                return
            if index < 0:
                return
            size = self.bytes[optional[index]]
            if size <= room:
                yield from choose(index - 1, kept | 1 << optional[index], room - size, undecided - size, least_out)
            yield from choose(index - 1, kept, room, undecided - size, size)

        yield from choose(len(optional) - 1, 0, room, sum(self.bytes[v] for v in optional), None)

    def _wanted(self, computed: int) -> int:
        """Values that what has not run yet reads, and results."""
        return _union(self.inputs, self.all_ops & ~computed) | self.results

    def _readable(self, computed: int) -> int:
        """Values that something may still read, be it to make again what others may read; and results."""
        readable = self.wanted(computed)
        held = 0 if self.forward & ~computed else self.forward_results  # never made again
        for op in sorted(indices_of(computed & self.recomputable), reverse=True):
            if self.outputs[op] & readable & ~held:
                readable |= self.inputs[op]
        return readable


def _union(sets: Sequence[int], indices: int) -> int:
    """All of some sets together."""
    union = 0
    for index in indices_of(indices):
        union |= sets[index]
    return union
