"""What forces the floor under every plan's peak, in words that a user of the model understands.

`bounds.peak_bound` names a moment that every plan has, and the values that are on the device then. Here they get the
names of the model: what made them, in which module, at which line. An op without a module of its own (a function called
between modules) is told by the module that its data comes from: the nearest one along values of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass

from remat_solvers.bounds import PeakBound, peak_bound
from remat_solvers.problem import Op, Problem
from remat_solvers.units import format_bytes

__all__ = ["Forcing", "Held", "forcing"]

SHOWN = 4  # values that are named one by one, the largest
FAR = 8  # ops that are looked back through for a module


@dataclass(frozen=True, slots=True)
class Held:
    """A value that has to be on the device."""

    value: int  # index
    bytes: int
    words: str  # such as "output of mm (model.py:41, in lm_head)"


@dataclass(frozen=True, slots=True)
class Forcing:
    """A moment of every plan, and what is on the device then."""

    bytes: int  # the floor: constants and reserve included
    op: int | None  # the op during which it is; None: at the boundary or at the end
    moment: str  # such as "during _log_softmax_backward_data (model.py:41, after lm_head)"
    held: tuple[Held, ...]  # the largest first
    workspace_bytes: int  # of the op
    base_bytes: int  # constants and reserve

    def __str__(self) -> str:
        """One sentence: the bytes, the moment, and the largest of what is there."""
        parts = [f"{format_bytes(item.bytes)} {item.words}" for item in self.held[:SHOWN] if item.bytes]
        rest = self.held[SHOWN:]
        if rest:
            parts.append(f"{format_bytes(sum(item.bytes for item in rest))} in {len(rest)} more values")
        if self.workspace_bytes:
            parts.append(f"{format_bytes(self.workspace_bytes)} workspace")
        if self.base_bytes:
            parts.append(f"{format_bytes(self.base_bytes)} constants and reserve")
        return f"{format_bytes(self.bytes)} {self.moment}: {', '.join(parts) or 'nothing'}"


def forcing(problem: Problem, floor: PeakBound | None = None) -> Forcing:
    """The moment that sets the floor under the peak of every plan, in the words of the model."""
    floor = peak_bound(problem) if floor is None else floor
    ordered = sorted(floor.held, key=lambda v: (-problem.values[v].bytes, v))
    op = None if floor.op is None else problem.ops[floor.op]
    return Forcing(
        bytes=floor.bytes,
        op=floor.op,
        moment=f"for {floor.moment}" if op is None else f"during {_op_words(problem, op)}",
        held=tuple(Held(v, problem.values[v].bytes, _value_words(problem, v, op)) for v in ordered),
        workspace_bytes=0 if op is None else op.workspace_bytes,
        base_bytes=problem.static_bytes,
    )


def _value_words(problem: Problem, value: int, during: Op | None) -> str:
    kind = "gradient" if problem.values[value].kind == "gradient" else "output"
    if during is not None and value in during.outputs:
        return f"{kind} that it makes"
    return f"{kind} of {_op_words(problem, problem.ops[problem.producer[value]])}"


def _op_words(problem: Problem, op: Op) -> str:
    """The op's kind, its line and its module: "mm (model.py:41, in lm_head)"."""
    parts = op.target.split(".")  # aten.mm.default, mm.default, mm
    kind = parts[1] if len(parts) > 2 else parts[0]
    module = op.module or _module_before(problem, op)
    where = [op.source, f"{'in' if op.module else 'after'} {module}" if module else ""]
    told = ", ".join(filter(None, where))
    if not told:
        return f"{op.name} ({kind})" if kind and op.name else op.name or kind
    return f"{kind or op.name} ({told})"


def _module_before(problem: Problem, op: Op) -> str:
    """The module of the op that the data of `op` comes from, along values of the size of its largest."""
    sizes = [problem.values[v].bytes for v in (*op.outputs, *op.inputs)]
    largest = max(sizes, default=0)
    for _ in range(FAR):
        made = [problem.producer[v] for v in op.inputs if problem.producer[v] >= 0]
        alike = [p for p in made if any(problem.values[v].bytes == largest for v in problem.ops[p].outputs)]
        if not alike:
            return ""
        op = problem.ops[min(alike)]  # the earliest: forward rather than backward
        if op.module:
            return op.module
    return ""
