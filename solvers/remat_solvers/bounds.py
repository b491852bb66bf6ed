"""Proven lower bounds: what no plan can go below, whatever the method.

Peak. Fix any valid plan. Write `base` for constants + reserve, which are there at every moment. Beside it:

1. While an op runs, its inputs, its outputs and its workspace are on the device (the replay adds all outputs, even
   those that were there already), and every op runs at least once.
2. Results of forward ops are on the device from the boundary to the end, and every backward op runs after the
   boundary. So they are there while any backward op runs, beside its working set.
3. Without a link, a value v whose producer p is not recomputable has one stay on the device: it cannot be computed
   again nor fetched back. It lasts at least from the run of p to the first run of each of its readers, and to the
   end if v is a result. Take a reader r and an op q whose first run comes after p's and before r's in every plan,
   because q depends on p and r on q (directly or not), or because p is forward and q backward, or q forward and r
   backward. Then v is there during the first run of q.
4. At the boundary, the forward results are there, and by the same argument every v of 3. with a forward producer
   and a backward reader. At the end, all results are.

Each line names a moment of every plan and a set of distinct values on the device at that moment, so the largest
sum is a lower bound on the peak of every plan, in any order of first computations.

Time. Every op runs at least once, and compute is one stream: no plan is faster than the sum of the times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from remat_solvers.problem import Problem

__all__ = ["PeakBound", "peak_bound", "peak_bound_bytes", "time_bound_ns"]


@dataclass(frozen=True, slots=True)
class PeakBound:
    """A floor under the peak of every plan, and the moment that sets it."""

    bytes: int  # constants and reserve included
    op: int | None  # the op during which the bytes are needed; None: at the boundary or at the end
    moment: str  # for people
    held: tuple[int, ...] = ()  # the values that are on the device then, beside the constants


def time_bound_ns(problem: Problem) -> int:
    """Every op once: no plan, in any order, is faster."""
    return sum(op.time_ns for op in problem.ops)


def peak_bound_bytes(problem: Problem) -> int:
    """Proven lower bound on the peak of every plan; the proof is the module's docstring."""
    return peak_bound(problem).bytes


def peak_bound(problem: Problem) -> PeakBound:
    """The largest of the floors under every plan's peak, with the moment that sets it."""
    ops, values, producer = problem.ops, problem.values, problem.producer
    base = problem.static_bytes

    def floor(held: Iterable[int], op: int | None, moment: str) -> PeakBound:
        there = tuple(sorted(v for v in set(held) if values[v].kind != "constant"))
        workspace = 0 if op is None else ops[op].workspace_bytes
        return PeakBound(base + sum(values[v].bytes for v in there) + workspace, op, moment, there)

    pinned = {v for v in problem.results if producer[v] >= 0 and ops[producer[v]].phase == "forward"}
    stays, crossing = _forced_stays(problem)
    best = floor(problem.results, None, "the results at the end of the step")
    boundary = floor(pinned | crossing, None, "what must be on the device between forward and backward")
    if problem.backward_ops and boundary.bytes > best.bytes:
        best = boundary
    for index, op in enumerate(ops):
        held = {*op.inputs, *op.outputs, *stays[index]}
        if op.phase == "backward":
            held |= pinned
        where = f" in {op.module}" if op.module else ""
        here = floor(held, index, f"op {index} ({op.name}{where}) with what it reads and creates")
        if here.bytes > best.bytes:
            best = here
    return best


def _forced_stays(problem: Problem) -> tuple[list[list[int]], set[int]]:
    """Per op the values that rule 3 keeps during its first run, and those that cross the boundary (rule 4)."""
    ops = problem.ops
    stays: list[list[int]] = [[] for _ in ops]
    crossing: set[int] = set()
    if problem.link is not None:
        return stays, crossing
    before: list[list[int]] = [sorted({problem.producer[v] for v in op.inputs} - {-1}) for op in ops]
    after: list[list[int]] = [sorted({c for v in op.outputs for c in problem.consumers[v]}) for op in ops]
    results = set(problem.results)
    for index, op in enumerate(ops):
        if op.recomputable or not op.outputs:
            continue
        later = _reach([index], lambda i: after[i])
        if op.phase == "forward":
            later.update(problem.backward_ops)
        for value in op.outputs:
            readers = problem.consumers[value]
            if any(ops[r].phase == "backward" for r in readers):
                crossing.update([value] if op.phase == "forward" else [])
                earlier = _reach(readers, lambda i: before[i]) | set(problem.forward_ops)
            else:
                earlier = _reach(readers, lambda i: before[i])
            for between in later if value in results else later & earlier:
                if between != index:
                    stays[between].append(value)
    return stays, crossing


def _reach(start: Iterable[int], neighbours: Callable[[int], list[int]]) -> set[int]:
    """Ops reachable from `start`, itself included."""
    seen = set(start)
    stack = list(seen)
    while stack:
        for op in neighbours(stack.pop()):
            if op not in seen:
                seen.add(op)
                stack.append(op)
    return seen
