"""Kusumoto, Inoue, Watanabe, Akiba, Koyama: A Graph Theoretic Framework of Recomputation Algorithms.

NeurIPS 2019, arXiv 1905.11722. A sequence of lower sets L_1 < .. < L_k = V cuts the forward graph into segments
V_i = L_i - L_(i-1). Of L_i the forward pass keeps the boundary d(L_i), the nodes of L_i that are read outside of it, so
after segment i it holds U_i, the union of d(L_1) .. d(L_i); backward takes the segments in reverse and computes V_i - U
again (the canonical strategy). With T and m the time and memory of nodes, d+(L) the readers of L, d-(S) what S reads,

    overhead              sum over i of T(V_i - d(L_i))
    memory of segment i   m(U_(i-1)) + 2 m(V_i) + m(d+(L_i) - L_i) + m(d-(d+(L_i)) - L_i)  <=  B

the 2 for values and gradients. The dynamic program, over lower sets L and overheads t,

    opt[L, t] = least m(U) of all sequences that end with L, have overhead t and stay within B
    opt[L', t + T(V' - d(L'))] <- opt[L, t] + m(d(L') - L)     for L < L', V' = L' - L, within B

exact          over all lower sets of the graph
approximate    over {w : w reaches v} for every node v, the empty set and V
time-centric   the least overhead within B
memory-centric the largest: the more is dropped, the more liveness analysis can free

Liveness analysis on the resulting schedule then frees everything after its last use; that peak, not the formula's, is
the method's figure. The least B is found by bisection.

What is open, and done here:

- Exact or approximate (`exact`): None tries the approximate family, and all lower sets where they are at most
  `most_sets` (after liveness neither is always better); True is not applicable beyond that. A family larger than
  `most_sets` is thinned out: in each of `most_sets` even parts of the order by size, the set with the smallest boundary
  stays. Any family gives valid strategies.
- Overheads are counted in `bins` parts of the time of all nodes, each transition rounded to the nearest (the paper's
  times are small integers: 10 for a convolution, 1 for the rest). Here times are those of the problem.
- The last segment: its values are there when backward begins. The paper and the released code count it as computed
  again (`keep_last` False); here it is kept and costs nothing, unless asked otherwise.
- B is in the formula's terms (gradients twice, nothing that stays anyway), so it is not the budget: B is searched, on
  a grid of `GRID` between the least and where nothing is dropped any more, for the fastest plan whose replayed peak is
  within the budget: by bisection, and where that finds none, over the whole grid in steps of `SCAN`, since the peak
  after liveness does not grow steadily with B. Both strategies are tried unless one is asked for.
- A segment is computed again when backward first reads one of its dropped values, and only what is needed of it.
- Outputs of ops that are not recomputable, and results, are kept anyway (see `lower_sets`).

No bound is reported: the method is exact for its model of memory and its canonical strategies only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import InputError
from remat_solvers.problem import Problem
from remat_solvers.recompute.attempts import Attempts
from remat_solvers.recompute.chain import droppable
from remat_solvers.recompute.lower_sets import ForwardGraph, all_lower_sets, ancestor_sets, forward_graph, members
from remat_solvers.result import Limits, OnProgress, Outcome, Status

__all__ = ["Kusumoto", "Program", "Strategy", "boundary", "canonical_sequence", "reference_front", "segment_bytes"]

Strategy: TypeAlias = Literal["time-centric", "memory-centric"]
Array: TypeAlias = NDArray[np.float64]

STRATEGIES: tuple[Strategy, ...] = ("time-centric", "memory-centric")
GRID = 64  # budgets B between the least and the most useful one
SCAN = 4  # every so many of them are tried where bisection finds no plan


def boundary(graph: ForwardGraph, lower: int) -> int:
    """d(L): the nodes of `lower` that are read outside of it."""
    read = 0
    for node, reads in enumerate(graph.predecessors):
        if not lower >> node & 1:
            read |= reads
    return read & lower


def _beyond(graph: ForwardGraph, lower: int) -> int:
    """m(d+(L) - L) + m(d-(d+(L)) - L): what the backward of a segment ending with L needs from outside."""
    readers = [n for n, reads in enumerate(graph.predecessors) if reads & lower and not lower >> n & 1]
    beside = 0
    for node in readers:
        beside |= graph.predecessors[node] & ~lower
    return sum(graph.bytes[n] for n in readers) + _bytes(graph, beside)


def _bytes(graph: ForwardGraph, nodes: int) -> int:
    return sum(size for node, size in enumerate(graph.bytes) if nodes >> node & 1)


def segment_bytes(graph: ForwardGraph, sets: Sequence[int]) -> list[int]:
    """The memory of each segment of the sequence `sets`, without the empty set, by the paper's formula."""
    kept = before = 0
    memory = []
    for lower in sets:
        memory.append(_bytes(graph, kept) + 2 * _bytes(graph, lower & ~before) + _beyond(graph, lower))
        kept |= boundary(graph, lower)
        before = lower
    return memory


class Program:
    """The dynamic program of a graph over a family of lower sets, for any B."""

    def __init__(self, graph: ForwardGraph, sets: Sequence[int], *, bins: int = 256, keep_last: bool = False) -> None:
        """`sets`: smaller ones first, from the empty one to everything. `bins`: in so many parts overheads count."""
        self.graph = graph
        self.sets = list(sets)
        self.before, new, lost, need = self._transitions(keep_last)
        total = float(sum(graph.time_ns))
        self.unit_ns = max(1.0, total / max(1, bins))
        self.bins = int(total / self.unit_ns) + len(self.sets) // 2 + 1  # room for what rounding adds
        shift = np.minimum(np.rint(np.maximum(lost, 0) / self.unit_ns), self.bins).astype(np.intp)
        self.new = [row[b] for row, b in zip(new, self.before, strict=True)]
        self.shift = [row[b] for row, b in zip(shift, self.before, strict=True)]
        self.need = [row[b] for row, b in zip(need, self.before, strict=True)]

    def _transitions(self, keep_last: bool) -> tuple[list[NDArray[np.intp]], Array, Array, Array]:
        """Per L' the L < L', and as [L', L]: m(d(L') - L), T(V' - d(L')), and the segment's memory beside m(U)."""
        graph = self.graph
        inside = members(self.sets, len(graph.ops))
        edges = members([boundary(graph, lower) for lower in self.sets], len(graph.ops))
        size, time = np.array(graph.bytes, dtype=np.float64), np.array(graph.time_ns, dtype=np.float64)
        count = inside.sum(axis=1)
        smaller = (inside @ inside.T == count[None, :]) & (count[None, :] < count[:, None])  # [L', L]: L < L'
        new = edges @ (size[:, None] * (1 - inside.T))
        lost = (inside @ time)[:, None] - (inside @ time)[None, :] - edges @ (time[:, None] * (1 - inside.T))
        if keep_last:
            lost[-1] = 0
        held = (inside @ size)[:, None] - (inside @ size)[None, :]
        beyond = np.array([_beyond(graph, lower) for lower in self.sets], dtype=np.float64)
        return [np.flatnonzero(row) for row in smaller], new, lost, 2 * held + beyond[:, None]

    def least_kept(self, limit: float) -> float:
        """Least m(U) of any sequence within B = `limit`, whatever its overhead; inf where none is."""
        least = np.full(len(self.sets), np.inf)
        least[0] = 0
        for k in range(1, len(self.sets)):
            kept = least[self.before[k]]
            options = np.where(kept + self.need[k] <= limit, kept + self.new[k], np.inf)
            least[k] = options.min(initial=np.inf)
        return float(least[-1])

    def least_limit(self) -> int:
        """The least B for which there is a sequence, by bisection."""
        low, high = 0, self.most_limit()
        while low < high:
            middle = (low + high) // 2
            if np.isfinite(self.least_kept(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def most_limit(self) -> int:
        """A B that excludes nothing: three times all memory, and what the last terms add."""
        return int(sum(self.graph.bytes)) * 5

    def table(self, limit: float) -> Array:
        """opt[L, t] for B = `limit`; t in bins."""
        width = self.bins + 1
        cost = np.full((len(self.sets), 2 * width), np.inf)  # left half: overheads below 0, never
        cost[0, width] = 0
        flat = cost.reshape(-1)
        bins = np.arange(width)
        for k in range(1, len(self.sets)):
            if not len(self.before[k]):
                continue
            start = self.before[k] * (2 * width) + width - self.shift[k]
            kept = np.take(flat, start[:, None] + bins, mode="clip")
            kept[kept > (limit - self.need[k])[:, None]] = np.inf
            kept += self.new[k][:, None]
            np.min(kept, axis=0, out=cost[k, width:])
        return cost[:, width:]

    def sequence(self, table: Array, limit: float, strategy: Strategy) -> list[int] | None:
        """The lower sets, without the empty one, of the least or largest overhead within B; None where none is."""
        finite = np.flatnonzero(np.isfinite(table[-1]))
        if not len(finite):
            return None
        k, t = len(self.sets) - 1, int(finite[0] if strategy == "time-centric" else finite[-1])
        chosen: list[int] = []
        while k:
            chosen.append(self.sets[k])
            earlier = t - self.shift[k]
            kept = np.where(earlier >= 0, table[self.before[k], np.maximum(earlier, 0)], np.inf)
            kept[kept > limit - self.need[k]] = np.inf
            best = int(np.argmin(kept + self.new[k]))
            k, t = int(self.before[k][best]), int(earlier[best])
        return chosen[::-1]


def reference_front(graph: ForwardGraph, sets: Sequence[int], limit: int, *, keep_last: bool = False) -> dict[int, int]:
    """Overhead -> least m(U) over all sequences within B, one by one: what `Program` is tested against."""
    front: dict[int, dict[int, int]] = {0: {0: 0}}
    for lower in sets[1:]:
        options: dict[int, int] = {}
        edge, beyond = boundary(graph, lower), _beyond(graph, lower)
        for before, known in front.items():
            if before & ~lower:
                continue
            inside = lower & ~before
            lost = sum(time for node, time in enumerate(graph.time_ns) if (inside & ~edge) >> node & 1)
            if keep_last and lower == graph.everything:
                lost = 0
            for overhead, kept in known.items():
                if kept + 2 * _bytes(graph, inside) + beyond <= limit:
                    new = kept + _bytes(graph, edge & ~before)
                    options[overhead + lost] = min(new, options.get(overhead + lost, new))
        front[lower] = options
    return front[graph.everything]


def canonical_sequence(problem: Problem, graph: ForwardGraph, sets: Sequence[int], *, keep_last: bool) -> list[int]:
    """The ops of one step under the canonical strategy of `sets`: forward, then backward with what it recomputes."""
    return _Canonical(problem, graph, sets, keep_last).run()


class _Canonical:
    def __init__(self, problem: Problem, graph: ForwardGraph, sets: Sequence[int], keep_last: bool) -> None:
        self.problem = problem
        self.dropped = droppable(problem)
        self.segment: dict[int, int] = {}  # op -> its segment
        kept = before = 0
        for k, lower in enumerate(sets):
            for node, op in enumerate(graph.ops):
                if (lower & ~before) >> node & 1:
                    self.segment[op] = k
            kept |= boundary(graph, lower)
            if keep_last and k == len(sets) - 1:
                kept |= lower & ~before
            before = lower
        for node, op in enumerate(graph.ops):
            if kept >> node & 1:
                self._keep(op)
        backward = set(problem.backward_ops)
        self.wanted: list[list[int]] = [[] for _ in sets]  # per segment: its values that backward reads
        for op, k in self.segment.items():
            self.wanted[k] += [v for v in problem.ops[op].outputs if backward.intersection(problem.consumers[v])]

    def run(self) -> list[int]:
        sequence = list(self.problem.forward_ops)
        for op in self.problem.backward_ops:
            missing = {self.segment[self.problem.producer[v]] for v in self.problem.ops[op].inputs if self.dropped[v]}
            for segment in sorted(missing, reverse=True):
                again = self._needed(self.wanted[segment])
                sequence += again
                for made in again:
                    self._keep(made)
            sequence.append(op)
        return sequence

    def _keep(self, op: int) -> None:
        for value in self.problem.ops[op].outputs:
            self.dropped[value] = False

    def _needed(self, targets: Iterable[int]) -> list[int]:
        """The ops from which `targets` follow, back to values that are there, in the problem's order."""
        stack = [v for v in targets if self.dropped[v]]
        needed: set[int] = set()
        while stack:
            op = self.problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in self.problem.ops[op].inputs if self.dropped[v])
        return sorted(needed)


@dataclass(frozen=True)
class Kusumoto:
    """Sequences of lower sets by dynamic programming, then liveness analysis."""

    exact: bool | None = None  # all lower sets (True) or the approximate family (False); None: exact where possible
    strategy: Literal["auto", "time-centric", "memory-centric"] = "auto"  # auto: both
    keep_last: bool = True  # whether the last segment is kept and costs nothing
    most_sets: int = 600  # most lower sets
    bins: int = 256  # parts in which overheads are counted

    name: ClassVar[str] = "kusumoto"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        if self.strategy not in ("auto", *STRATEGIES):
            raise InputError(f"kusumoto: strategy must be auto, {', '.join(STRATEGIES)}, not {self.strategy!r}")
        for option, least in (("most_sets", 2), ("bins", 1)):
            number = getattr(self, option)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise InputError(f"kusumoto: {option} must be an integer of at least {least}, not {number!r}")

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest canonical strategy within the budget. See `registry.Solver`."""
        if not problem.backward_ops:
            return Outcome(Status.NOT_APPLICABLE, reason="kusumoto recomputes for a backward pass; there is none")
        graph = forward_graph(problem)
        families = self.families(graph)
        if not families:
            reason = (
                f"the forward graph has more than {self.most_sets} lower sets (most_sets); exact=False goes without"
            )
            return Outcome(Status.NOT_APPLICABLE, reason=reason)
        attempts = Attempts(problem, budget_bytes, limits, on_progress)
        with attempts:
            for sets in families:
                if not attempts.expired:
                    self._search(Program(graph, sets, bins=self.bins, keep_last=self.keep_last), attempts)
        return attempts.outcome()

    def families(self, graph: ForwardGraph) -> list[list[int]]:
        """The families of lower sets to use; none where all are asked for and there are too many."""
        families = [] if self.exact else [_thinned(graph, ancestor_sets(graph), self.most_sets)]
        sets = None if self.exact is False else all_lower_sets(graph, self.most_sets)
        return families if sets is None or sets in families else [*families, sets]

    def _search(self, program: Program, attempts: Attempts) -> None:
        graph = program.graph

        def sequence_of(strategy: Strategy, limit: int) -> list[int]:
            chosen = program.sequence(program.table(limit), limit, strategy) or [graph.everything]
            return canonical_sequence(attempts.problem, graph, chosen, keep_last=self.keep_last)

        grid = _grid(program)
        strategies = STRATEGIES if self.strategy == "auto" else (self.strategy,)
        for strategy in strategies:
            if not attempts.expired:
                attempts.search(grid, partial(sequence_of, strategy), f"{strategy}, B =")
        for strategy, limit in ((s, b) for s in strategies for b in grid[::SCAN]):
            if attempts.best is None and not attempts.expired:
                attempts.fits(sequence_of(strategy, limit), f"{strategy}, B = {limit}")


def _grid(program: Program) -> list[int]:
    """Budgets B from the least to one where nothing is dropped, evenly spaced in ratio."""
    least, most = program.least_limit(), program.most_limit()
    if least >= most or not least:
        return [most]
    ratio = (most / least) ** (1 / (GRID - 1))
    return sorted({least, most, *(int(least * ratio**k) for k in range(1, GRID - 1))})


def _thinned(graph: ForwardGraph, sets: list[int], most: int) -> list[int]:
    if len(sets) <= most:
        return sets
    inner = sets[1:-1]
    parts = np.array_split(np.arange(len(inner)), most - 2) if most > 2 else []
    kept = [min((inner[k] for k in part), key=lambda s: _bytes(graph, boundary(graph, s))) for part in parts]
    return [sets[0], *kept, sets[-1]]
