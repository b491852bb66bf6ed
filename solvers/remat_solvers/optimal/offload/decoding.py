"""Decodes a point of the joint program into a choice for the search: the op sequence and the swaps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from remat_solvers.optimal.offload.annealing import SwapChoice
from remat_solvers.optimal.offload.program import JointProgram
from remat_solvers.schedule import tangents_first
from remat_solvers.toolkit.arrays import Floats, Mask

HALF = 0.5


def decode(program: JointProgram, point: Floats) -> tuple[list[int], list[SwapChoice]]:
    """The op sequence, and a swap for every idle interval that covers a moment at which the value is off the device.

    Stage by stage, first computations are in the problem's order. A value that is neither resident nor fetched in the
    stage is recomputed where it is needed.
    """
    stays = program.value(program.S, point) > HALF
    arrives = program.value(program.P, point) > HALF
    stays |= ~np.array(program.counted)[:, None]  # constants and small values
    sequence = list(tangents_first(program.problem, _sequence(program, stays, arrives)))
    return sequence, _swaps(program, stays, sequence)


def _sequence(program: JointProgram, stays: Mask, arrives: Mask) -> list[int]:
    problem, anchors = program.problem, program.ranges.anchors
    sequence: list[int] = []
    computed = [False] * len(problem.ops)
    resident = [producer < 0 for producer in problem.producer]

    def missing_producers(values: Iterable[int], stage: int) -> list[int]:
        producers = []
        for value in values:
            producer = problem.producer[value]
            if not resident[value]:
                if computed[producer] and (arrives[value, stage] or not problem.ops[producer].recomputable):
                    resident[value] = True
                else:
                    producers.append(producer)
        return producers

    def compute(ops: Iterable[int], stage: int) -> None:
        stack = list(ops)[::-1]
        while stack:
            missing = missing_producers(problem.ops[stack[-1]].inputs, stage)
            stack += missing
            if not missing:
                op = stack.pop()
                sequence.append(op)
                computed[op] = True
                for value in problem.ops[op].outputs:
                    resident[value] = True

    first = 0
    for stage in range(program.stages):
        last = anchors[stage] if stage < len(anchors) else len(problem.ops) - 1
        compute(range(first, last + 1), stage)
        first = last + 1
        for value in np.flatnonzero(stays[:, stage]).tolist():
            if problem.producer[value] >= 0 and computed[problem.producer[value]]:
                compute(missing_producers([value], stage), stage)
        resident = [
            producer < 0 or (bool(stay) and computed[producer])
            for producer, stay in zip(problem.producer, stays[:, stage], strict=True)
        ]
    return sequence


def _swaps(program: JointProgram, stays: Mask, sequence: list[int]) -> list[SwapChoice]:
    problem = program.problem
    first_position: dict[int, int] = {}
    for position, op in enumerate(sequence):
        first_position.setdefault(op, position)
    moments = [first_position[op] for op in program.ranges.anchors]
    last_use = [0] * len(problem.values)
    swaps = []

    def read(values: Iterable[int], position: int) -> None:
        for value in values:
            between = (k for k, moment in enumerate(moments) if last_use[value] < moment < position)
            if problem.producer[value] >= 0 and any(not stays[value, k] for k in between):
                swaps.append(SwapChoice(value, position))
            last_use[value] = position

    for position, op in enumerate(sequence):
        read(dict.fromkeys(problem.ops[op].inputs), position)
        for value in problem.ops[op].outputs:
            last_use[value] = position
    read(program.results, len(sequence))
    return swaps
