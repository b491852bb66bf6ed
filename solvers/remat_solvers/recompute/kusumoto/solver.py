"""Kusumoto, Inoue, Watanabe, Akiba, Koyama: A Graph Theoretic Framework of Recomputation Algorithms.

NeurIPS 2019, arXiv 1905.11722. A sequence of lower sets L_1 < .. < L_k = V cuts the forward graph into segments
V_i = L_i - L_(i-1). Of L_i the forward pass keeps the boundary d(L_i), the nodes of L_i that are read outside of it, so
after segment i it holds U_i, the union of d(L_1) .. d(L_i). Backward takes the segments in reverse and recomputes
V_i - U (the canonical strategy). With T and m the time and memory of nodes, d+(L) the readers of L and d-(S) the nodes
that S reads,

    overhead              sum over i of T(V_i - d(L_i))
    memory of segment i   m(U_(i-1)) + 2 m(V_i) + m(d+(L_i) - L_i) + m(d-(d+(L_i)) - L_i)  <=  B

with the factor 2 for values and gradients. `program.py` states the dynamic program over lower sets L and overheads t.

exact          over all lower sets of the graph
approximate    over {w : w reaches v} for every node v, the empty set and V
time-centric   the smallest overhead within B
memory-centric the largest: the more is dropped, the more liveness analysis can free

Liveness analysis on the resulting schedule then frees everything after its last use; the method's figure is that peak,
not the formula's. The smallest B is found by bisection.

What is open in the paper, and what is done here:

- Exact or approximate (`exact`): None tries the approximate family, and all lower sets where they are at most
  `most_sets` (after liveness analysis neither is always better); True is not applicable beyond that. A family larger
  than `most_sets` is thinned out: in each of `most_sets` even parts of the order by size, the set with the smallest
  boundary stays. Any family gives valid strategies.
- Times are those of the problem, in whole parts of the time of all nodes, `bins` in all (the paper's are small
  integers: 10 for a convolution, 1 for the rest).
- The last segment: its values are resident when backward begins. The paper and the released code count it as recomputed
  (`keep_last` False); here, by default, it is kept and costs nothing.
- B is in the formula's terms (gradients twice, values that stay anyway not at all), so it is not the budget. B is
  searched for the fastest plan whose replayed peak is within the budget, on a grid of `GRID` values between the
  smallest B and one at which nothing is dropped: by bisection, and where that finds none, over the whole grid in steps
  of `SCAN`, since the peak after liveness analysis does not grow steadily with B. With strategy="auto" it is
  time-centric, and memory-centric where that finds no plan.
- A segment is recomputed when backward first reads one of its dropped values, and only its needed part.
- Outputs of ops that are not recomputable, and results, are kept anyway (see `lower_sets.py`).

No bound is reported: the method is exact for its model of memory and its canonical strategies only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from remat_solvers.problem import Problem
from remat_solvers.recompute.kusumoto.lower_sets import (
    ForwardGraph,
    all_lower_sets,
    ancestor_sets,
    forward_graph,
    set_boundary,
    thin_out,
)
from remat_solvers.recompute.kusumoto.program import STRATEGIES, LowerSetProgram, Strategy
from remat_solvers.toolkit.graphs.bit_sets import indices_of
from remat_solvers.toolkit.graphs.dropped_values import droppable, ops_to_restore
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.trials import NotApplicableError, TrialMethod, Trials

GRID = 64  # budgets B between the smallest and the largest useful one
SCAN = 4  # every so many of them are tried where bisection finds no plan
MAX_SETS = 10_000  # their pairs are a table
MAX_BINS = 10_000  # a table with the sets


def canonical_sequence(problem: Problem, graph: ForwardGraph, sets: Sequence[int], *, keep_last: bool) -> list[int]:
    """The ops of one step under the canonical strategy of `sets`: forward, then backward with its recomputations."""
    dropped = droppable(problem)
    segment_of: dict[int, int] = {}  # op -> its segment
    kept = before = 0
    for k, lower in enumerate(sets):
        segment_of.update((graph.ops[node], k) for node in indices_of(lower & ~before))
        kept |= set_boundary(graph, lower)
        if keep_last and k == len(sets) - 1:
            kept |= lower & ~before
        before = lower
    backward = set(problem.backward_ops)
    targets: list[list[int]] = [[] for _ in sets]  # per segment: its values that backward reads
    for op, k in segment_of.items():
        targets[k] += [v for v in problem.ops[op].outputs if backward.intersection(problem.consumers[v])]

    def mark_resident(ops: Iterable[int]) -> None:
        for op in ops:
            for value in problem.ops[op].outputs:
                dropped[value] = False

    mark_resident(graph.ops[node] for node in indices_of(kept))
    sequence = list(problem.forward_ops)
    for op in problem.backward_ops:
        segments = {segment_of[problem.producer[v]] for v in problem.ops[op].inputs if dropped[v]}
        for segment in sorted(segments, reverse=True):
            recomputed = ops_to_restore(problem, targets[segment], dropped)
            sequence += recomputed
            mark_resident(recomputed)
        sequence.append(op)
    return sequence


@dataclass(frozen=True)
class Kusumoto(TrialMethod):
    """Sequences of lower sets by dynamic programming, then liveness analysis."""

    exact: bool | None = None  # all lower sets (True) or the approximate family (False); None: exact where possible
    strategy: Literal["auto", "time-centric", "memory-centric"] = "auto"  # auto: the second where the first finds none
    keep_last: bool = True  # whether the last segment is kept and costs nothing
    most_sets: int = 600  # the largest family of lower sets
    bins: int = 256  # parts in which overheads are counted

    name: ClassVar[str] = "kusumoto"
    version: ClassVar[str] = "1"
    ranges: ClassVar[Ranges] = {"most_sets": (2, MAX_SETS), "bins": (1, MAX_BINS)}

    def try_plans(self, trials: Trials) -> None:
        """Try the canonical strategies of each family of lower sets."""
        graph = forward_graph(trials.problem)
        families = self.families(graph)
        if not families:
            raise NotApplicableError(
                f"the forward graph has more than {self.most_sets} lower sets (most_sets); try exact=False"
            )
        for sets in families:
            if not trials.expired:
                self._search(LowerSetProgram(graph, sets, bins=self.bins, keep_last=self.keep_last), trials)

    def families(self, graph: ForwardGraph) -> list[list[int]]:
        """The families of lower sets to use; none with exact=True where there are too many sets."""
        families = [] if self.exact else [thin_out(graph, ancestor_sets(graph), self.most_sets)]
        sets = None if self.exact is False else all_lower_sets(graph, self.most_sets)
        return families if sets is None or sets in families else [*families, sets]

    def _search(self, program: LowerSetProgram, trials: Trials) -> None:
        graph = program.graph

        def sequence_of(strategy: Strategy, limit: int) -> list[int]:
            chosen = program.sequence(program.table(limit), limit, strategy) or [graph.everything]
            return canonical_sequence(trials.problem, graph, chosen, keep_last=self.keep_last)

        grid = _grid(program)
        strategies = STRATEGIES if self.strategy == "auto" else (self.strategy,)
        for strategy in strategies:
            if (strategy == strategies[0] or trials.best is None) and not trials.expired:
                trials.search(grid, partial(sequence_of, strategy), f"{strategy}, B =")
        for strategy, limit in ((s, b) for s in strategies for b in grid[::SCAN]):
            if trials.best is None and not trials.expired:
                trials.fits(sequence_of(strategy, limit), f"{strategy}, B = {limit}")


def _grid(program: LowerSetProgram) -> list[int]:
    """Budgets B from the smallest to one where nothing is dropped, evenly spaced in ratio."""
    smallest, largest = program.smallest_limit(), program.largest_limit()
    if smallest >= largest or not smallest:
        return [largest]
    ratio = (largest / smallest) ** (1 / (GRID - 1))
    return sorted({smallest, largest, *(int(smallest * ratio**k) for k in range(1, GRID - 1))})
