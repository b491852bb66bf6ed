"""Liu, Jiang, Jin, Shi, Ma: Layrub: Layer-centric GPU memory reuse and data migration in extreme-scale deep learning.

PPoPP 2018 (poster); ACM TACO 15(3), 2018.

Layrub reuses memory in two ways. Inside a layer (intra-layer) the gradient of its data takes the space of the data once
the data's backward use is over, which halves what a layer needs. A plan expresses as much of that as it can: data
is freed with its last reader, so that from the op after it on the gradient has the space (superneurons/pool_allocator
puts it there). A plan cannot express that the reader itself writes over its input: here every op has its inputs beside
its outputs (docs/memory-model.md), so a layer whose gradient op is also the last reader of its data needs both at that
moment. That saving needs an executor with ops in place, and is not made here. Between layers (inter-layer), data of
different layers share the same slots:

- The order in which layers access data is recorded. A count per data says how many layers of the forward pass still
  read it. When it is zero, the data moves to the host.
- Copies overlap with the compute of the neighbours: the slot is needed again by the layer after the next, so compute
  waits for the copy at the end of the next layer.
- Before the backward of a layer its data comes back, while the backward of the layer before it in that order runs.

So a chain of equal layers needs the same few slots however deep it is. All data moves, whatever its layer's type and
cost (types came with Layup, the follow-up), and there is no budget to choose by: the plan fits or it does not.

Only the abstracts and descriptions of others were at hand, so this is in the manner of Layrub: migration by count and
order is theirs, that copies overlap with one neighbouring layer is chosen here. On a graph of ops a layer is a forward
op, with the backward ops that `backward_layers` gives it. A value that the host has no room for stays. There is no
bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.toolkit.transfers.intervals import IdleInterval, Swap, plan_with_swaps
from remat_solvers.toolkit.transfers.layers import backward_layers, feature_maps, within_host
from remat_solvers.toolkit.trials import TrialMethod, Trials


@dataclass(frozen=True)
class Layrub(TrialMethod):
    """Move every layer's data to the host when its count is zero, and back before its backward."""

    name: ClassVar[str] = "layrub"
    version: ClassVar[str] = "1"
    requires = ("link to the host", "backward pass")

    def try_plans(self, trials: Trials) -> None:
        """Try the one plan of the method."""
        trials.replay(migrating_plan(trials.problem), "migrated")


def migrations(problem: Problem) -> list[tuple[int, int]]:
    """(value, layer) in the order in which counts of forward readers reach zero; only data that backward reads."""
    read_later = {v for v, readers in enumerate(problem.consumers) if any(_backward(problem, r) for r in readers)}
    counts = Counter(v for op in problem.forward_ops for v in set(problem.ops[op].inputs))
    found: list[tuple[int, int]] = []
    for layer in problem.forward_ops:
        op = problem.ops[layer]
        for value in dict.fromkeys(op.inputs):
            counts[value] -= 1
        done = [v for v in dict.fromkeys((*op.inputs, *op.outputs)) if not counts[v]]
        found += [(v, layer) for v in done if v in read_later and problem.producer[v] >= 0]
    return found


def _backward(problem: Problem, op: int) -> bool:
    return problem.ops[op].phase == "backward"


def migrating_plan(problem: Problem) -> Plan:
    """The step in which every layer's data moves."""
    intervals = {i.value: i for i in feature_maps(problem)}  # values that are read at once, and results, stay
    migrating: list[IdleInterval] = [intervals[v] for v, _ in migrations(problem) if v in intervals]
    prefetch_at = _neighbours(problem)
    swaps = []
    for interval in within_host(problem, migrating):
        free = interval.last + 1
        swaps.append(Swap(interval.value, interval.last, free, max(free + 1, prefetch_at[interval.back])))
    return plan_with_swaps(problem, range(len(problem.ops)), swaps)


def _neighbours(problem: Problem) -> dict[int, int]:
    """Backward op -> the op with which the backward of the layer before its own, in that order, begins."""
    starts: dict[int, int] = {}
    before = begin = current = -1
    for op, layer in backward_layers(problem).items():
        if layer != current:
            before, begin, current = (begin if begin >= 0 else op), op, layer
        starts[op] = before
    return starts
