"""Local search with a link: what is kept, computed again or moved, and when, each choice judged by its exact plan.

A choice is an op sequence, as in `schedule.plan_from_sequence`, and trips: between two uses of an instance its value is
away. One rule makes the plan of a choice (native/clock.hpp, which replays it as `simulate` does): copies out in order,
copies back as late as nobody waits, waits where an op does not fit otherwise. Per trip the copy out may start sooner,
and so may the copy back. Simulated annealing on the time changes the choice at random (native/changes.hpp): a trip
comes, goes or takes another's place; a value is made again before a use, with some of what it needs; a repeat goes, or
a trip takes its place; a repeat comes sooner or later. Where an op does not fit, something that is alive there leaves,
too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remat_solvers.optimal.local_search.annealing import FOREVER, SearchError, flat
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import MAX_INT, Problem
from remat_solvers.schedule import boundary_of, tangents_first
from remat_solvers.simulate import copy_ns

try:
    from remat_solvers.optimal.native._moving import Mover

    AVAILABLE = True
except ImportError:  # installed where there was no compiler
    AVAILABLE = False

__all__ = ["AVAILABLE", "MovingSearch", "Trip", "choice_of"]

SMALL_PART = 2_000  # values below this part of the budget are left where they are
LONGEST_NS = 2**53  # of one copy of everything, out and back: thousands of trips stay below 2**63
SLICE_SECONDS = 0.2  # how long a Ctrl-C or a stop may wait
KINDS = (Compute, Free, Offload, Fetch)  # as native/clock.hpp numbers them


@dataclass(frozen=True, slots=True)
class Trip:
    """A value away, from its last use before position `back` of the sequence; its length stands for the end."""

    value: int
    back: int
    lead: int = 0  # positions by which the copy back may start before the latest one without a wait
    early: bool = False  # the copy to the host starts when the instance is made, not after its last use


def choice_of(problem: Problem, plan: Plan) -> tuple[list[int], list[Trip]]:
    """The sequence and the trips of a plan."""
    sequence: list[int] = []
    waiting: set[int] = set()
    trips: list[Trip] = []
    for action in plan:
        if isinstance(action, Compute):
            for value in problem.ops[action.op].inputs:
                if value in waiting:
                    waiting.discard(value)
                    trips.append(Trip(value, len(sequence)))
            sequence.append(action.op)
        elif isinstance(action, Fetch):
            waiting.add(action.value)
        elif isinstance(action, Free):
            waiting.discard(action.value)
    return sequence, [*trips, *(Trip(value, len(sequence)) for value in sorted(waiting))]


class MovingSearch:
    """A search for the fastest plan within a budget that may recompute and move; it can be resumed.

    The same problem, budget, seed, offers and numbers of moves give the same plans; a limit of seconds does not.
    """

    def __init__(self, problem: Problem, budget_bytes: int, seed: int) -> None:
        if not AVAILABLE:
            raise SearchError("the extension remat_solvers.optimal.native._moving is not built")
        link = problem.link
        assert link is not None
        self.problem = problem
        self._values = [v for v, value in enumerate(problem.values) if value.kind != "constant"]
        self._number = {v: k for k, v in enumerate(self._values)}
        rates = link.to_host_bytes_per_s, link.to_device_bytes_per_s
        out, back = ([copy_ns(problem.values[v].bytes, rate, link.latency_ns) for v in self._values] for rate in rates)
        host = MAX_INT if link.host_bytes is None else link.host_bytes
        least = max(1, budget_bytes // SMALL_PART)
        longest_ns = LONGEST_NS // max(1, len(self._values))
        moves = [
            int(problem.values[v].bytes >= least and out_ns + back_ns <= longest_ns)
            for v, out_ns, back_ns in zip(self._values, out, back, strict=True)
        ]
        out, back = ([min(ns, longest_ns) for ns in some] for some in (out, back))
        self._mover = Mover(flat(problem), out, back, moves, host, min(budget_bytes, MAX_INT), seed)
        self._stop = threading.Event()

    def offer(self, sequence: Sequence[int], trips: Iterable[Trip] = ()) -> bool:
        """Go on from here, mended where it does not fit; whether it could be."""
        sequence = list(tangents_first(self.problem, sequence))
        known = [t for t in trips if t.value in self._number]
        values = [self._number[t.value] for t in known]
        rest = [t.back for t in known], [t.lead for t in known], [int(t.early) for t in known]
        return self._mover.offer(sequence, boundary_of(self.problem, sequence), values, *rest)

    def run(self, moves: int, hot_ns: float, cold_ns: float, seconds: float = FOREVER) -> int:
        """So many moves from the best, at a temperature that falls; how many were made."""
        self.restart()
        deadline = time.perf_counter() + seconds
        made = 0
        while made < moves and not self._stop.is_set():
            hot = hot_ns * (cold_ns / hot_ns) ** (made / moves)
            now = self.anneal(moves - made, hot, cold_ns, min(SLICE_SECONDS, deadline - time.perf_counter()))
            made += now
            if now == 0 or time.perf_counter() >= deadline:
                break
        self._stop.clear()
        return made

    def restart(self) -> None:
        """Go on from the best."""
        self._mover.restart()

    def anneal(self, moves: int, hot_ns: float, cold_ns: float, seconds: float) -> int:
        """Moves from where the search stands, fewer when the seconds are over; how many were made."""
        return self._mover.run(moves, seconds, hot_ns, cold_ns)

    def stop(self) -> None:
        """Ends the run under way in another thread, or the next one."""
        self._stop.set()

    @property
    def best(self) -> tuple[int, int, int] | None:
        """Time, bytes moved and peak of the best plan; None: nothing fits yet."""
        return self._mover.best()

    def choice(self) -> tuple[list[int], list[Trip]]:
        """Of the best plan."""
        sequence, trips = self._mover.choice()
        return sequence, [Trip(self._values[v], back, lead, bool(early)) for v, back, lead, early in trips]

    def plan(self) -> Plan | None:
        """The best plan."""
        actions = self._mover.actions()
        return None if actions is None else Plan([self._action(kind, index) for kind, index in actions])

    def _action(self, kind: int, index: int) -> Action:
        return Compute(index) if kind == 0 else KINDS[kind](self._values[index])
