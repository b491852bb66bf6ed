"""Wang et al.: SuperNeurons: Dynamic GPU Memory Management for Training Deep Neural Networks. PPoPP 2018.

SuperNeurons swaps the outputs of layers that are expensive to compute and recomputes the cheap ones between them, on
top of liveness. Its four steps, with l_i^f and l_i^b the bytes of a layer's forward and backward (`ladder`), and their
peaks:

baseline   everything stays                                                     sum of l_i^f + sum of l_i^b
liveness   a tensor is freed after its last reader                              sum of l_i^f + l_N^b
offload    checkpoints are on the host while no layer uses them                 sum of l_i^f of no checkpoints + l_k^b
recompute  the others are recomputed from the checkpoint before, cost-aware   max_i l_i

Recomputation. Checkpoints are kept; the layers between two checkpoints are a segment:

speed-centric   when backward first needs a value of a segment, the whole segment is recomputed and kept for the rest of
                its backward: at most one forward more, peak sum of l^f over the segment, + l^b
memory-centric  for every backward op its inputs are recomputed from the checkpoint, and dropped: O(s^2) forward ops
                for a segment of s layers, s (s - 1) / 2 where a layer's backward needs its input, peak one layer
cost-aware      l_peak = max_i l_i. A segment with sum of l^f + l^b(its end) <= l_peak is run speed-centric, any other
                memory-centric: the peak of the latter at close to the cost of the former

The unified tensor pool (with a link) moves CONV outputs, or (offload="checkpoints") the outputs of every checkpoint:

cache=False  each is copied to the host as soon as it is computed, and freed when the copy has ended and no forward
             op reads it any more; where memory is short before that, compute waits for the copy
cache=True   the tensor cache: a list by latest use. Only where memory is short tensors are evicted, least recently
             used first, until enough bytes are free; those that the current layer uses are locked. Backward uses the
             most recent ones first, so the oldest is the right victim. Nothing moves where memory suffices
prefetch     where backward first uses a moved tensor, the one moved before it in the forward is fetched too, if there
             is room beside the layer; a tensor that is not resident when it is needed is fetched on demand

The paper's layers, on a graph of ops:

- Checkpoints are CONV and FC (convolutions, matrix products, attention), JOIN (an add, cat or stack, or an op without a
  target, that reads outputs of two or more ops), FORK (two or more forward ops read an output), and SOFTMAX with the
  loss. DATA are constants. Ops that are not recomputable keep their outputs too.
- A segment is a connected component of the other forward ops.
- l_i, for an op of either phase: the bytes of its inputs, outputs and workspace, constants left out. l^f: the bytes
  of an op's outputs. l^b of a segment's end: l of the first backward op that reads a value of the segment, without
  the segment's own values.
- The comparison of cost-aware looks at the end of a segment only. Where layers differ, more may be alive at one further
  inside, and the peak be above l_peak, which memory-centric's never is on a chain of layers.
- threshold="paper" compares as above. The released code compares the segment's forward bytes alone with the largest set
  that a backward op depends on: threshold="code".
- A copy ahead of need is left out where its value is read again before it could be freed (the paper's would be in vain,
  and a Free here waits for it).

Of options that are None, all values are tried; the fastest plan within the budget is returned. Without a link only
recomputation is left. There is no bound.

A plan has bytes and no addresses. The reason of the outcome states how large a pool of 1 KB blocks the plan needs, and
how much of that is fragmentation (`pool_use`). So the budget holds for bytes; the pool may need a little more.

Dynamic workspace: per CONV the fastest algorithm whose workspace fits the bytes left free at that step. A problem has
one implementation per op; `choose_workspaces_for_plan` (toolkit/transfers/kernel_choice) chooses among those that the
caller states, for a given plan.

Sources: the paper's abstract and the released code for the checkpoints and thresholds; its formulas, the pool and the
cache by secondary notes. That tensors are locked while a layer uses them is from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.swap.superneurons.pool_allocator import pool_use
from remat_solvers.swap.superneurons.tensor_pool import pooled
from remat_solvers.toolkit.graphs.dropped_values import droppable
from remat_solvers.toolkit.graphs.op_kinds import op_kind, op_name
from remat_solvers.toolkit.sequences.recompute_dropped import recompute_dropped
from remat_solvers.toolkit.transfers.demand_paging import smallest_paging_budget
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.trials import TrialMethod, Trials

Strategy: TypeAlias = Literal["keep", "speed-centric", "cost-aware", "memory-centric"]
Threshold: TypeAlias = Literal["paper", "code"]
Offload: TypeAlias = Literal["conv", "checkpoints"]

STRATEGIES: tuple[Strategy, ...] = ("keep", "speed-centric", "cost-aware", "memory-centric")  # keep: no recomputation
OFFLOADS: tuple[Offload, ...] = ("conv", "checkpoints")
JOINS = ("add", "sum", "cat", "concat", "stack", "")  # the last: an op without a target
LOSSES = ("_softmax", "_log_softmax", "softmax", "log_softmax", "nll_loss_forward", "nll_loss2d_forward", "mse_loss")


@dataclass(frozen=True)
class SuperNeurons(TrialMethod):
    """Move checkpoints, recompute the layers between them: for speed, for memory, or as each segment allows."""

    strategy: Strategy | None = None  # None: each in turn
    threshold: Threshold = "paper"  # of cost-aware: as the paper has it, or as the released code
    offload: Offload | None = None  # the outputs that may move over a link: of convolutions, or of all checkpoints
    cache: bool | None = None  # True: move only where memory is short; False: as soon as computed

    name: ClassVar[str] = "superneurons"
    version: ClassVar[str] = "2"

    def try_plans(self, trials: Trials) -> None:
        """Try the chosen strategies."""
        problem = trials.problem
        for strategy in STRATEGIES if self.strategy is None else (self.strategy,):
            if trials.expired:
                break
            sequence = self.sequence(problem, strategy)
            trials.fits(sequence, strategy)
            if problem.link is not None:
                self._move(sequence, trials, strategy)
        if trials.best is not None:
            trials.reason = _pool_size(problem, trials.best.plan)

    def _move(self, sequence: list[int], trials: Trials, form: str) -> None:
        problem = trials.problem
        profile = StepProfile.of(problem, sequence)
        for offload in OFFLOADS if self.offload is None else (self.offload,):
            movable = self.movable(problem, offload)
            if problem.link is not None and problem.link.host_bytes is None:
                trials.observe_peak(smallest_paging_budget(problem, profile.sequence, movable))
            for cache in (True, False) if self.cache is None else (self.cache,):
                if trials.expired or trials.cannot_improve(sequence):
                    return
                plan = pooled(profile, movable, trials.budget_bytes, cache=cache)
                if plan is not None:
                    trials.replay(plan, f"{form}, {offload} {'cached' if cache else 'moved'}")

    def movable(self, problem: Problem, offload: Offload) -> set[int]:
        """The values that the pool may move: outputs of convolutions, or of checkpoints, that backward reads."""
        ops = {op for op in problem.forward_ops if op_kind(problem.ops[op]) == "conv"}
        if offload == "checkpoints":
            ops = checkpoint_ops(problem)
        outputs = {v for op in ops for v in problem.ops[op].outputs}.difference(problem.results)
        backward = set(problem.backward_ops)
        return {v for v in outputs if not backward.isdisjoint(problem.consumers[v])}

    def sequence(self, problem: Problem, strategy: Strategy) -> list[int]:
        """The ops in execution order under one strategy."""
        if strategy == "keep":
            return list(range(len(problem.ops)))
        segment_of = segments_between(problem, checkpoint_ops(problem))
        every_time: set[int] = set()
        if strategy == "memory-centric":
            every_time = set(segment_of.values())
        elif strategy == "cost-aware":
            every_time = memory_centric(problem, segment_of, self.threshold)
        inside = (producer in segment_of for producer in problem.producer)
        dropped = [may_drop and within for may_drop, within in zip(droppable(problem), inside, strict=True)]
        return recompute_dropped(problem, dropped, segment_of, every_time)


def _pool_size(problem: Problem, plan: Plan) -> str:
    use = pool_use(problem, plan)
    lost = f"{use.fragmentation_bytes} bytes to holes, {use.rounding_bytes} to whole blocks"
    return f"a pool of {use.pool_bytes} bytes holds it by first fit: {lost}"


def checkpoint_ops(problem: Problem) -> set[int]:
    """Forward ops whose outputs are kept: CONV, FC, JOIN, FORK, SOFTMAX, and ops that cannot be recomputed."""
    found: set[int] = set()
    forward = set(problem.forward_ops)
    for index in problem.forward_ops:
        op = problem.ops[index]
        name = op_name(op.target)
        producers = {p for v in op.inputs if (p := problem.producer[v]) >= 0}
        readers = {r for v in op.outputs for r in problem.consumers[v]} & forward
        if (
            not op.recomputable
            or op_kind(op) is not None
            or name in LOSSES
            or len(readers) > 1
            or (name in JOINS and len(producers) > 1)
        ):
            found.add(index)
    return found


def segments_between(problem: Problem, checkpoints: set[int]) -> dict[int, int]:
    """Op -> segment, for the forward ops that are no checkpoints: connected components, named by their first op."""
    segment: dict[int, int] = {}

    def root(op: int) -> int:
        while segment[op] != op:
            segment[op] = segment[segment[op]]
            op = segment[op]
        return op

    for index in problem.forward_ops:
        if index in checkpoints:
            continue
        segment[index] = index
        for value in problem.ops[index].inputs:
            if problem.producer[value] in segment:
                first, second = sorted((root(problem.producer[value]), root(index)))
                segment[second] = first
    return {op: root(op) for op in segment}


def memory_centric(problem: Problem, segment_of: dict[int, int], threshold: Threshold) -> set[int]:
    """The segments that cost-aware does not run speed-centric, since they would set a new peak."""
    ops, producer = problem.ops, problem.producer
    size = [0 if v.kind == "constant" else v.bytes for v in problem.values]

    def working_set(index: int, without: int | None = None) -> int:
        op = ops[index]
        reads = [v for v in dict.fromkeys(op.inputs) if segment_of.get(producer[v], -1) != without]
        return sum(size[v] for v in (*reads, *op.outputs)) + op.workspace_bytes

    forward_bytes: dict[int, int] = {}
    for op, segment in segment_of.items():
        forward_bytes[segment] = forward_bytes.get(segment, 0) + sum(size[v] for v in ops[op].outputs)
    if threshold == "code":
        largest = max(sum(size[v] for v in dict.fromkeys(ops[op].inputs)) for op in problem.backward_ops)
        return {segment for segment, held in forward_bytes.items() if held > largest}
    l_peak = max(working_set(op) for op in range(len(ops)))
    ends: dict[int, int] = {}  # segment -> the first backward op that reads of it
    for op in problem.backward_ops:
        for value in ops[op].inputs:
            if producer[value] in segment_of:
                ends.setdefault(segment_of[producer[value]], op)
    return {
        segment
        for segment, held in forward_bytes.items()
        if held + (working_set(ends[segment], segment) if segment in ends else 0) > l_peak
    }
