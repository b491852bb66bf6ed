"""Simulated annealing over op sequences: in which order ops run, and how often; liveness determines the rest.

State: a sequence of op occurrences, as in `schedule.plan_from_sequence`. A move inserts a recomputation before a reader
(with the recomputations that it needs in turn), removes one, shifts one, or, in free order, shifts a first computation.
The objective is

    time + price * (bytes beyond the budget, summed over the sequence)

The price of memory rises while the peak is beyond the budget and falls while it is within, which keeps the search near
the boundary of the feasible sequences. At high temperatures, bytes are penalised already a little below the budget.
This soft boundary allows exchanges (one large value for several small ones) whose intermediate steps exceed it. Cycles
of different temperatures and widths of the boundary restart the search, mostly with those that did well before, or
continue from the best sequence (native/anneal.hpp).

A move changes the lifetimes of a few instances, and a lifetime is a range of the sequence. The bytes during every
occurrence are kept in blocks of at most 64: a range costs two blocks and one number for each block between them
(native/state.hpp, native/profile.hpp). `scripts/bench search` prints moves per second; moves that apply nowhere count.

The search is an extension in C++, `_search`, over Python's limited API: one wheel per platform, and no compilation on
the first call. It was measured against numba 0.68: a port of the search in given order, function by function, that
makes the same moves, to the same times and peaks (one core, processor time, median of three).

    moves/s                              extension    numba
    ResNet-50, 408 ops, at 40 / 20 %     706 / 375    400 / 228 thousand
    GPT of 1,407 ops, at 20 %                  640          378
    GPT of 4,623 ops, at 40 %                  520          335
    first call                            below 10 ms   27 s; with its machine code cached .8 s
    import                                   10 ms      .3 s
    to download                             .1 MB       64 MB, numba and llvmlite

Without a compiler, the installation leaves it out: AVAILABLE is False, and SequenceSearch raises SearchError.
`pip install --editable .` builds it beside its source, `scripts/venv` again whenever the source changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from remat_solvers.errors import RematError
from remat_solvers.problem import MAX_INT, Problem
from remat_solvers.schedule import boundary_of, tangents_first, tangents_op

try:
    from remat_solvers.optimal.native import _search

    AVAILABLE = True
except ImportError:  # installed without a compiler
    AVAILABLE = False

FlatGraph: TypeAlias = tuple[int, int, list[list[int]], list[list[int]], *tuple[list[int], ...]]

NO_SEARCH = "without the search: its C++ extension is not built"
SLICE_MOVES = 1 << 20
SLICE_SECONDS = 0.05  # how long a Ctrl-C or a stop may wait
FOREVER = float("inf")


class SearchError(RematError):
    """The search cannot run: the extension was not built, or sizes are beyond its arithmetic."""


@dataclass(frozen=True, slots=True)
class FoundSequence:
    """A sequence, with the time and the peak that `simulate` finds for its plan."""

    sequence: list[int]
    time_ns: int
    peak_bytes: int


class SequenceSearch:
    """A search for the fastest sequence within a budget; it can be resumed, and it takes sequences from outside.

    The same problem, budget, seed, offers and numbers of moves give the same sequences; a limit of seconds does not.
    """

    def __init__(self, problem: Problem, budget_bytes: int, *, free_order: bool, seed: int) -> None:
        if not AVAILABLE:
            raise SearchError(
                "the extension remat_solvers.optimal.native._search is not built; install remat where there is a C++17 "
                "compiler (pip install --editable . builds it in a source checkout)"
            )
        self.problem = problem
        self.moves_made = 0
        self._stop = threading.Event()
        self._engine = _search.Engine(flat_graph(problem), min(budget_bytes, MAX_INT), free_order, seed)
        self.offer(range(len(problem.ops)))

    def offer(self, sequence: Sequence[int]) -> None:
        """Continue from a sequence, within the budget or not. It must be valid: `validate` its plan before."""
        sequence = list(tangents_first(self.problem, sequence))
        self._engine.offer(sequence, boundary_of(self.problem, sequence))

    def run(self, *, moves: int | None = None, seconds: float | None = None) -> int:
        """Make moves until a limit, `stop()`, or until no gain is possible; return the number of moves."""
        deadline = FOREVER if seconds is None else time.perf_counter() + seconds
        left = MAX_INT if moves is None else moves
        done = 0
        while left > done and not self._stop.is_set():
            seconds_left = deadline - time.perf_counter()
            slice_moves = self._engine.run(min(left - done, SLICE_MOVES), min(SLICE_SECONDS, seconds_left))
            done += slice_moves
            if slice_moves == 0 or seconds_left <= 0:
                break
        self._stop.clear()
        self.moves_made += done
        return done

    def anneal_window(self, first: int, last: int, moves: int, heat: float) -> None:
        """Let the next `moves` begin only between the first computations of two ops of the best sequence, if any.

        They are a cycle of their own, from a temperature of `heat` times the time of all ops down to a hundredth of it.
        """
        self._engine.cool(first, last, moves, heat)

    def stop(self) -> None:
        """End the run under way in another thread, or the next one."""
        self._stop.set()

    def set_budget(self, budget_bytes: int) -> None:
        """Continue with another budget; `best` is then the fastest known sequence that fits it."""
        self._engine.set_budget(min(budget_bytes, MAX_INT))

    @property
    def best(self) -> FoundSequence | None:
        """The fastest sequence within the budget."""
        return _found(self._engine.best())

    @property
    def smallest(self) -> FoundSequence | None:
        """The sequence of the smallest peak, whatever the budget."""
        return _found(self._engine.smallest())

    @property
    def current(self) -> FoundSequence | None:
        """The sequence that the next move changes."""
        return _found(self._engine.current())

    @property
    def done(self) -> bool:
        """Whether no gain is possible any more: every op runs once, within the budget."""
        return self._engine.done()


def _found(fields: tuple[list[int], int, int] | None) -> FoundSequence | None:
    return None if fields is None else FoundSequence(*fields)


def flat_graph(problem: Problem) -> FlatGraph:
    """The arrays of native/graph.hpp: values without the constants, and three further ops: begin, boundary and end.

    Raises SearchError where the sizes are beyond the arithmetic of the search.
    """
    ops, values = problem.ops, problem.values
    number: dict[int, int] = {}
    for v, value in enumerate(values):
        if value.kind != "constant":
            number[v] = len(number)
    size = [values[v].bytes for v in number]
    top_bytes = [sum(values[v].bytes for v in op.outputs) + op.workspace_bytes for op in ops]
    if problem.static_bytes + sum(size) + max(top_bytes, default=0) > MAX_INT:
        raise SearchError("the sizes sum to 2**63 bytes or more, which is beyond the arithmetic of the search")
    inputs = [[number[v] for v in dict.fromkeys(op.inputs) if v in number] for op in ops]
    results = [number[v] for v in problem.results if v in number]
    forward = [int(v in problem.results and ops[problem.producer[v]].phase == "forward") for v in number]
    tangents = tangents_op(problem)
    return (
        problem.static_bytes,
        -1 if tangents is None else tangents,
        [*inputs, [], [], results],
        [*([number[v] for v in op.outputs] for op in ops), [], [], []],
        size,
        forward,
        [*(op.time_ns for op in ops), 0, 0, 0],
        [*top_bytes, 0, 0, 0],
        [*(int(op.recomputable) for op in ops), 0, 0, 0],
        [*(int(op.phase == "backward") for op in ops), 0, 0, 0],
        [*(int(bool(op.effects)) for op in ops), 0, 0, 0],
    )
