"""`torch-budget`: what torch's own partitioner chooses at an `activation_memory_budget`, as a plan.

torch.compile's partitioner (torch._functorch.partitioners, min_cut_rematerialization_partition) saves some values of
the forward and recomputes the rest in the backward, once each, just before the first reader. Its knob, from 0 to 1,
caps the bytes saved, not the peak; so every setting of a grid is replayed here, and the fastest whose peak fits the
budget is taken. Only the choice of what to save and when to recompute is torch's: kernels are not fused, and random
ops are replayed exactly, which torch's own runtime does not do below a budget of 1 (pytorch#190758).

It needs the model's graph and so answers for a MODEL only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import min_cut_rematerialization_partition

from remat.capture.exported import Exported
from remat.capture.trace import Capture
from remat_solvers.clock import Stopwatch
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate

__all__ = ["TorchBudget"]

SETTINGS = tuple(i / 10 for i in range(10, -1, -1))


@dataclass(frozen=True)
class TorchBudget:
    """The partitioner's plans for one export. A solver like those of the registry, but bound to its model."""

    exported: Exported

    name: ClassVar[str] = "torch-budget"
    version: ClassVar[str] = torch.__version__

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest of the settings whose peak is within the budget."""
        watch = Stopwatch(limits)
        best: tuple[int, int, Plan] | None = None
        smallest: int | None = None
        stopped = Stopped.COMPLETE
        for setting, plan in self.plans():
            timeline = simulate(problem, plan)
            smallest = timeline.peak_bytes if smallest is None else min(smallest, timeline.peak_bytes)
            candidate = (timeline.time_ns, timeline.peak_bytes, plan)
            if timeline.peak_bytes <= budget_bytes and (best is None or candidate[:2] < best[:2]):
                best = candidate
                if on_progress is not None:
                    on_progress(Progress(watch.seconds, candidate[0], candidate[1], None, f"budget {setting}"))
            if watch.expired:
                stopped = Stopped.TIME
                break
        if best is None:
            return Outcome(status=Status.NOT_FOUND, smallest_peak_bytes=smallest, stopped=stopped)
        return Outcome(status=Status.FEASIBLE, plan=best[2], smallest_peak_bytes=smallest, stopped=stopped)

    def plans(self) -> Iterator[tuple[float, Plan]]:
        """A plan per setting of the knob, from keep-all to recompute-all."""
        captured = self.exported.capture_again()
        for setting in SETTINGS:
            yield setting, plan_from_sequence(self.exported.problem, self._sequence(captured, setting))

    def _sequence(self, captured: Capture, setting: float) -> list[int]:
        """Forward ops in order, then what the partitioner's backward runs, in its order."""
        problem = self.exported.problem
        op_of = {node.name: i for i, node in enumerate(self.exported.lowered.op_nodes) if node is not None}
        _, backward = _partition(captured, setting)
        ran = [op_of[node.name] for node in backward.graph.nodes if node.name in op_of]
        again = [op for op in ran if problem.ops[op].phase == "backward" or problem.ops[op].recomputable]
        return _complete(problem, again)


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


def _complete(problem: Problem, ran: list[int]) -> list[int]:
    """The sequence with every op the partitioner does not know (updates, clones, the tangents) at its place."""
    known = set(ran)
    backward = list(problem.backward_ops)
    sequence = list(problem.forward_ops)
    missing = [op for op in backward if op not in known]
    for op in ran:
        while missing and missing[0] < op and problem.ops[op].phase == "backward":
            sequence.append(missing.pop(0))
        sequence.append(op)
    return sequence + missing
