"""Schedules of a chain: three small steps, and the op sequence that carries them out.

    Advance(first, end)   run the stages first..end-1 from the state of `first`; of what they make only the state of
                          `end` stays
    Save(stage)           run a stage and keep what its backward reads (and with `onward` the state after it)
    Back(stage)           run the backward of a stage; what was saved for it, and the state before it, are done with

Every stage is run for the first time in full, in order. Run again, only those ops run from which what shall stay
follows, back to what is kept. Whatever a step leaves out of what it keeps is made again when it is wanted again; when
bytes are freed follows from the sequence (`schedule.plan_from_sequence`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from remat_solvers.recompute.chain import Chain

__all__ = ["Advance", "Back", "Save", "Step", "forward_steps_of", "least_memory", "needed_ops", "sequence_of"]


@dataclass(frozen=True, slots=True)
class Advance:
    """Run stages `first` to `end` (excluded); keep the state of `end`. The state of `first` is kept and stays."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Save:
    """Run a stage; keep what its backward reads."""

    stage: int
    onward: bool = False  # keep the state after it as well: its backward does not come next
    alone: bool = False  # give up the state before it


@dataclass(frozen=True, slots=True)
class Back:
    """Run the backward ops of a stage."""

    stage: int


Step: TypeAlias = Advance | Save | Back


def forward_steps_of(steps: Iterable[Step]) -> int:
    """Stages run forward: the cost that Gruslys et al. and Griewank count."""
    return sum(step.end - step.first if isinstance(step, Advance) else isinstance(step, Save) for step in steps)


def least_memory(first: int, end: int) -> list[Step]:
    """Forward and backward of stages first..end-1, each from the state of `first` again: nothing else is kept."""
    steps: list[Step] = []
    for stage in range(end - 1, first - 1, -1):
        steps += [Advance(first, stage)] if stage > first else []
        steps += [Save(stage), Back(stage)]
    return steps


def sequence_of(chain: Chain, steps: Iterable[Step]) -> list[int]:
    """The ops of one training step, in execution order."""
    run = _Run(chain)
    for step in steps:
        if isinstance(step, Advance):
            run.advance(step)
        elif isinstance(step, Save):
            run.save(step)
        else:
            run.back(step)
    return run.sequence


def needed_ops(chain: Chain, targets: Iterable[int], kept: list[int]) -> list[int]:
    """The forward ops from which `targets` follow, back to values that stay anyway or are `kept` (count > 0)."""
    problem, drop = chain.problem, chain.droppable
    stack = [v for v in targets if drop[v] and not kept[v]]
    needed: set[int] = set()
    while stack:
        op = problem.producer[stack.pop()]
        if op not in needed:
            needed.add(op)
            stack.extend(v for v in problem.ops[op].inputs if drop[v] and not kept[v])
    return sorted(needed)


class _Run:
    """What is kept is a stack of frames, since a state or saved values stay until their backward is through."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.sequence: list[int] = []
        self.started = 0  # stages that have run
        self.kept = [0] * len(chain.droppable)  # per value, the number of frames that keep it
        self.frames: list[tuple[str, int, tuple[int, ...]]] = []
        self._push("state", 0, chain.state(0))

    def advance(self, step: Advance) -> None:
        self._forward(step.first, step.end, self.chain.state(step.end))
        self._push("state", step.end, self.chain.state(step.end))

    def save(self, step: Save) -> None:
        stage = self.chain.stages[step.stage]
        after = self.chain.state(step.stage + 1) if step.onward else ()
        self._forward(step.stage, step.stage + 1, (*stage.saved, *after))
        if step.alone:
            self._pop("state", step.stage)
        self._push("saved", step.stage, stage.saved)
        if step.onward:
            self._push("state", step.stage + 1, after)

    def back(self, step: Back) -> None:
        self.sequence.extend(self.chain.stages[step.stage].backward)
        self._pop("saved", step.stage)
        self._pop("state", step.stage)

    def _forward(self, first: int, end: int, targets: Iterable[int]) -> None:
        if first == self.started:
            for stage in self.chain.stages[first:end]:
                self.sequence.extend(stage.ops)
            self.started = end
        else:
            self.sequence.extend(needed_ops(self.chain, targets, self.kept))

    def _push(self, kind: str, stage: int, values: tuple[int, ...]) -> None:
        self.frames.append((kind, stage, values))
        for value in values:
            self.kept[value] += 1

    def _pop(self, kind: str, stage: int) -> None:
        if self.frames and self.frames[-1][:2] == (kind, stage):
            for value in self.frames.pop()[2]:
                self.kept[value] -= 1
