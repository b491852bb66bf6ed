"""Translates between plans and points of the program over few moments.

`encode_plan` reads S and R off a plan (program.py proves that this point is feasible). `decode_point` turns a point
into a sequence, and so decides what the program leaves open, the order inside a stage. First computations come in the
problem's order; values that one of them, or the end of the stage, needs and that are not resident are recomputed as
late as possible, each op at most once in a stage. So the sequence never costs more than the point, and if its peak is
within the budget, it is as good as the point.

In free order the program has some precedences only at its anchors (effects, forward before backward). The ops that they
require are computed first, once more if the point has left that out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from remat_solvers.optimal.program.stages import Stages
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Ints, Mask


def encode_plan(stages: Stages, plan: Plan) -> tuple[Mask, Mask]:
    """Return S as [moment, value] and R as [stage, op] of a plan without offload that computes the anchors in order."""
    graph = stages.graph
    ops = graph.problem.ops
    present = np.zeros((len(stages.anchors) + 1, len(graph.bytes)), dtype=bool)
    computed = np.zeros((len(stages.anchors) + 1, len(ops)), dtype=bool)
    stage = 0
    resident = np.zeros(len(graph.bytes), dtype=bool)
    for action in plan:
        if isinstance(action, Compute):
            computed[stage, action.op] = True
            resident[list(ops[action.op].outputs)] = True
            if stage < len(stages.anchors) and action.op == stages.anchors[stage]:
                present[stage] = resident
                stage += 1
        elif isinstance(action, Free):
            resident[action.value] = False
    present[stage] = resident
    return present, computed


def bytes_at_first_computations(problem: Problem, plan: Plan) -> tuple[Ints, Ints]:
    """Return two arrays over the ops, for a plan without moves.

    The first has the bytes on the device during the op's first computation, the second the most during recomputations
    since the first computation before.
    """
    size = [v.bytes for v in problem.values]
    resident = [v.kind == "constant" for v in problem.values]
    held_bytes = problem.static_bytes
    first = np.zeros(len(problem.ops), dtype=np.int64)
    repeats = np.zeros(len(problem.ops), dtype=np.int64)
    computed = [False] * len(problem.ops)
    repeats_peak = 0
    for action in plan:
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            during = held_bytes + op.workspace_bytes
            for value in op.outputs:
                during += size[value]
                if not resident[value]:
                    resident[value] = True
                    held_bytes += size[value]
            if computed[action.op]:
                repeats_peak = max(repeats_peak, during)
            else:
                computed[action.op] = True
                first[action.op], repeats[action.op] = during, repeats_peak
                repeats_peak = 0
        elif isinstance(action, Free):
            resident[action.value] = False
            held_bytes -= size[action.value]
    return first, repeats


def decode_point(stages: Stages, present: Mask, computed: Mask) -> list[int]:
    """Return an op sequence for a feasible point, which takes no more time than the point."""
    return _Decoder(stages).sequence_of(present, computed)


class _Decoder:
    def __init__(self, stages: Stages) -> None:
        graph = stages.graph
        self.stages = stages
        self.ops = graph.problem.ops
        self.inputs = graph.inputs
        self.producer = graph.producer.tolist()
        self.sequence: list[int] = []
        self.done = [False] * len(self.ops)
        self.resident: list[bool] = []
        self.effects = [index for index, op in enumerate(self.ops) if op.effects]
        self.forward = list(graph.problem.forward_ops)

    def sequence_of(self, present: Mask, computed: Mask) -> list[int]:
        stages, count = self.stages, len(self.stages.anchors)
        stage = np.arange(count + 1)[:, None]
        first = (computed & (stages.low <= stage) & (stage <= stages.high)).argmax(axis=0)
        for k in range(count + 1):
            self.resident = present[k - 1].tolist() if k else [False] * len(self.producer)
            anchor = stages.anchors[k] if k < count else None
            for op in np.flatnonzero(first == k).tolist():
                if op != anchor:
                    self._compute_first(op)
            if anchor is not None:
                outputs = set(self.ops[anchor].outputs)
                self._make_resident(v for v in np.flatnonzero(present[k]).tolist() if v not in outputs)
                self._compute_first(anchor)
        self._make_resident(stages.graph.problem.results)
        return self.sequence

    def _compute_first(self, op: int) -> None:
        if not self.done[op]:
            self._compute(op)

    def _make_resident(self, values: Iterable[int]) -> None:
        for value in values:
            if self._missing(value):
                self._compute(self.producer[value])

    def _missing(self, value: int) -> bool:
        producer = self.producer[value]
        if producer < 0 or self.resident[value]:
            return False
        return self.ops[producer].recomputable or not self.done[producer]

    def _compute(self, op: int) -> None:
        """Compute an op, after all ops that it depends on and whose outputs are missing."""
        stack = [op]
        while stack:
            op = stack[-1]
            required = [self.producer[v] for v in self.inputs[op] if self._missing(v)]
            if not self.done[op]:
                required += self._overdue(op)
            if required:
                stack.append(required[0])
                continue
            self.sequence.append(op)
            self.done[op] = True
            for value in self.ops[op].outputs:
                self.resident[value] = True
            stack.pop()

    def _overdue(self, op: int) -> Sequence[int]:
        """The op that must precede the first computation of `op` though it does not produce its inputs, if any."""
        if self.ops[op].phase == "backward":
            while self.forward and self.done[self.forward[0]]:
                self.forward.pop(0)
            if self.forward:
                return self.forward[:1]
        if self.ops[op].effects:
            while self.effects and self.done[self.effects[0]]:
                self.effects.pop(0)
            if self.effects and self.effects[0] < op:
                return self.effects[:1]
        return []
