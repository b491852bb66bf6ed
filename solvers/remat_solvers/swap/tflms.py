"""Le, Imai, Negishi, Kawachiya: TFLMS: Large Model Support in TensorFlow by Graph Rewriting. arXiv 1807.02037, 2018.

The rewriting of Meng et al. (`graph_rewriting`), with triggers chosen by distance in the graph instead of by time. The
order of an op is its level: one more than the highest level of the producers of its inputs. Rules and names are those
of the released code (IBM/tensorflow-large-model-support, lms/lms.py):

n_tensors     The forward graph is walked breadth first, from the ops that read no output of another op. Values that
              backward reads are swapped as they are met, up to this many.
fuse_swapins  One swap_in serves all backward readers of a value, and belongs to the first. Without it every reader has
              its own, and the value is dropped in between.
lb, ub        swap_in for backward op e of forward op f's output gets a control edge from an op at a distance from lb to
              ub. Two strategies:
   chain_rule    From f down the forward graph, breadth first. At the first distance of at least lb at which ops have
                 outputs that backward ops read, of an order between f's and e's, one of these is the trigger: their
                 backward comes as much before e as they come behind f. Where e is less than lb above the first order of
                 backward, direct_order instead.
   direct_order  From e down the orders: the highest order below order(e) - lb, and above order(e) - ub and order(f),
                 with an op that e depends on.
              Without such an op swap_in has no trigger, comes back at once, and nothing is gained.

What is open in the paper, and what is done here: Of several candidates any may be taken; here it is the one that runs
last, and none that runs after e in the problem's order, where swap_in would never start. Backward ops have orders above
all forward ones; so do the gradients handed to backward, which read nothing. In the paper the user sets n_tensors, lb
and the strategy so that memory suffices; here they are searched for the fastest plan within the budget, unless they
are given. There is no bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.transfers.graph_rewriting import (
    CutEdge,
    GraphRewriting,
    search_smallest_peak,
    try_edge_counts,
)
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals
from remat_solvers.toolkit.transfers.layers import feature_maps
from remat_solvers.toolkit.trials import TrialMethod, Trials

Strategy: TypeAlias = Literal["chain_rule", "direct_order"]

STRATEGIES: tuple[Strategy, ...] = ("chain_rule", "direct_order")
DISTANCES = (1, 2, 4, 8, 16, 32, 64)  # tried as lb
FARTHEST = 10_000  # ub where none is given, as in the released code


@dataclass(frozen=True)
class TFLMS(TrialMethod):
    """Swap the first values of the forward, bring them back at a distance."""

    n_tensors: int | None = None  # most values swapped; None: searched
    lb: int | None = None  # smallest distance of a trigger; None: searched
    ub: int = FARTHEST  # largest distance of a trigger
    strategy: Strategy | None = None  # None: both
    fuse_swapins: bool = True  # one swap_in for all backward readers

    name: ClassVar[str] = "tflms"
    version: ClassVar[str] = "1"
    requires = ("link to the host", "backward pass")

    def try_plans(self, trials: Trials) -> None:
        """Try all settings that the options leave open."""
        problem = trials.problem
        rewriting, graph = GraphRewriting(problem), OrderedGraph(problem)
        for lb in DISTANCES if self.lb is None else (self.lb,):
            for strategy in STRATEGIES if self.strategy is None else (self.strategy,):
                if not trials.out_of_time():
                    self._try(rewriting, graph, trials, lb, strategy)

    def _try(self, rewriting: GraphRewriting, graph: OrderedGraph, trials: Trials, lb: int, strategy: Strategy) -> None:
        edges_of_values = graph.edges_to_cut(lb, self.ub, strategy, self.fuse_swapins)
        form = f"{strategy}, lb {lb}"
        if self.n_tensors is None:
            try_edge_counts(rewriting, trials, lambda n: _flat(edges_of_values[:n]), len(edges_of_values), form)
        edges = _flat(edges_of_values[: self.n_tensors])
        if self.n_tensors is not None and (plan := rewriting.plan(edges, trials.budget_bytes)) is not None:
            trials.replay(plan, form)
        if trials.best is None:
            search_smallest_peak(rewriting, trials, edges)


def _flat(edges_of_values: list[list[CutEdge]]) -> list[CutEdge]:
    return [edge for edges in edges_of_values for edge in edges]


class OrderedGraph:
    """The ops of a problem with their orders, and the search for triggers."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.forward = set(problem.forward_ops)
        self.order = self._orders()
        self.by_order: dict[int, list[int]] = {}
        for op, order in enumerate(self.order):
            self.by_order.setdefault(order, []).append(op)
        self.readers = [sorted({r for v in op.outputs for r in problem.consumers[v]}) for op in problem.ops]
        self.ancestors = self._ancestors()

    def _orders(self) -> list[int]:
        orders: list[int] = []
        self.backward_from = 0  # the first order of backward
        for index, op in enumerate(self.problem.ops):
            producers = (self.problem.producer[v] for v in op.inputs)
            order = max((orders[p] + 1 for p in producers if p >= 0), default=0)
            if index in self.forward:
                self.backward_from = max(self.backward_from, order + 1)
            orders.append(order if index in self.forward else max(order, self.backward_from))
        return orders

    def _ancestors(self) -> list[int]:
        """Per op: a bit for every op that it depends on."""
        ancestors: list[int] = []
        for op in self.problem.ops:
            bits = 0
            for producer in {self.problem.producer[v] for v in op.inputs} - {-1}:
                bits |= ancestors[producer] | 1 << producer
            ancestors.append(bits)
        return ancestors

    def breadth_first(self) -> list[int]:
        """The forward ops in the order in which their outputs are swapped."""
        sources = [
            op
            for op in self.problem.forward_ops
            if all(self.problem.producer[v] < 0 for v in self.problem.ops[op].inputs)
        ]
        met = dict.fromkeys(sources)
        queue = deque(sources)
        while queue:
            for reader in self.readers[queue.popleft()]:
                if reader in self.forward and reader not in met:
                    met[reader] = None
                    queue.append(reader)
        return list(met)

    def edges_to_cut(self, lb: int, ub: int, strategy: Strategy, fuse: bool) -> list[list[CutEdge]]:
        """Per value, in the order in which values are swapped, its edges: none where no trigger was found."""
        own: dict[int, list[IdleInterval]] = {i.value: [i] for i in feature_maps(self.problem)}
        if not fuse:
            for interval in idle_intervals(self.problem, range(len(self.problem.ops))):
                if interval.value in own and interval.last not in self.forward and interval.back < len(self.order):
                    own[interval.value].append(interval)
        found = []
        for op in self.breadth_first():
            for value in self.problem.ops[op].outputs:
                if value in own:
                    triggers = [(i, self.trigger(op, i.back, lb, ub, strategy)) for i in own[value]]
                    found.append([CutEdge(i, max(t, i.last) + 1) for i, t in triggers if t is not None])
        return found

    def trigger(self, f: int, e: int, lb: int, ub: int, strategy: Strategy) -> int | None:
        """The op from which the swap_in for `e` of an output of `f` gets a control edge; None: there is none."""
        near_start = self.order[e] - lb < self.backward_from
        found = self._direct_order if strategy == "direct_order" or near_start else self._chain_rule
        return max(found(f, e, lb, ub), default=None)

    def _chain_rule(self, f: int, e: int, lb: int, ub: int) -> Iterable[int]:
        frontier, met = [f], {f}
        for distance in range(ub):
            readers = sorted({reader for op in frontier for reader in self.readers[op]})
            if distance >= lb:
                between = [
                    r for r in readers if r not in self.forward and self.order[f] < self.order[r] < self.order[e]
                ]
                if found := [r for r in between if r < e]:
                    return found
            frontier = [r for r in readers if r in self.forward and r not in met]
            met.update(frontier)
            if not frontier:
                break
        return ()

    def _direct_order(self, f: int, e: int, lb: int, ub: int) -> Iterable[int]:
        lowest = max(self.order[e] - ub, self.order[f]) + 1
        for order in range(self.order[e] - lb - 1, lowest - 1, -1):
            if found := [op for op in self.by_order.get(order, ()) if self.ancestors[e] >> op & 1]:
                return found
        return ()
