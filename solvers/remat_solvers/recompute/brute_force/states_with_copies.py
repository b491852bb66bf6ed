"""Exhaustive search where values may also be copied to the host: the oracle for methods that swap.

For tiny problems only. The search of `states.py` has the clock of the replay in its states here: which ops have been
computed, which values are on the device, which have a copy on the host (complete or under way), and how long each copy
under way still takes. The queues need no place of their own, since each ends with its last copy. The cost of a path is
what the replay adds to the time of the first computations: recomputations and waits. Its moves, each with the Frees
that it needs, are:

- Offload a value, once: a second copy would say the same. It comes right after the computation of the value, or right
  after another Offload: as long as the order of the copies is the same, each is better off earlier, and before Frees
  and Fetches rather than after them.
- Fetch a value, once it fits.
- Compute an op, once it fits. Which ops may be computed is settled as in `states.py`.

A copy to the host that no Fetch has used when its value is read no more was of no use; such paths are pruned. Frees can
wait until there is something to make room for, and then no set of Frees need be tried of which a part makes enough
room: a value that is freed later waits no longer for its copies. A value that nothing can read any more goes at once,
unless a copy of it is under way. And of two states that differ in clocks only, the later one is pruned where no copy of
the earlier one ends after its own. A cheapest path is therefore an optimal plan, offloading included.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import ClassVar, NamedTuple, TypeAlias

from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.brute_force.states import OrderOption, Search
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.graphs.bit_sets import indices_of, set_of

MAX_STATES = 200_000  # some seconds
COMPARED = 32  # states that differ in clocks only with which a new one is compared

Copies: TypeAlias = tuple[tuple[int, int], ...]  # per value under way: the time that its copy still takes, in ns


class State(NamedTuple):
    """The state of a plan between two actions; sets of ops and values are ints with a bit for each."""

    computed: int
    present: int
    host: int
    unused: int  # of these, the values that were never fetched
    late: int  # values whose Offload would have been better earlier
    out: Copies
    back: Copies
    gap: bool  # right after a computation, or Offloads that follow it


Step: TypeAlias = tuple[State, int, tuple[Action, ...]]  # the state after it, its cost in ns, and its actions


def best_moving_plan(
    problem: Problem,
    budget_bytes: int,
    *,
    order: OrderOption = "given",
    watch: Stopwatch | None = None,
    tangents_first: bool = True,
    below_ns: int | None = None,
) -> Plan | None:
    """A fastest plan of all; None: none fits. The problem must have a link. May raise OutOfReachError.

    below_ns: only faster plans are searched, which prunes most states where a good plan is known.
    """
    moving = _Moving(problem, budget_bytes, order, watch, tangents_first=tangents_first)
    return moving.fastest(inf if below_ns is None else below_ns - sum(moving.time))  # copies may take 2**63 ns and more


class _Moving(Search):
    max_states: ClassVar[int] = MAX_STATES

    def __post_init__(self) -> None:
        super().__post_init__()
        link = self.problem.link
        assert link is not None
        self.out_ns = [copy_ns(size, link.to_host_bytes_per_s, link.latency_ns) for size in self.size]
        self.back_ns = [copy_ns(size, link.to_device_bytes_per_s, link.latency_ns) for size in self.size]
        self.host_room = link.host_bytes
        self.movable = set_of(v for v, size in enumerate(self.size) if size and self.problem.producer[v] >= 0)

    def fastest(self, below_ns: float) -> Plan | None:
        """Dijkstra on waits and recomputations, of less than `below_ns` together."""
        if self.room < 0:
            return None
        start = State(0, 0, 0, 0, 0, (), (), False)
        came: dict[State, tuple[State, tuple[Action, ...]] | None] = {start: None}
        costs = {start: 0}
        heap: list[tuple[int, int, State, bool]] = [(0, 0, start, False)]
        settled: dict[tuple[int, int, int, bool], list[tuple[int, State]]] = {}
        done = 0
        while heap:
            cost, _, state, ended = heapq.heappop(heap)
            if ended:
                return _plan(came, state)
            comparable = settled.setdefault((state.computed, state.present, state.host, state.gap), [])
            if any(_no_worse(before, state, cost - earlier) for earlier, before in comparable[-COMPARED:]):
                continue
            comparable.append((cost, state))
            done += 1
            self.check_limits(done, len(costs))
            missing = -state.computed.bit_count()
            if state.computed == self.all_ops and not self.results & ~state.present:
                last = max((left for v, left in state.back if self.results >> v & 1), default=0)
                if cost + last < below_ns:
                    heapq.heappush(heap, (cost + last, missing - 1, state, True))
            for after, more, actions in self._steps(state):
                if cost + more < min(below_ns, costs.get(after, below_ns)):
                    costs[after] = cost + more
                    came[after] = state, actions
                    heapq.heappush(heap, (cost + more, -after.computed.bit_count(), after, False))
        return None

    def _steps(self, state: State) -> Iterator[Step]:
        if state.gap:
            may_leave = state.present & self.movable & self.alive(state.computed) & ~state.host
            yield from self._offloads(state, may_leave & ~state.late)
            state = state._replace(late=may_leave, gap=False)
        yield from self._fetches(state)
        for op, computed, pinned in self.may_run(state.computed, state.present):
            yield from self._computes(state, op, computed, pinned)

    def _offloads(self, state: State, values: int) -> Iterator[Step]:
        used = sum(self.size[v] for v in indices_of(state.host))
        queue = max((left for _, left in state.out), default=0)
        arrival = dict(state.back)
        for value in indices_of(values):
            if self.host_room is None or used + self.size[value] <= self.host_room:
                end = max(queue, arrival.get(value, 0)) + self.out_ns[value]
                out = tuple(sorted((*state.out, (value, end)))) if end else state.out
                host, unused = state.host | 1 << value, state.unused | 1 << value
                yield state._replace(host=host, unused=unused, late=0, out=out), 0, (Offload(value),)

    def _fetches(self, state: State) -> Iterator[Step]:
        pinned = self.forward_results & state.present if not self.forward & ~state.computed else 0
        for value in indices_of(state.host & ~state.present & self.alive(state.computed)):
            for retained in self._retained(state.present, pinned, self.size[value]):
                freed, waited, frees = self._freed(state, retained)
                end = max((left for _, left in freed.back), default=0) + self.back_ns[value]
                back = tuple(sorted((*freed.back, (value, end)))) if end else freed.back
                unused = state.unused & ~(1 << value)
                after = freed._replace(present=retained | 1 << value, unused=unused, back=back)
                yield after, waited, (*frees, Fetch(value))

    def _computes(self, state: State, op: int, computed: int, pinned: int) -> Iterator[Step]:
        must = self.inputs[op] | (pinned & ~self.outputs[op])
        if must & ~state.present:
            return
        alive = self.alive(computed)
        if state.unused & ~alive:
            return
        first = not state.computed >> op & 1
        for retained in self._retained(state.present, must | (pinned & state.present), self.fresh[op]):
            freed, waited, frees = self._freed(state, retained)
            arrival = max((left for v, left in freed.back if self.inputs[op] >> v & 1), default=0)
            out, back = (_later(copies, arrival + self.time[op]) for copies in (freed.out, freed.back))
            present = retained | self.outputs[op]
            under_way = set_of(v for v, _ in (*out, *back))
            dead = present & ~alive & ~under_way
            late = state.late & ~self.outputs[op]
            after = State(computed, present & ~dead, state.host, state.unused, late, out, back, True)
            dead_frees = tuple(Free(v) for v in indices_of(dead))
            yield after, waited + arrival + (0 if first else self.time[op]), (*frees, Compute(op), *dead_frees)

    def _retained(self, present: int, must: int, need_bytes: int) -> Iterator[int]:
        """The largest subsets of `present`, with `must`, beside which `need_bytes` fit."""
        room = self.room - need_bytes - sum(self.size[v] for v in indices_of(must))
        if room >= 0:
            optional = sorted(indices_of(present & ~must), key=self.size.__getitem__)
            for retained in self.largest(optional, room):
                yield must | retained

    def _freed(self, state: State, retained: int) -> tuple[State, int, tuple[Action, ...]]:
        """Free all values but `retained`: the state after that, the wait for copies, and the actions."""
        freed = state.present & ~retained
        waited = max((left for v, left in (*state.out, *state.back) if freed >> v & 1), default=0)
        out, back = (_later(copies, waited) for copies in (state.out, state.back))
        return state._replace(present=retained, out=out, back=back), waited, tuple(Free(v) for v in indices_of(freed))


def _no_worse(one: State, other: State, later_ns: int) -> bool:
    """Whether all that can follow `other` can follow `one`, which differs in clocks only, `later_ns` earlier."""
    if one.unused & ~other.unused or one.late & ~other.late:
        return False
    for copies, others in ((one.out, dict(other.out)), (one.back, dict(other.back))):
        if any(left > later_ns + others.get(v, 0) for v, left in copies):
            return False
    return True


def _later(copies: Copies, elapsed: int) -> Copies:
    return tuple((v, left - elapsed) for v, left in copies if left > elapsed)


def _plan(came: dict[State, tuple[State, tuple[Action, ...]] | None], state: State) -> Plan:
    parts: list[tuple[Action, ...]] = []
    while (step := came[state]) is not None:
        state, actions = step
        parts.append(actions)
    return Plan([action for part in reversed(parts) for action in part])
