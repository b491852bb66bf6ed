"""Holds a problem as flat arrays, with what is known of the order of first computations in every plan.

In the given order every op is comparable with every other. In free order only this is known: an op comes after those
that produce what it reads, ops with effects keep their order, and forward ops come before backward ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.toolkit.arrays import Ints, Mask


class OpGraph:
    """Holds a problem as flat arrays, and the partial order of its first computations."""

    def __init__(self, problem: Problem, order: Order) -> None:
        ops, values = problem.ops, problem.values
        self.problem, self.order = problem, order
        self.time_ns = np.array([op.time_ns for op in ops], dtype=np.int64)
        self.bytes = np.array([v.bytes for v in values], dtype=np.int64)
        self.producer = np.array(problem.producer, dtype=np.int64)
        self.produced = self.producer >= 0
        self.recomputable = np.array([op.recomputable for op in ops], dtype=bool)
        self.backward = np.array([op.phase == "backward" for op in ops], dtype=bool)
        self.inputs = [[v for v in dict.fromkeys(op.inputs) if problem.producer[v] >= 0] for op in ops]
        # One entry per edge: op `readers[i]` reads value `reads[i]`.
        self.readers = np.repeat(np.arange(len(ops)), [len(v) for v in self.inputs])
        self.reads = np.array([v for inputs in self.inputs for v in inputs], dtype=np.int64)
        self.result = np.zeros(len(values), dtype=bool)
        self.result[list(problem.results)] = True
        self.result &= self.produced
        self.forward_result = self.result & ~self.backward[self.producer] if len(ops) else self.result
        self.static_bytes = problem.static_bytes
        effects = [i for i, op in enumerate(ops) if op.effects]
        self._before = [sorted({problem.producer[v] for v in inputs}) for inputs in self.inputs]
        self._after = [sorted({r for v in op.outputs for r in problem.consumers[v]}) for op in ops]
        for earlier, later in pairwise(effects):
            self._before[later].append(earlier)
            self._after[earlier].append(later)

    def first_computation_stages(self, anchors: Sequence[int]) -> tuple[Ints, Ints]:
        """Per op, the first and the last stage in which its first computation may lie."""
        count = len(self.time_ns)
        if self.order is Order.GIVEN:
            stage = np.searchsorted(np.array(anchors, dtype=np.int64), np.arange(count))
            return stage, stage
        low, high = np.zeros(count, dtype=np.int64), np.full(count, len(anchors))
        for k, anchor in reversed(list(enumerate(anchors))):
            high[self.before(anchor)] = k
        for k, anchor in enumerate(anchors):
            low[self.after(anchor)] = k + 1
            low[anchor] = k
        return low, high

    def before(self, op: int) -> Mask:
        """Mask of `op` and of all ops that are first computed before it in every plan; for free order."""
        reached = _reach(op, self._before)
        return reached | ~self.backward if self.backward[op] else reached

    def after(self, op: int) -> Mask:
        """Mask of `op` and of all ops that are first computed after it in every plan; for free order."""
        reached = _reach(op, self._after)
        return reached | self.backward if not self.backward[op] else reached


def _reach(start: int, edges: list[list[int]]) -> Mask:
    """Mask of `start` and all ops that can be reached from it."""
    reached = bytearray(len(edges))  # single entries of it are faster than those of an array
    reached[start] = 1
    stack = [start]
    while stack:
        for op in edges[stack.pop()]:
            if not reached[op]:
                reached[op] = 1
                stack.append(op)
    return np.frombuffer(bytes(reached), dtype=np.uint8).astype(bool)
