"""Between the coarse program and whole plans: a plan's point in the program, and a point's sequence of ops.

`point_of` reads S and R off a plan (stages.py says why that is feasible). `expand` goes the other way: it fills in what
the program leaves open, the order inside a stage. First runs come in the problem's order; what is missing for one of
them, or at the stage's end, is recomputed as late as possible, each op at most once in a stage. So the sequence never
costs more than the point, and if its peak is within the budget, it is as good as the point.

In free order the program knows of some precedences only at its anchors (effects, forward before backward); what they
demand is run first, once more where that is what the point forgot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from remat_solvers.optimal.program.stages import Stages
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Ints, Mask

__all__ = ["bytes_at_first_runs", "expand", "point_of"]


def point_of(stages: Stages, plan: Plan) -> tuple[Mask, Mask]:
    """S as [moment, value] and R as [stage, op] of a plan whose anchors first run in order and that moves nothing."""
    graph = stages.graph
    ops = graph.problem.ops
    stay = np.zeros((len(stages.at) + 1, len(graph.bytes)), dtype=bool)
    run = np.zeros((len(stages.at) + 1, len(ops)), dtype=bool)
    stage = 0
    there = np.zeros(len(graph.bytes), dtype=bool)
    for action in plan:
        if isinstance(action, Compute):
            run[stage, action.op] = True
            there[list(ops[action.op].outputs)] = True
            if stage < len(stages.at) and action.op == stages.at[stage]:
                stay[stage] = there
                stage += 1
        elif isinstance(action, Free):
            there[action.value] = False
    stay[stage] = there
    return stay, run


def bytes_at_first_runs(problem: Problem, plan: Plan) -> tuple[Ints, Ints]:
    """Per op: bytes on the device during its first run, and the most during repeats since the first run before."""
    size = [v.bytes for v in problem.values]
    there = [v.kind == "constant" for v in problem.values]
    held = problem.static_bytes
    first = np.zeros(len(problem.ops), dtype=np.int64)
    repeats = np.zeros(len(problem.ops), dtype=np.int64)
    seen = [False] * len(problem.ops)
    most = 0
    for action in plan:
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            during = held + op.workspace_bytes
            for value in op.outputs:
                during += size[value]
                if not there[value]:
                    there[value] = True
                    held += size[value]
            if seen[action.op]:
                most = max(most, during)
            else:
                seen[action.op] = True
                first[action.op], repeats[action.op] = during, most
                most = 0
        elif isinstance(action, Free):
            there[action.value] = False
            held -= size[action.value]
    return first, repeats


def expand(stages: Stages, stay: Mask, run: Mask) -> list[int]:
    """The op sequence of a feasible point, as fast or faster."""
    return _Expansion(stages).sequence_of(stay, run)


class _Expansion:
    def __init__(self, stages: Stages) -> None:
        graph = stages.graph
        self.stages = stages
        self.ops = graph.problem.ops
        self.inputs = graph.inputs
        self.producer = graph.producer.tolist()
        self.sequence: list[int] = []
        self.done = [False] * len(self.ops)
        self.there: list[bool] = []
        self.effects = [op for op, known in enumerate(self.ops) if known.effects]
        self.forward = list(graph.problem.forward_ops)

    def sequence_of(self, stay: Mask, run: Mask) -> list[int]:
        stages, count = self.stages, len(self.stages.at)
        stage = np.arange(count + 1)[:, None]
        first = (run & (stages.low <= stage) & (stage <= stages.high)).argmax(axis=0)
        for k in range(count + 1):
            self.there = stay[k - 1].tolist() if k else [False] * len(self.producer)
            anchor = stages.at[k] if k < count else None
            for op in np.flatnonzero(first == k).tolist():
                if op != anchor:
                    self._first(op)
            if anchor is not None:
                own = set(self.ops[anchor].outputs)
                self._bring(v for v in np.flatnonzero(stay[k]).tolist() if v not in own)
                self._first(anchor)
        self._bring(stages.graph.problem.results)
        return self.sequence

    def _first(self, op: int) -> None:
        if not self.done[op]:
            self._compute(op)

    def _bring(self, values: Iterable[int]) -> None:
        """Have these values on the device."""
        for value in values:
            if self._missing(value):
                self._compute(self.producer[value])

    def _missing(self, value: int) -> bool:
        producer = self.producer[value]
        if producer < 0 or self.there[value]:
            return False
        return self.ops[producer].recomputable or not self.done[producer]

    def _compute(self, op: int) -> None:
        """Run an op, after all that it needs and that is missing."""
        stack = [op]
        while stack:
            op = stack[-1]
            needs = [self.producer[v] for v in self.inputs[op] if self._missing(v)]
            if not self.done[op]:
                needs += self._overdue(op)
            if needs:
                stack.append(needs[0])
                continue
            self.sequence.append(op)
            self.done[op] = True
            for value in self.ops[op].outputs:
                self.there[value] = True
            stack.pop()

    def _overdue(self, op: int) -> Sequence[int]:
        """What has to come before the first run of an op, beside what makes its inputs."""
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
