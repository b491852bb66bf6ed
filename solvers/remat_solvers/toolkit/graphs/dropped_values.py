"""Says which values may be dropped and recomputed, and which ops bring dropped values back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remat_solvers.problem import Problem


def droppable(problem: Problem) -> list[bool]:
    """Per value: whether it can be dropped and recomputed. It is an output of a recomputable forward op, and no result.

    Every other value of the forward pass stays on the device until its last reader.
    """
    mask = [p >= 0 and problem.ops[p].phase == "forward" and problem.ops[p].recomputable for p in problem.producer]
    for value in problem.results:
        mask[value] = False
    return mask


def ops_to_restore(problem: Problem, targets: Iterable[int], dropped: Sequence[int]) -> list[int]:
    """The ops to recompute for the dropped ones of `targets`, back to values that are resident, in the problem's order.

    dropped: per value, whether it is not on the device (true or 1).
    """
    stack = [v for v in targets if dropped[v]]
    ops: set[int] = set()
    while stack:
        op = problem.producer[stack.pop()]
        if op not in ops:
            ops.add(op)
            stack.extend(v for v in problem.ops[op].inputs if dropped[v])
    return sorted(ops)
