"""Simulated annealing with a link: chooses which values are kept, recomputed or offloaded, and when; plans are exact.

A choice is an op sequence, as in `schedule.plan_from_sequence`, and swaps: between two uses of an instance its value is
off the device. One rule makes the plan of a choice (native/clock.hpp, which replays it as `simulate` does): copies to
the host in order, copies back as late as no op waits for them, and waits where an op does not fit otherwise. Per swap,
either copy may start sooner. The search changes the choice at random (native/changes.hpp): it adds or removes a swap,
or replaces one by another; it recomputes a value before a use, with some of its inputs; it removes a repeat, or
replaces it by a swap; it moves a repeat to an earlier or later position. Where an op does not fit, a value that is idle
at that moment leaves the device, too. The objective is the time of the plan.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remat_solvers.optimal.local_search.annealing import FOREVER, SearchError, flat_graph
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import MAX_INT, Problem
from remat_solvers.schedule import boundary_of, tangents_first
from remat_solvers.simulate import copy_ns

try:
    from remat_solvers.optimal.native import _moving

    AVAILABLE = True
except ImportError:  # installed without a compiler
    AVAILABLE = False

SMALL_PART = 2_000  # values below this part of the budget are never offloaded
LONGEST_NS = 2**53  # for a copy of every value, out and back: the times of thousands of swaps stay below 2**63
SLICE_SECONDS = 0.2  # how long a Ctrl-C or a stop may wait
KINDS = (Compute, Free, Offload, Fetch)  # as native/clock.hpp numbers them


@dataclass(frozen=True, slots=True)
class SwapChoice:
    """An idle interval in which a value is off the device: between its use at a position and the use before it."""

    value: int
    back: int  # the position of the use that ends it; the length of the sequence stands for the end of the step
    lead: int = 0  # positions by which the fetch may start before the latest one that causes no wait
    early: bool = False  # the copy to the host starts when the instance is computed, not after its last use


def choice_of(problem: Problem, plan: Plan) -> tuple[list[int], list[SwapChoice]]:
    """The sequence and the swaps of a plan."""
    sequence: list[int] = []
    fetched: set[int] = set()  # and not used since
    swaps: list[SwapChoice] = []
    for action in plan:
        if isinstance(action, Compute):
            for value in problem.ops[action.op].inputs:
                if value in fetched:
                    fetched.discard(value)
                    swaps.append(SwapChoice(value, len(sequence)))
            sequence.append(action.op)
        elif isinstance(action, Fetch):
            fetched.add(action.value)
        elif isinstance(action, Free):
            fetched.discard(action.value)
    return sequence, [*swaps, *(SwapChoice(value, len(sequence)) for value in sorted(fetched))]


class OffloadAnnealer:
    """A search for the fastest plan within a budget that may recompute and offload; it can be resumed.

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
        out_ns, back_ns = (
            [copy_ns(problem.values[v].bytes, rate, link.latency_ns) for v in self._values] for rate in rates
        )
        host_bytes = MAX_INT if link.host_bytes is None else link.host_bytes
        min_bytes = max(1, budget_bytes // SMALL_PART)
        longest_ns = LONGEST_NS // max(1, len(self._values))
        movable = [
            int(problem.values[v].bytes >= min_bytes and out + back <= longest_ns)
            for v, out, back in zip(self._values, out_ns, back_ns, strict=True)
        ]
        out_ns, back_ns = ([min(ns, longest_ns) for ns in times_ns] for times_ns in (out_ns, back_ns))
        self._mover = _moving.Mover(
            flat_graph(problem), out_ns, back_ns, movable, host_bytes, min(budget_bytes, MAX_INT), seed
        )
        self._stop = threading.Event()

    def offer(self, sequence: Sequence[int], swaps: Iterable[SwapChoice] = ()) -> bool:
        """Continue from this choice, with more values off the device if it does not fit. Return whether a plan fits."""
        sequence = list(tangents_first(self.problem, sequence))
        swaps = [swap for swap in swaps if swap.value in self._number]
        values = [self._number[swap.value] for swap in swaps]
        columns = [swap.back for swap in swaps], [swap.lead for swap in swaps], [int(swap.early) for swap in swaps]
        return self._mover.offer(sequence, boundary_of(self.problem, sequence), values, *columns)

    def run(self, moves: int, hot_ns: float, cold_ns: float, seconds: float = FOREVER) -> int:
        """Make up to `moves` moves from the best plan, at a falling temperature, and return their number."""
        self.restart()
        deadline = time.perf_counter() + seconds
        done = 0
        while done < moves and not self._stop.is_set():
            hot = hot_ns * (cold_ns / hot_ns) ** (done / moves)
            slice_moves = self.anneal(moves - done, hot, cold_ns, min(SLICE_SECONDS, deadline - time.perf_counter()))
            done += slice_moves
            if slice_moves == 0 or time.perf_counter() >= deadline:
                break
        self._stop.clear()
        return done

    def restart(self) -> None:
        """Continue from the best plan."""
        self._mover.restart()

    def anneal(self, moves: int, hot_ns: float, cold_ns: float, seconds: float) -> int:
        """Make up to `moves` moves from the current plan within the seconds, and return their number."""
        return self._mover.run(moves, seconds, hot_ns, cold_ns)

    def stop(self) -> None:
        """End the run under way in another thread, or the next one."""
        self._stop.set()

    @property
    def best(self) -> tuple[int, int, int] | None:
        """Time, offloaded bytes and peak of the best plan; None: no plan fits yet."""
        return self._mover.best()

    def choice(self) -> tuple[list[int], list[SwapChoice]]:
        """The sequence and the swaps of the best plan."""
        sequence, swaps = self._mover.choice()
        return sequence, [SwapChoice(self._values[v], back, lead, bool(early)) for v, back, lead, early in swaps]

    def plan(self) -> Plan | None:
        """The best plan."""
        actions = self._mover.actions()
        return None if actions is None else Plan([self._action(kind, index) for kind, index in actions])

    def _action(self, kind: int, index: int) -> Action:
        return Compute(index) if kind == 0 else KINDS[kind](self._values[index])
