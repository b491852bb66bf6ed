"""`torch-budget` turns the choices of torch's own partitioner at an `activation_memory_budget` into a plan.

torch.compile's partitioner (torch._functorch.partitioners, min_cut_rematerialization_partition) saves some values of
the forward and recomputes the others in the backward, once each, just before the first reader. Its setting, from 0 to
1, limits the bytes saved, not the peak. So a grid of settings is replayed here, and the fastest plan whose peak fits
the budget is taken. Only the choice of which values to save and when to recompute the others is torch's: kernels are
not fused, and random ops are replayed exactly, which torch's own runtime does not do below a budget of 1
(pytorch#190758).

The solver needs the graph of the model, so it takes a MODEL only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import networkx
import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import min_cut_rematerialization_partition

from remat.capture.exported import Exported
from remat.capture.trace import Capture
from remat.model_solvers.deadline import DeadlineError, deadline
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome, Stopped
from remat_solvers.toolkit.trials import Trials

STEPS = 10  # the grid: 0, 1/10, ... 1


class TorchBudget:
    """Solves with the plans of torch's partitioner. A solver like those of the registry, but bound to one export."""

    name: ClassVar[str] = "torch-budget"
    version: ClassVar[str] = str(torch.__version__)
    in_process: ClassVar[bool] = True  # a traced model cannot be sent to another process

    def __init__(self, exported: Exported) -> None:
        self.exported = exported

    @cached_property
    def captured(self) -> Capture:
        """The graph that the partitioner is given copies of: traced once for all budgets."""
        return self.exported.capture_again()

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan of all settings whose peak is within the budget.

        The time limit interrupts the partitioner, but not the trace before it, which takes as long as the export did:
        the trace runs through autograd's engine, where an interrupt is reported as an error of the model.
        """
        trials = Trials(problem, budget_bytes, limits, on_progress)
        with trials:
            captured = self.captured
            try:
                with deadline(trials.watch.remaining, (networkx, torch.fx, torch._functorch)):
                    self._try_all(captured, trials)
            except DeadlineError:
                trials.stopped = Stopped.TIME
        return trials.outcome()

    def _try_all(self, captured: Capture, trials: Trials) -> None:
        for setting, sequence in self.sequences(captured):
            if not trials.cannot_improve(sequence):
                trials.fits(sequence, f"budget {setting}")
            if trials.expired:
                return

    def sequences(self, captured: Capture) -> Iterator[tuple[float, list[int]]]:
        """The settings with the sequence of ops of each, the extremes first.

        If two settings have the same sequence, so have all settings between them; those are left out.
        """
        sequences: dict[int, list[int]] = {}
        for step in (STEPS, 0):
            sequences[step] = self.sequence_at(captured, step / STEPS)
            yield step / STEPS, sequences[step]
        ranges = deque([(0, STEPS)])
        while ranges:
            low, high = ranges.popleft()
            if high - low > 1 and sequences[low] != sequences[high]:
                middle = (low + high) // 2
                sequences[middle] = self.sequence_at(captured, middle / STEPS)
                yield middle / STEPS, sequences[middle]
                ranges += [(low, middle), (middle, high)]

    def sequence_at(self, captured: Capture, setting: float) -> list[int]:
        """The forward ops in order, then the ops of the partitioner's backward, in its order."""
        problem = self.exported.problem
        op_of = {node.name: i for i, node in enumerate(self.exported.lowered.op_nodes) if node is not None}
        _, backward = _partition(captured, setting)
        ops = [op_of[node.name] for node in backward.graph.nodes if node.name in op_of]
        allowed = [op for op in ops if problem.ops[op].phase == "backward" or problem.ops[op].recomputable]
        return _complete(problem, allowed)


def _partition(captured: Capture, setting: float) -> tuple[fx.GraphModule, fx.GraphModule]:
    graph = fx.Graph()
    copied: Any = graph.graph_copy(captured.graph_module.graph, {})
    end = graph.output(copied)
    original = next(iter(reversed(captured.graph_module.graph.nodes)))
    end.meta.update(original.meta)
    module = fx.GraphModule(captured.graph_module, graph)
    outputs = captured.metadata.num_mutated_inp_runtime_indices + captured.metadata.num_outputs
    outputs += captured.metadata.num_intermediate_bases
    with functorch_config.patch(activation_memory_budget=setting, cse=False):
        return min_cut_rematerialization_partition(module, None, num_fwd_outputs=outputs)


def _complete(problem: Problem, partitioned: list[int]) -> list[int]:
    """The sequence with the ops that the partitioner does not know (updates, clones, tangents) at their place."""
    known = set(partitioned)
    backward = list(problem.backward_ops)
    sequence = list(problem.forward_ops)
    missing = [op for op in backward if op not in known]
    for op in partitioned:
        while missing and missing[0] < op and problem.ops[op].phase == "backward":
            sequence.append(missing.pop(0))
        sequence.append(op)
    return sequence + missing
