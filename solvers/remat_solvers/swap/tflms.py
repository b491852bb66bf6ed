"""Le, Imai, Negishi, Kawachiya: TFLMS: Large Model Support in TensorFlow by Graph Rewriting. arXiv 1807.02037, 2018.

The rewriting of Meng et al. (`rewriting`), with triggers chosen by distance in the graph instead of by time. The order
of an op is its level: one more than the highest of what it reads from. Rules and names are those of the released code
(IBM/tensorflow-large-model-support, lms/lms.py):

n_tensors     The forward graph is walked breadth first, from the ops that read nothing an op makes. Values that
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

Open there, and what is done here: Of several candidates any may be taken; here the one that runs last, and none that
runs after e in the problem's order, where it would never start. Backward ops have orders above all forward ones; so do
the gradients handed to backward, which read nothing. Memory decides in the paper by hand: n_tensors, lb and the
strategy are searched for the fastest plan within the budget, unless they are given. There is no bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.transfers.graph_rewriting import Rewriting, Swap, fastest_choice, smallest_peak
from remat_solvers.toolkit.transfers.intervals import Absence, absences
from remat_solvers.toolkit.transfers.layers import feature_maps
from remat_solvers.toolkit.trials import Trials

__all__ = ["TFLMS", "Graph"]

Strategy: TypeAlias = Literal["chain_rule", "direct_order"]

STRATEGIES: tuple[Strategy, ...] = ("chain_rule", "direct_order")
DISTANCES = (1, 2, 4, 8, 16, 32, 64)  # tried as lb
FARTHEST = 10_000  # ub where none is given, as in the released code


@dataclass(frozen=True)
class TFLMS:
    """Swap the first values of the forward, bring them back at a distance."""

    n_tensors: int | None = None  # most values swapped; None: searched
    lb: int | None = None  # least distance of a trigger; None: searched
    ub: int = FARTHEST  # most distance of a trigger
    strategy: Strategy | None = None  # None: both
    fuse_swapins: bool = True  # one swap_in for all backward readers

    name: ClassVar[str] = "tflms"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of all settings that are left open. See `registry.Solver`."""
        if missing := missing_requirement(problem, self.name, "link to the host", "backward pass"):
            return missing
        rewriting, graph = Rewriting(problem), Graph(problem)
        trials = Trials(problem, budget_bytes, limits, on_progress)
        with trials:
            for lb in DISTANCES if self.lb is None else (self.lb,):
                for strategy in STRATEGIES if self.strategy is None else (self.strategy,):
                    if not trials.out_of_time():
                        self._try(rewriting, graph, trials, lb, strategy)
        return trials.outcome()

    def _try(self, rewriting: Rewriting, graph: Graph, trials: Trials, lb: int, strategy: Strategy) -> None:
        cuts = graph.swaps(lb, self.ub, strategy, self.fuse_swapins)
        form = f"{strategy}, lb {lb}"
        if self.n_tensors is None:
            fastest_choice(rewriting, trials, lambda n: [s for own in cuts[:n] for s in own], len(cuts), form)
        swaps = [s for own in cuts[: self.n_tensors] for s in own]
        if self.n_tensors is not None and (plan := rewriting.plan(swaps, trials.budget_bytes)) is not None:
            trials.replay(plan, form)
        if trials.best is None:
            smallest_peak(rewriting, trials, swaps)


class Graph:
    """The ops of a problem with their orders, and the search for triggers."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.forward = set(problem.forward_ops)
        self.order = self._orders()
        self.by_order: dict[int, list[int]] = {}
        for op, order in enumerate(self.order):
            self.by_order.setdefault(order, []).append(op)
        self.readers = [sorted({r for v in op.outputs for r in problem.consumers[v]}) for op in problem.ops]
        self.needs = self._needs()

    def _orders(self) -> list[int]:
        orders: list[int] = []
        self.backward_from = 0  # the first order of backward
        for index, op in enumerate(self.problem.ops):
            made_by = (self.problem.producer[v] for v in op.inputs)
            order = max((orders[p] + 1 for p in made_by if p >= 0), default=0)
            if index in self.forward:
                self.backward_from = max(self.backward_from, order + 1)
            orders.append(order if index in self.forward else max(order, self.backward_from))
        return orders

    def _needs(self) -> list[int]:
        """Per op: a bit for every op that it depends on."""
        needs: list[int] = []
        for op in self.problem.ops:
            bits = 0
            for producer in {self.problem.producer[v] for v in op.inputs} - {-1}:
                bits |= needs[producer] | 1 << producer
            needs.append(bits)
        return needs

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

    def swaps(self, lb: int, ub: int, strategy: Strategy, fuse: bool) -> list[list[Swap]]:
        """Per value, in the order in which values are swapped, its swaps: none where no trigger was found."""
        own: dict[int, list[Absence]] = {a.value: [a] for a in feature_maps(self.problem)}
        if not fuse:
            for absence in absences(self.problem, range(len(self.problem.ops))):
                if absence.value in own and absence.last not in self.forward and absence.back < len(self.order):
                    own[absence.value].append(absence)
        found = []
        for op in self.breadth_first():
            for value in self.problem.ops[op].outputs:
                if value in own:
                    triggers = [(a, self.trigger(op, a.back, lb, ub, strategy)) for a in own[value]]
                    found.append([Swap(a, max(t, a.last) + 1) for a, t in triggers if t is not None])
        return found

    def trigger(self, f: int, e: int, lb: int, ub: int, strategy: Strategy) -> int | None:
        """The op from which the swap_in for `e` of an output of `f` gets a control edge; None: there is none."""
        near_start = self.order[e] - lb < self.backward_from
        found = self._direct_order if strategy == "direct_order" or near_start else self._chain_rule
        return max(found(f, e, lb, ub), default=None)

    def _chain_rule(self, f: int, e: int, lb: int, ub: int) -> Iterable[int]:
        here, met = [f], {f}
        for distance in range(ub):
            readers = sorted({reader for op in here for reader in self.readers[op]})
            if distance >= lb:
                between = [
                    r for r in readers if r not in self.forward and self.order[f] < self.order[r] < self.order[e]
                ]
                if found := [r for r in between if r < e]:
                    return found
            here = [r for r in readers if r in self.forward and r not in met]
            met.update(here)
            if not here:
                break
        return ()

    def _direct_order(self, f: int, e: int, lb: int, ub: int) -> Iterable[int]:
        lowest = max(self.order[e] - ub, self.order[f]) + 1
        for order in range(self.order[e] - lb - 1, lowest - 1, -1):
            if found := [op for op in self.by_order.get(order, ()) if self.needs[e] >> op & 1]:
                return found
        return ()
