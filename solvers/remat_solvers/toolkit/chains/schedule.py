"""Schedules of a chain: three small steps, and the op sequence that carries them out.

    Advance(first, end)   run the stages first..end-1 from the state of `first`; of what they make only the state of
                          `end` stays
    Save(stage)           run a stage and keep what its backward reads (and with `onward` the state after it)
    Back(stage)           run the backward of a stage; what was saved for it, and the state before it, are done with

Every stage is run for the first time in full, in order. Run again, only those ops run from which what shall stay
follows, back to what is kept. Whatever a step leaves out of what it keeps is made again when it is wanted again; when
bytes are freed follows from the sequence (`schedule.plan_from_sequence`).

A stage may be saved in one of several ways (`Way`), which Save and Back name by their number. A way keeps less than
everything, and its backward runs the rest again, from what was saved and the state before the stage. Where no ways are
given there is one, `plain_way`: keep everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from remat_solvers.toolkit.chains.chain import Chain

__all__ = [
    "Advance",
    "Back",
    "Save",
    "Step",
    "Way",
    "Ways",
    "forward_steps_of",
    "least_memory",
    "needed_ops",
    "plain_ways",
    "sequence_of",
    "way_of",
]


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
    way: int = 0


@dataclass(frozen=True, slots=True)
class Back:
    """Run the backward ops of a stage."""

    stage: int
    way: int = 0  # in which it was saved


Step: TypeAlias = Advance | Save | Back


@dataclass(frozen=True, slots=True)
class Way:
    """How to run a stage forward, keeping what its backward shall find, and how to run that backward."""

    forward: tuple[int, ...]  # its forward ops in order, perhaps with repeats
    saved: tuple[int, ...]  # droppable values that `backward` reads before it makes them, of the stage or its state
    backward: tuple[int, ...]  # its backward ops in order, among them forward ops that run again


Ways: TypeAlias = Sequence[Sequence[Way]]  # per stage


def way_of(chain: Chain, forward: Sequence[int], backward: Sequence[int]) -> Way:
    """The way with these sequences of ops."""
    made: set[int] = set()
    saved: set[int] = set()
    for op in backward:
        saved.update(v for v in chain.problem.ops[op].inputs if chain.droppable[v] and v not in made)
        made.update(chain.problem.ops[op].outputs)
    return Way(tuple(forward), tuple(sorted(saved)), tuple(backward))


def plain_ways(chain: Chain) -> Ways:
    """Per stage the one way that keeps everything."""
    return [[Way(stage.ops, stage.saved, stage.backward)] for stage in chain.stages]


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


def sequence_of(chain: Chain, steps: Iterable[Step], ways: Ways | None = None) -> list[int]:
    """The ops of one training step, in execution order."""
    run = _Run(chain, ways or plain_ways(chain))
    for step in steps:
        if isinstance(step, Advance):
            run.advance(step)
        elif isinstance(step, Save):
            run.save(step)
        else:
            run.back(step)
    return run.sequence


def needed_ops(chain: Chain, sequence: Sequence[int], targets: Iterable[int], kept: Sequence[int]) -> list[int]:
    """Those of the forward ops `sequence` from which `targets` follow, back to what stays anyway or is `kept` (> 0)."""
    ops, drop = chain.problem.ops, chain.droppable
    needed = {v for v in targets if drop[v] and not kept[v]}
    run: list[int] = []
    for op in reversed(sequence):
        if not needed.isdisjoint(ops[op].outputs):
            needed.difference_update(ops[op].outputs)
            needed.update(v for v in ops[op].inputs if drop[v] and not kept[v])
            run.append(op)
    return run[::-1]


class _Run:
    """What is kept is a stack of frames, since a state or saved values stay until their backward is through."""

    def __init__(self, chain: Chain, ways: Ways) -> None:
        self.chain = chain
        self.ways = ways
        self.sequence: list[int] = []
        self.started = 0  # stages that have run
        self.kept = [0] * len(chain.droppable)  # per value, the number of frames that keep it
        self.frames: list[tuple[str, int, tuple[int, ...]]] = []
        self._push("state", 0, chain.state(0))

    def advance(self, step: Advance) -> None:
        ops = [op for stage in self.chain.stages[step.first : step.end] for op in stage.ops]
        self._forward(step.first, step.end, ops, self.chain.state(step.end))
        self._push("state", step.end, self.chain.state(step.end))

    def save(self, step: Save) -> None:
        way = self.ways[step.stage][step.way]
        after = self.chain.state(step.stage + 1) if step.onward else ()
        self._forward(step.stage, step.stage + 1, way.forward, (*way.saved, *after))
        if step.alone:
            self._pop("state", step.stage)
        self._push("saved", step.stage, way.saved)
        if step.onward:
            self._push("state", step.stage + 1, after)

    def back(self, step: Back) -> None:
        self.sequence.extend(self.ways[step.stage][step.way].backward)
        self._pop("saved", step.stage)
        self._pop("state", step.stage)

    def _forward(self, first: int, end: int, ops: Sequence[int], targets: Iterable[int]) -> None:
        if first == self.started:
            self.sequence.extend(ops)
            self.started = end
        else:
            self.sequence.extend(needed_ops(self.chain, ops, targets, self.kept))

    def _push(self, kind: str, stage: int, values: tuple[int, ...]) -> None:
        self.frames.append((kind, stage, values))
        for value in values:
            self.kept[value] += 1

    def _pop(self, kind: str, stage: int) -> None:
        if self.frames and self.frames[-1][:2] == (kind, stage):
            for value in self.frames.pop()[2]:
                self.kept[value] -= 1
