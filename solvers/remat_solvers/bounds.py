"""Proven lower bounds on the peak and the time of every plan, and the moment that forces the one on the peak.

Peak. Fix any valid plan. The static bytes (constants + reserve) are on the device at every moment. Beside them:

1. While an op runs, its inputs, its outputs and its workspace are on the device (the replay adds all outputs, even
   those that were resident already), and every op runs at least once.
2. Results of forward ops are on the device from the boundary to the end, and every backward op runs after the
   boundary. So they are resident while any backward op runs, beside its working set.
3. Without a link, a value v whose producer p is not recomputable has one lifetime on the device: it cannot be
   recomputed nor fetched back. It lasts at least from the run of p to the first computation of each of its readers, and
   to the end if v is a result. Take a reader r and an op q whose first computation comes after p's and before r's in
   every plan, because q depends on p and r on q (directly or not), or because p is forward and q backward, or q forward
   and r backward. Then v is resident during the first computation of q.
4. At the boundary, the forward results are resident, and by the same argument every v of 3. with a forward producer
   and a backward reader. At the end, all results are.

Each line names a moment of every plan and a set of distinct values on the device at that moment, so the largest
sum is a lower bound on the peak of every plan, in any order of first computations. `bottleneck` describes that moment
by op names, source lines and modules of the user's model.

Time. Every op runs at least once, and compute is one stream: no plan is faster than the sum of the times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from remat_solvers.problem import Op, Problem
from remat_solvers.units import format_bytes

VALUES_SHOWN = 4  # the largest, which the text of a Bottleneck names one by one
MODULE_SEARCH_OPS = 8  # how many ops are followed backwards to find a module


@dataclass(frozen=True, slots=True)
class PeakBound:
    """A floor under the peak of every plan, and the moment that sets it."""

    bytes: int  # static bytes included
    op: int | None  # the op during which the bytes are needed; None: at the boundary or at the end
    moment: str  # for people
    resident: tuple[int, ...] = ()  # the values on the device at that moment, beside the constants


def time_bound_ns(problem: Problem) -> int:
    """The sum of the times of all ops: no plan, in any order, is faster."""
    return sum(op.time_ns for op in problem.ops)


def peak_bound_bytes(problem: Problem) -> int:
    """A proven lower bound on the peak of every plan, in bytes; the proof is the module's docstring."""
    return peak_bound(problem).bytes


def peak_bound(problem: Problem) -> PeakBound:
    """The largest of the floors under every plan's peak, with the moment that sets it; computed once per Problem."""
    facts = vars(problem)  # where a Problem keeps its cached properties
    if "peak_bound" not in facts:
        facts["peak_bound"] = _peak_bound(problem)
    bound: PeakBound = facts["peak_bound"]
    return bound


def _peak_bound(problem: Problem) -> PeakBound:
    ops, values = problem.ops, problem.values

    def floor(resident: Iterable[int], op: int | None, moment: str) -> PeakBound:
        distinct = tuple(sorted(v for v in set(resident) if values[v].kind != "constant"))
        workspace_bytes = 0 if op is None else ops[op].workspace_bytes
        size = problem.static_bytes + sum(values[v].bytes for v in distinct) + workspace_bytes
        return PeakBound(size, op, moment, distinct)

    forward_results = set(problem.forward_results)
    kept, crossing = _forced_lifetimes(problem)
    best = floor(problem.results, None, "the results at the end of the step")
    boundary = floor(forward_results | crossing, None, "what must be on the device between forward and backward")
    if problem.backward_ops and boundary.bytes > best.bytes:
        best = boundary
    for index, op in enumerate(ops):
        resident = {*op.inputs, *op.outputs, *kept[index]}
        if op.phase == "backward":
            resident |= forward_results
        module = f" in {op.module}" if op.module else ""
        during = floor(resident, index, f"op {index} ({op.name}{module}) with what it reads and creates")
        if during.bytes > best.bytes:
            best = during
    return best


def _forced_lifetimes(problem: Problem) -> tuple[list[list[int]], set[int]]:
    """Per op the values that rule 3 keeps during its first computation, and those that cross the boundary (rule 4)."""
    ops = problem.ops
    kept: list[list[int]] = [[] for _ in ops]
    crossing: set[int] = set()
    if problem.link is not None:
        return kept, crossing
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
                    kept[between].append(value)
    return kept, crossing


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


@dataclass(frozen=True, slots=True)
class ResidentValue:
    """A value that has to be on the device."""

    value: int  # index
    bytes: int
    description: str  # such as "output of mm (model.py:41, in lm_head)"


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The moment of every plan that sets the floor under its peak, and the values on the device at that moment."""

    bytes: int  # the floor: static bytes included
    op: int | None  # the op that runs at the moment; None: the boundary or the end
    moment: str  # such as "during _log_softmax_backward_data (model.py:41, after lm_head)"
    resident: tuple[ResidentValue, ...]  # the largest first
    workspace_bytes: int  # of the op
    static_bytes: int  # constants and reserve

    def __str__(self) -> str:
        """The bytes, the moment, and the largest of the resident values, on one line."""
        parts = [
            f"{format_bytes(item.bytes)} {item.description}" for item in self.resident[:VALUES_SHOWN] if item.bytes
        ]
        rest = self.resident[VALUES_SHOWN:]
        if rest:
            parts.append(f"{format_bytes(sum(item.bytes for item in rest))} in {len(rest)} more values")
        if self.workspace_bytes:
            parts.append(f"{format_bytes(self.workspace_bytes)} workspace")
        if self.static_bytes:
            parts.append(f"{format_bytes(self.static_bytes)} constants and reserve")
        return f"{format_bytes(self.bytes)} {self.moment}: {', '.join(parts) or 'nothing'}"


def bottleneck(problem: Problem, floor: PeakBound | None = None) -> Bottleneck:
    """The moment that sets the floor under the peak of every plan, by names and modules of the user's model.

    An op without a module of its own (a function called between modules) is located by the module that its data comes
    from: the nearest one along values of the same size.
    """
    floor = peak_bound(problem) if floor is None else floor
    largest_first = sorted(floor.resident, key=lambda v: (-problem.values[v].bytes, v))
    op = None if floor.op is None else problem.ops[floor.op]
    return Bottleneck(
        bytes=floor.bytes,
        op=floor.op,
        moment=f"for {floor.moment}" if op is None else f"during {_describe_op(problem, op)}",
        resident=tuple(
            ResidentValue(v, problem.values[v].bytes, _describe_value(problem, v, op)) for v in largest_first
        ),
        workspace_bytes=0 if op is None else op.workspace_bytes,
        static_bytes=problem.static_bytes,
    )


def _describe_value(problem: Problem, value: int, during: Op | None) -> str:
    kind = "gradient" if problem.values[value].kind == "gradient" else "output"
    if during is not None and value in during.outputs:
        return f"{kind} that it computes"
    return f"{kind} of {_describe_op(problem, problem.ops[problem.producer[value]])}"


def _describe_op(problem: Problem, op: Op) -> str:
    """The op's kind, its line and its module: "mm (model.py:41, in lm_head)"."""
    parts = op.target.split(".")  # aten.mm.default, mm.default, mm
    kind = parts[1] if len(parts) > 2 else parts[0]
    module = op.module or _module_before(problem, op)
    location = ", ".join(filter(None, [op.source, f"{'in' if op.module else 'after'} {module}" if module else ""]))
    if not location:
        return f"{op.name} ({kind})" if kind and op.name else op.name or kind
    return f"{kind or op.name} ({location})"


def _module_before(problem: Problem, op: Op) -> str:
    """The module of the op that the data of `op` comes from, along values of the size of its largest."""
    largest_bytes = max((problem.values[v].bytes for v in (*op.outputs, *op.inputs)), default=0)
    for _ in range(MODULE_SEARCH_OPS):
        producers = {problem.producer[v] for v in op.inputs} - {-1}
        same_size = [
            p for p in producers if any(problem.values[v].bytes == largest_bytes for v in problem.ops[p].outputs)
        ]
        if not same_size:
            return ""
        op = problem.ops[min(same_size)]  # the earliest: forward rather than backward
        if op.module:
            return op.module
    return ""
