"""Meng, Sun, Yang, Qiu, Gu: Training Deeper Models by GPU Memory Optimization on TensorFlow. NIPS workshop 2017.

The ML Systems workshop. The data-flow graph is rewritten (`graph_rewriting`): an edge from the forward to the backward
is cut and goes through the host. Two choices are the paper's:

which   A search over the forward graph in reverse topological order keeps values as long as a memory threshold allows:
        those of the late layers, which backward reads soon. From the first that the threshold does not allow, all
        earlier ones, of long lifetime, are swapped.
when    swap_in of a value that e reads comes as late as its copy is still hidden by other computation. With completion
        times of all nodes, estimated beforehand, its trigger is

            the latest t with  finish(t) <= start(e) - size / bandwidth

        by time, not by distance in the graph. swap_out is not delayed.

What is open in the paper, and what is done here: The threshold is compared with the bytes of values kept for backward,
the value's own included. Completion times are those of the problem's order if nothing waits (ops run one at a time,
which is what list scheduling on one stream gives), each copy is assumed to be alone on the link, in whole ns rounded
down. A trigger is never an op before the value's last forward reader. Backward readers after the first find the value
resident: one swap_in per value. The threshold is searched for the fastest plan within the budget unless it is given.

The paper's other rewriting, which recomputes the sum inside an attention layer, changes ops, which a plan cannot do.
There is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import ClassVar

from remat_solvers.problem import Problem
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.transfers.graph_rewriting import (
    CutEdge,
    GraphRewriting,
    search_smallest_peak,
    try_edge_counts,
)
from remat_solvers.toolkit.transfers.intervals import Clock, IdleInterval
from remat_solvers.toolkit.transfers.layers import feature_maps
from remat_solvers.toolkit.trials import TrialMethod, Trials


@dataclass(frozen=True)
class Meng(TrialMethod):
    """Keep the values of late layers, swap the others, bring them back just in time."""

    threshold_bytes: int | None = None  # most bytes kept for backward; None: searched

    name: ClassVar[str] = "meng"
    version: ClassVar[str] = "1"
    requires = ("link to the host", "backward pass")
    ranges: ClassVar[Ranges] = {"threshold_bytes": (0, inf)}

    def try_plans(self, trials: Trials) -> None:
        """Try thresholds, and where none fits look for the smallest peak."""
        problem = trials.problem
        rewriting = GraphRewriting(problem)
        edges = edges_to_cut(problem, 0 if self.threshold_bytes is None else self.threshold_bytes)
        if self.threshold_bytes is None:
            try_edge_counts(rewriting, trials, lambda number: edges[:number], len(edges), "threshold")
        elif (plan := rewriting.plan(edges, trials.budget_bytes)) is not None:
            trials.replay(plan, "threshold")
        if trials.best is None:
            search_smallest_peak(rewriting, trials, edges)


def edges_to_cut(problem: Problem, threshold_bytes: int) -> list[CutEdge]:
    """The edges of the values swapped under a threshold, in the order in which the forward computes the values."""
    clock = Clock(problem, range(len(problem.ops)))
    maps = sorted(feature_maps(problem), key=lambda i: (problem.producer[i.value], i.value))
    kept_bytes = accumulate(problem.values[i.value].bytes for i in reversed(maps))
    kept = sum(size_bytes <= threshold_bytes for size_bytes in kept_bytes)
    return [CutEdge(i, trigger(problem, clock, i) + 1) for i in maps[: len(maps) - kept]]


def trigger(problem: Problem, clock: Clock, interval: IdleInterval) -> int:
    """The op after which the value's swap_in starts."""
    link = problem.link
    assert link is not None
    copy_ns = link.latency_ns + problem.values[interval.value].bytes * 10**9 // link.to_device_bytes_per_s
    latest = clock.last_starting_at(clock.starts[interval.back] - copy_ns) - 1
    return max(interval.last, min(latest, interval.back - 1))
