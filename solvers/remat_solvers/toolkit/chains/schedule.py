"""Schedules of a chain in three kinds of steps, and the op sequence that carries them out.

    Advance(first, end)   compute the stages first..end-1 from the state of `first`; of their values only the state of
                          `end` stays
    Save(stage)           compute a stage and keep what its backward reads (and with `onward` the state after it)
    Back(stage)           compute the backward of a stage; what was saved for it, and the state before it, are dropped

The first time, every stage is computed in full, in order. Later, only those ops are recomputed from which the values to
keep follow, back to values that are kept. A value that a step does not keep is recomputed when it is needed again. When
bytes are freed follows from the sequence (`schedule.plan_from_sequence`).

A stage may be saved with one of several options (`SaveOption`), which Save and Back name by their number. An option
keeps less than everything, and its backward recomputes the rest, from what was saved and the state before the stage.
Where no options are given, each stage has one, which keeps everything (`keep_everything`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.chains.chain import Chain


@dataclass(frozen=True, slots=True)
class Advance:
    """Compute the stages `first` to `end` (excluded), and keep the state of `end`. The state of `first` stays kept."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Save:
    """Compute a stage, and keep what its backward reads."""

    stage: int
    onward: bool = False  # keep the state after it as well: its backward does not come next
    alone: bool = False  # drop the state before it
    option: int = 0


@dataclass(frozen=True, slots=True)
class Back:
    """Compute the backward of a stage."""

    stage: int
    option: int = 0  # with which it was saved


ChainStep: TypeAlias = Advance | Save | Back
Part: TypeAlias = tuple[int, int, int]  # of a schedule: which stages, and with how much memory


@dataclass(frozen=True, slots=True)
class SaveOption:
    """The ops of a stage's forward, the values it keeps for its backward, and the ops of that backward."""

    forward: tuple[int, ...]  # its forward ops in order, perhaps with repeats
    saved: tuple[int, ...]  # droppable values that `backward` reads before it computes them, of the stage or its state
    backward: tuple[int, ...]  # its backward ops in order, among them forward ops that are recomputed


SaveOptions: TypeAlias = Sequence[Sequence[SaveOption]]  # per stage


def save_option(chain: Chain, forward: Sequence[int], backward: Sequence[int]) -> SaveOption:
    """The option with these sequences of ops."""
    saved = (v for v in read_before_computed(chain.problem, backward) if chain.droppable[v])
    return SaveOption(tuple(forward), tuple(sorted(saved)), tuple(backward))


def read_before_computed(problem: Problem, sequence: Sequence[int]) -> set[int]:
    """The values that `sequence` reads before it computes them."""
    computed: set[int] = set()
    read: set[int] = set()
    for op in sequence:
        read.update(v for v in problem.ops[op].inputs if v not in computed)
        computed.update(problem.ops[op].outputs)
    return read


def keep_everything(chain: Chain) -> SaveOptions:
    """Per stage, the one option that keeps everything that its backward reads."""
    return [[SaveOption(stage.ops, stage.saved, stage.backward)] for stage in chain.stages]


def forward_steps_of(steps: Iterable[ChainStep]) -> int:
    """Number of times a stage is computed forward: the cost that Gruslys et al. and Griewank count."""
    return sum(step.end - step.first if isinstance(step, Advance) else isinstance(step, Save) for step in steps)


def keep_nothing_steps(first: int, end: int) -> list[ChainStep]:
    """Forward and backward of the stages first..end-1, each recomputed from the state of `first`: the least memory."""
    steps: list[ChainStep] = []
    for stage in range(end - 1, first - 1, -1):
        steps += [Advance(first, stage)] if stage > first else []
        steps += [Save(stage), Back(stage)]
    return steps


def unfold(part: Part, split: Callable[[Part], Sequence[Part | ChainStep]]) -> list[ChainStep]:
    """The steps of a schedule that is given by recursion: `split` turns a part into steps and smaller parts, in order.

    A stack takes the place of the recursion, which may be as deep as the chain is long.
    """
    steps: list[ChainStep] = []
    stack: list[Part | ChainStep] = [part]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            stack.extend(reversed(split(item)))
        else:
            steps.append(item)
    return steps


def sequence_of(chain: Chain, steps: Iterable[ChainStep], options: SaveOptions | None = None) -> list[int]:
    """The ops of one training step in execution order, under the schedule `steps`."""
    execution = _Execution(chain, options or keep_everything(chain))
    for step in steps:
        if isinstance(step, Advance):
            execution.advance(step)
        elif isinstance(step, Save):
            execution.save(step)
        else:
            execution.back(step)
    return execution.sequence


def needed_ops(chain: Chain, sequence: Sequence[int], targets: Iterable[int], kept: Sequence[int]) -> list[int]:
    """Those of the forward ops `sequence` from which `targets` follow, back to values that cannot be dropped or are
    `kept` (per value, true or > 0)."""
    ops, drop = chain.problem.ops, chain.droppable
    needed = {v for v in targets if drop[v] and not kept[v]}
    backwards: list[int] = []
    for op in reversed(sequence):
        if not needed.isdisjoint(ops[op].outputs):
            needed.difference_update(ops[op].outputs)
            needed.update(v for v in ops[op].inputs if drop[v] and not kept[v])
            backwards.append(op)
    return backwards[::-1]


class _Execution:
    """The values that are kept form a stack of frames, since a state or saved values stay until the end of their
    backward."""

    def __init__(self, chain: Chain, options: SaveOptions) -> None:
        self.chain = chain
        self.options = options
        self.sequence: list[int] = []
        self.started = 0  # stages that were computed
        self.kept = [0] * len(chain.droppable)  # per value, the number of frames that keep it
        self.frames: list[tuple[str, int, tuple[int, ...]]] = []
        self._push("state", 0, chain.state(0))

    def advance(self, step: Advance) -> None:
        ops = [op for stage in self.chain.stages[step.first : step.end] for op in stage.ops]
        self._forward(step.first, step.end, ops, self.chain.state(step.end))
        self._push("state", step.end, self.chain.state(step.end))

    def save(self, step: Save) -> None:
        option = self.options[step.stage][step.option]
        after = self.chain.state(step.stage + 1) if step.onward else ()
        self._forward(step.stage, step.stage + 1, option.forward, (*option.saved, *after))
        if step.alone:
            self._pop("state", step.stage)
        self._push("saved", step.stage, option.saved)
        if step.onward:
            self._push("state", step.stage + 1, after)

    def back(self, step: Back) -> None:
        self.sequence.extend(self.options[step.stage][step.option].backward)
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
