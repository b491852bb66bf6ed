"""Cheaper sequences from a given one: recomputations that nothing needs, and such that memory has room to avoid.

For methods that round or expand what they decided on something coarser than the problem. Nothing here looks for new
recomputations, so what comes out is the same plan with less of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate

__all__ = ["drop_useless", "keep_where_it_fits", "useful"]


def drop_useless(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """`sequence` without the repeats whose outputs nobody reads before they are made again; never a higher peak."""
    return [sequence[position] for position in useful(problem, sequence)]


def useful(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """The positions of `sequence` that `drop_useless` keeps."""
    ops = problem.ops
    forward_left = sum(op.phase == "forward" for op in ops)
    first: list[bool] = []
    boundary_passed: list[bool] = []
    seen: set[int] = set()
    for op in sequence:
        first.append(op not in seen)
        boundary_passed.append(forward_left == 0)
        forward_left -= op not in seen and ops[op].phase == "forward"
        seen.add(op)
    owned = {v for v in problem.results if ops[problem.producer[v]].phase == "forward"}
    needed = set(problem.results)
    stays: list[int] = []
    for position in range(len(sequence) - 1, -1, -1):
        op = sequence[position]
        made = {v for v in ops[op].outputs if not (boundary_passed[position] and v in owned)}
        if not first[position] and not made & needed:
            continue
        needed -= made
        needed.update(ops[op].inputs)
        stays.append(position)
    return stays[::-1]


def keep_where_it_fits(
    problem: Problem, sequence: Sequence[int], budget_bytes: int, watch: Stopwatch | None = None
) -> list[int]:
    """`sequence` with repeats left out wherever what they made can be kept within the budget.

    Those go first that save most time per byte kept.
    """
    best = drop_useless(problem, sequence)
    tried: set[tuple[int, int]] = set()  # op, how many repeats of it come later
    found = True
    while found:
        found = False
        for position in _repeats(problem, best):
            if watch is not None and watch.expired:
                return best
            key = best[position], best[position + 1 :].count(best[position])
            if key in tried:
                continue
            tried.add(key)
            shorter = drop_useless(problem, [*best[:position], *best[position + 1 :]])
            if simulate(problem, plan_from_sequence(problem, shorter)).peak_bytes <= budget_bytes:
                best, found = shorter, True
                break
    return best


def _repeats(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """Positions of the repeats, those of most time per byte made first."""
    seen: set[int] = set()
    repeats = []
    for position, op in enumerate(sequence):
        if op in seen:
            repeats.append(position)
        seen.add(op)

    def time_per_byte(position: int) -> float:
        op = problem.ops[sequence[position]]
        return op.time_ns / max(1, sum(problem.values[v].bytes for v in op.outputs))

    return sorted(repeats, key=time_per_byte, reverse=True)
