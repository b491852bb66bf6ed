"""Removes recomputations from a sequence: those that nothing reads, and those that memory has room to avoid.

For methods that round or expand decisions made on a coarser problem. Nothing here adds a recomputation, so the result
is the same plan with fewer of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import boundary_of, plan_from_sequence
from remat_solvers.simulate import simulate


def drop_useless(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """`sequence` without the repeats whose outputs no op reads before they are recomputed; its peak is never higher."""
    return [sequence[position] for position in useful_positions(problem, sequence)]


def useful_positions(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """The positions of `sequence` that `drop_useless` keeps, ascending."""
    boundary = boundary_of(problem, sequence)
    repeats = set(repeat_positions(sequence))
    forward_results = set(problem.forward_results)
    needed = set(problem.results)
    kept: list[int] = []
    for position in range(len(sequence) - 1, -1, -1):
        op = sequence[position]
        computed = set(problem.ops[op].outputs)
        if position >= boundary:
            computed -= forward_results  # the caller holds an instance already
        if position in repeats and not computed & needed:
            continue
        needed -= computed
        needed.update(problem.ops[op].inputs)
        kept.append(position)
    return kept[::-1]


def keep_where_it_fits(
    problem: Problem, sequence: Sequence[int], budget_bytes: int, watch: Stopwatch | None = None
) -> list[int]:
    """`sequence` without those repeats whose outputs can be kept within the budget instead.

    Repeats that save most time per byte kept are tried first. At the time limit of `watch`, the sequence so far is
    returned.
    """
    best = drop_useless(problem, sequence)
    tried: set[tuple[int, int]] = set()  # op, number of its repeats that come later
    improved = True
    while improved:
        improved = False
        for position in _most_time_per_byte_first(problem, best):
            if watch is not None and watch.expired:
                return best
            key = best[position], best[position + 1 :].count(best[position])
            if key in tried:
                continue
            tried.add(key)
            shorter = drop_useless(problem, [*best[:position], *best[position + 1 :]])
            if simulate(problem, plan_from_sequence(problem, shorter)).peak_bytes <= budget_bytes:
                best, improved = shorter, True
                break
    return best


def repeat_positions(sequence: Sequence[int]) -> list[int]:
    """Positions of the ops that were computed before, ascending."""
    seen: set[int] = set()
    repeats = []
    for position, op in enumerate(sequence):
        if op in seen:
            repeats.append(position)
        seen.add(op)
    return repeats


def _most_time_per_byte_first(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """Positions of the repeats, those of most time per byte computed first."""

    def time_per_byte(position: int) -> float:
        op = problem.ops[sequence[position]]
        return op.time_ns / max(1, sum(problem.values[v].bytes for v in op.outputs))

    return sorted(repeat_positions(sequence), key=time_per_byte, reverse=True)
