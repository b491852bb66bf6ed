"""Cuts a step into stages: which stages an op may be first computed in, and which may use a value.

The anchors a_0, ..., a_(K-1) are ops whose first computations come in this order in every plan. Moment k < K is the
first computation of a_k, moment K is the end of the step. Stage k is what happens after moment k-1 (or the start), up
to and including moment k.

Let lo(v) <= hi(v) be the stages between which the first computation of op v lies. In the given order lo = hi, and any
ops can be anchors. In free order, anchors must be a chain of the partial order of graph.py; lo(v) is the number of
anchors before v, and hi(v) the first anchor that is v or comes after it.

Let L(d) be the last stage that could use value d: K + 1 for results, else the largest hi(u), or L of an output of u
where u is recomputable, over the readers u of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from remat_solvers.errors import InputError
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.result import Order
from remat_solvers.toolkit.arrays import Ints


class Stages:
    """The anchors, and what follows from them for every op and value.

    Raises InputError where the first computations of the anchors do not have this order in every plan.
    """

    def __init__(self, graph: OpGraph, anchors: Sequence[int]) -> None:
        self.graph = graph
        self.anchors = tuple(anchors)
        if graph.order is Order.GIVEN:
            chain = all(a < b for a, b in pairwise(self.anchors))
        else:
            chain = all(graph.after(a)[b] and a != b for a, b in pairwise(self.anchors))
        if not chain:
            raise InputError(f"the anchors {list(self.anchors)} do not come one after the other in every plan")
        self.low, self.high = graph.first_computation_stages(self.anchors)
        self.last_use = self._last_use()

    def _last_use(self) -> Ints:
        """L of every value: the last stage that could use it; -1: none."""
        graph = self.graph
        last_use = np.where(graph.result, len(self.anchors) + 1, -1).tolist()
        high, recomputable = self.high.tolist(), graph.recomputable.tolist()
        ops = graph.problem.ops
        for op in range(len(ops) - 1, -1, -1):
            last = high[op]
            if recomputable[op]:
                for value in ops[op].outputs:
                    if last_use[value] > last:
                        last = last_use[value]
            last = min(last, len(self.anchors))
            for value in graph.inputs[op]:
                if last_use[value] < last:
                    last_use[value] = last
        return np.array(last_use, dtype=np.int64)
