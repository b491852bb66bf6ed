"""Selective activation checkpointing: keep the outputs of expensive ops, recompute the rest just in time.

People write this rule by hand with torch.utils.checkpoint's `create_selective_checkpoint_contexts`, and torchtitan has
it as a policy: outputs of matrix products, convolutions and attention are kept. Everything else (norms, activations,
dropout, elementwise ops) is dropped and recomputed when backward first reads it, each op once. The policy per op in
torchtitan keeps only every second matrix product, which trades more time for more memory.

keep   the kinds that are kept, out of matmul, conv, attention and rnn
every  1: all matrix products are kept; 2: every second one, in the order of the forward pass; and so on

None tries the published forms, every 1 and 2 of all kinds, and the fastest plan within the budget is returned. The kind
of an op follows from its target (`toolkit/graphs/op_kinds.py`). A problem without an op of these kinds is not treated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.dropped_values import droppable
from remat_solvers.toolkit.graphs.op_kinds import OP_KINDS, OpKind, op_kind
from remat_solvers.toolkit.sequences.recompute_dropped import recompute_dropped
from remat_solvers.toolkit.trials import NotApplicableError, TrialMethod, Trials

EVERY = (1, 2)  # published: keep all, and torchtitan's every second


@dataclass(frozen=True)
class Selective(TrialMethod):
    """Keep matrix products, convolutions and attention; recompute the rest."""

    keep: tuple[OpKind, ...] = OP_KINDS
    every: int | None = None  # keep every n-th matrix product; None: 1 and 2

    name: ClassVar[str] = "selective"
    version: ClassVar[str] = "1"

    def try_plans(self, trials: Trials) -> None:
        """Try each `every`."""
        problem = trials.problem
        if not any(op_kind(problem.ops[op]) in self.keep for op in problem.forward_ops):
            raise NotApplicableError(f"selective: no forward op is one of {', '.join(self.keep)}")
        for every in EVERY if self.every is None else (self.every,):
            if trials.expired:
                break
            trials.fits(self.sequence(problem, every), f"every {every}")

    def sequence(self, problem: Problem, every: int) -> list[int]:
        """The ops in the order of computation; every `every`-th matrix product and all other kinds are kept."""
        dropped = droppable(problem)
        products = 0
        for op in problem.forward_ops:
            kind = op_kind(problem.ops[op])
            if kind in self.keep:
                if kind != "matmul" or products % every == 0:
                    for value in problem.ops[op].outputs:
                        dropped[value] = False
                products += kind == "matmul"
        return recompute_dropped(problem, dropped, {})
