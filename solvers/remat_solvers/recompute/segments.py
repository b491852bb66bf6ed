"""Checkpoints whole blocks, as torch.utils.checkpoint around each does: a block's input is kept, the rest recomputed.

The inner values of a block are dropped after the forward pass. The values that it reads from outside, and those of its
own that other ops read, are kept. When backward first reads an inner value, the block is recomputed from these as far
as backward needs it (early stop), and what backward reads of it stays until it is read. Values outside of all blocks
are kept. So every block costs one more forward, the last one too, though backward needs it at once.

Blocks come from the module paths of the ops: the outermost numbered module (`h.0` of `h.0.mlp.c_fc`, `layer1.0`), which
is a member of the nn.Sequential or nn.ModuleList that people wrap; `level="inner"` takes the innermost. Where fewer
than two ops' paths have a number, blocks lie between the articulation points of the forward graph
(`toolkit/graphs/articulation.py`); with fewer than two of those blocks the method does not apply.

every: wrap every n-th block only, from the first on (torchtitan's selective checkpointing by layer). None tries 1 to 4,
and the fastest plan within the budget is returned.

Unlike with torch, a buffer update inside a block is not repeated, and ops of a block that backward does not need are
not recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.articulation import articulation_positions
from remat_solvers.toolkit.graphs.dropped_values import droppable
from remat_solvers.toolkit.sequences.recompute_dropped import recompute_dropped
from remat_solvers.toolkit.trials import NotApplicableError, TrialMethod, Trials

Level: TypeAlias = Literal["outer", "inner"]

EVERY = (1, 2, 3, 4)


@dataclass(frozen=True)
class Segments(TrialMethod):
    """torch.utils.checkpoint around each block."""

    level: Level = "outer"  # which of nested numbered modules is the block
    every: int | None = None  # wrap every n-th block; None: 1 to 4

    name: ClassVar[str] = "segments"
    version: ClassVar[str] = "1"

    def try_plans(self, trials: Trials) -> None:
        """Try each `every`."""
        problem = trials.problem
        block_of = blocks(problem, self.level)
        if len(set(block_of.values())) < 2:
            raise NotApplicableError(
                "segments: neither numbered modules nor articulation points divide the forward pass into blocks"
            )
        for every in EVERY if self.every is None else (self.every,):
            if trials.expired:
                break
            trials.fits(wrapped(problem, block_of, every), f"every {every}")


def wrapped(problem: Problem, block_of: Mapping[int, int], every: int) -> list[int]:
    """The ops in the order in which they are computed, every `every`-th block of `block_of` (op -> block) wrapped."""
    inside = {op: block for op, block in block_of.items() if block % every == 0}
    dropped = [
        may_drop
        and (block := inside.get(problem.producer[value])) is not None
        and all(inside.get(r) == block for r in problem.consumers[value] if problem.ops[r].phase == "forward")
        for value, may_drop in enumerate(droppable(problem))
    ]
    return recompute_dropped(problem, dropped, inside)


def blocks(problem: Problem, level: Level = "outer") -> dict[int, int]:
    """The block of each forward op that is in one; blocks are numbered from 0 in the order of the forward pass."""
    names = {op: name for op in problem.forward_ops if (name := _numbered(problem.ops[op].module, level))}
    if len(set(names.values())) >= 2:
        order = {name: number for number, name in enumerate(dict.fromkeys(names.values()))}
        return {op: order[name] for op, name in names.items()}
    ends = set(articulation_positions(problem))
    number, block_of = 0, {}
    for position, op in enumerate(problem.forward_ops):
        block_of[op] = number
        number += position in ends
    return block_of


def _numbered(module: str, level: Level) -> str:
    """The module path up to its outermost or innermost number; empty where it has none."""
    parts = module.split(".")
    numbered = [k for k, part in enumerate(parts) if part.isdecimal()]
    if not numbered:
        return ""
    return ".".join(parts[: numbered[0 if level == "outer" else -1] + 1])
