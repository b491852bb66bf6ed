"""Shortest paths over the states of a training step: exhaustive search for plans without offload.

A state says which ops have been computed and which values are on the device. From a state, any op may be computed whose
inputs are resident and whose turn it may be:

- for the first time: the next op of the problem (`order="given"`), or any op, where no op with an effect overtakes
  another and no backward op overtakes a forward one (`order="free"`);
- again: any recomputable op that was computed before.

Op o costs its time; first computations are the same in every plan, so only recomputations are counted. Before o is
computed, values may be freed; meanwhile the values that are left, all of its outputs and its workspace count, as in the
replay:

    base + bytes(R) + bytes(outputs(o)) + workspace(o) <= budget,   inputs(o) <= R <= S \\ outputs(o)

where S are the values that were resident and R those that are retained; afterwards R + outputs(o) are resident. Since a
value may be freed at any later moment at no cost, only the largest R under inclusion need be tried, and values that no
op can read any more are dropped from the state. From the last first computation of a forward op on, the forward's
results are in every R. The tangents, which are handed to backward, come right after it, as in every plan built from a
sequence, unless `tangents_first` is False.

Every plan without offload is such a path. So the shortest one is the optimum (for the chosen order), and without a path
there is no plan. With the tangents first, recomputing between the forward and the tangents is left out: a proof must do
without. The number of states is exponential; `max_ops` and MAX_STATES bound it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.graphs.bit_sets import indices_of, set_of

OrderOption: TypeAlias = Literal["given", "free"]
State: TypeAlias = tuple[int, int]  # bit sets: ops computed, values on the device

MAX_STATES = 1_000_000
CHECK_EVERY = 256  # states between two looks at the clock


class OutOfReachError(Exception):
    """The search reached one of its limits before it found the answer."""


@dataclass(eq=False)
class Search:
    """One problem under one budget, as bit sets."""

    max_states: ClassVar[int] = MAX_STATES
    problem: Problem
    budget_bytes: int
    order: OrderOption
    watch: Stopwatch | None
    tangents_first: bool = True

    def __post_init__(self) -> None:
        problem = self.problem
        ops, values = problem.ops, problem.values
        constant = set_of(v for v, value in enumerate(values) if value.kind == "constant")
        self.size = [v.bytes for v in values]
        self.room = self.budget_bytes - problem.static_bytes
        self.inputs = [set_of(op.inputs) & ~constant for op in ops]
        self.outputs = [set_of(op.outputs) for op in ops]
        self.fresh = [sum(self.size[v] for v in op.outputs) + op.workspace_bytes for op in ops]
        self.time = [op.time_ns for op in ops]
        self.forward = set_of(problem.forward_ops)
        self.all_ops = (1 << len(ops)) - 1
        self.results = set_of(problem.results) & ~constant
        self.forward_results = set_of(problem.forward_results)
        self.recomputable = set_of(i for i, op in enumerate(ops) if op.recomputable)
        self.effects = set_of(i for i, op in enumerate(ops) if op.effects)
        self.tangents = tangents_op(problem) if self.tangents_first else None
        self.alive = lru_cache(maxsize=None)(self._alive)

    def shortest(self, *, cheapest: bool) -> list[int] | None:
        """Dijkstra on the time of recomputations, or, for any path, with the most ops computed first; None: no path."""
        if self.room < 0:
            return None
        start: State = (0, 0)
        came: dict[State, tuple[State, int] | None] = {start: None}
        costs = {start: 0}
        heap: list[tuple[int, int, State]] = [(0, 0, start)]
        done: set[State] = set()
        while heap:
            _, _, state = heapq.heappop(heap)
            if state in done:
                continue
            done.add(state)
            self.check_limits(len(done), len(costs))
            computed, present = state
            if computed == self.all_ops and not self.results & ~present:
                return self._path(came, state)
            for op, after in self._moves(computed, present):
                cost = costs[state] + (self.time[op] if computed >> op & 1 else 0)
                if after not in done and cost < costs.get(after, cost + 1):
                    costs[after] = cost
                    came[after] = state, op
                    missing = -after[0].bit_count()
                    heapq.heappush(heap, (cost, missing, after) if cheapest else (missing, cost, after))
        return None

    def _path(self, came: dict[State, tuple[State, int] | None], state: State) -> list[int]:
        sequence: list[int] = []
        while (step := came[state]) is not None:
            state, op = step
            sequence.append(op)
        return sequence[::-1]

    def check_limits(self, done: int, known: int) -> None:
        """Raise OutOfReachError where the time is up or too many states are known."""
        if known > self.max_states or (done % CHECK_EVERY == 0 and self.watch is not None and self.watch.expired):
            raise OutOfReachError

    def _moves(self, computed: int, present: int) -> Iterator[tuple[int, State]]:
        for op, after, pinned in self.may_run(computed, present):
            yield from self._run(op, after, present, pinned)

    def may_run(self, computed: int, present: int) -> Iterator[tuple[int, int, int]]:
        """The ops that may be computed now: each op, the set of ops computed after it, and the values to retain."""
        after_forward = not self.forward & ~computed
        pinned = self.forward_results if after_forward else 0
        if after_forward and self.tangents is not None and not computed >> self.tangents & 1:
            yield self.tangents, computed | 1 << self.tangents, pinned
            return
        for op in indices_of(self._allowed_first(computed)):
            after = computed | 1 << op
            ends_forward = not after_forward and not self.forward & ~after
            yield op, after, self.forward_results if ends_forward else pinned
        useful = self.alive(computed) & ~present
        for op in indices_of(computed & self.recomputable):
            if self.outputs[op] & useful:
                yield op, computed, pinned

    def _allowed_first(self, computed: int) -> int:
        waiting = self.all_ops & ~computed
        if self.order == "given":
            return waiting & -waiting
        if self.forward & waiting:
            waiting &= self.forward
        effects = self.all_ops & ~computed & self.effects
        return waiting & ~(effects & ~(effects & -effects))

    def _run(self, op: int, computed: int, present: int, pinned: int) -> Iterator[tuple[int, State]]:
        """Compute `op` with every largest set of values retained of `present`."""
        must = self.inputs[op] | (pinned & ~self.outputs[op])
        if must & ~present:
            return
        must |= pinned & present  # a pinned output of op is resident beside its fresh copy
        room = self.room - self.fresh[op] - sum(self.size[v] for v in indices_of(must))
        if room < 0:
            return
        alive = self.alive(computed)
        optional = sorted(indices_of(present & alive & ~must & ~self.outputs[op]), key=self.size.__getitem__)
        for retained in self.largest(optional, room):
            yield op, (computed, (must | retained | self.outputs[op]) & alive)

    def largest(self, optional: list[int], room: int) -> Iterator[int]:
        """The subsets of `optional` (ascending by size) of at most `room` bytes to which nothing can be added."""
        size = self.size
        total = sum(size[v] for v in optional)

        def choose(index: int, retained: int, used: int, left: int, smallest_out: int | None) -> Iterator[int]:
            # From the largest value down; smallest_out, the smallest value left out, must not fit at the end.
            if used + left <= room:
                if smallest_out is None or used + left + smallest_out > room:
                    yield retained | set_of(optional[: index + 1])
                return
            if index < 0:
                return
            value = optional[index]
            rest = left - size[value]
            if used + size[value] <= room:
                yield from choose(index - 1, retained | 1 << value, used + size[value], rest, smallest_out)
            yield from choose(index - 1, retained, used, rest, size[value])

        yield from choose(len(optional) - 1, 0, 0, total, None)

    def _alive(self, computed: int) -> int:
        """The results, and the values that an op may still read after `computed` ops have been computed."""
        after_forward = not self.forward & ~computed
        alive = self.results
        recomputable = computed & self.recomputable
        for op in range(len(self.time) - 1, -1, -1):
            waiting = not computed >> op & 1
            wanted = self.outputs[op] & alive & ~(self.forward_results if after_forward else 0)
            if waiting or (recomputable >> op & 1 and wanted):
                alive |= self.inputs[op]
        return alive
