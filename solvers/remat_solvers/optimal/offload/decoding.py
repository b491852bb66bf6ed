"""From a point of the program with copies to a choice for the search: when ops run again, and which values are away."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from remat_solvers.optimal.offload.annealing import Trip
from remat_solvers.optimal.offload.program import MovingProgram
from remat_solvers.schedule import tangents_first
from remat_solvers.toolkit.arrays import Floats, Mask

__all__ = ["expanded"]

HALF = 0.5


def expanded(program: MovingProgram, point: Floats) -> tuple[list[int], list[Trip]]:
    """The op sequence, and a trip for every absence that covers a moment at which the point has its value away.

    Stage by stage, first runs in the problem's order; what is not there and does not arrive runs again where needed.
    """
    stays = program.value(program.S, point) > HALF
    arrives = program.value(program.P, point) > HALF
    stays |= ~np.array(program.kept)[:, None]  # constants and small values
    sequence = list(tangents_first(program.problem, _sequence(program, stays, arrives)))
    return sequence, _trips(program, stays, sequence)


def _sequence(program: MovingProgram, stays: Mask, arrives: Mask) -> list[int]:
    problem, at = program.problem, program.windows.at
    sequence: list[int] = []
    done = [False] * len(problem.ops)
    there = [producer < 0 for producer in problem.producer]

    def missing(values: Iterable[int], stage: int) -> list[int]:
        again = []
        for value in values:
            producer = problem.producer[value]
            if not there[value]:
                if done[producer] and (arrives[value, stage] or not problem.ops[producer].recomputable):
                    there[value] = True
                else:
                    again.append(producer)
        return again

    def perform(ops: Iterable[int], stage: int) -> None:
        waiting = list(ops)[::-1]
        while waiting:
            before = missing(problem.ops[waiting[-1]].inputs, stage)
            waiting += before
            if not before:
                op = waiting.pop()
                sequence.append(op)
                done[op] = True
                for value in problem.ops[op].outputs:
                    there[value] = True

    first = 0
    for stage in range(program.stages):
        last = at[stage] if stage < len(at) else len(problem.ops) - 1
        perform(range(first, last + 1), stage)
        first = last + 1
        kept = np.flatnonzero(stays[:, stage]).tolist()
        for value in kept:
            if problem.producer[value] >= 0 and done[problem.producer[value]]:
                perform(missing([value], stage), stage)
        there = [
            producer < 0 or (bool(stay) and done[producer])
            for producer, stay in zip(problem.producer, stays[:, stage], strict=True)
        ]
    return sequence


def _trips(program: MovingProgram, stays: Mask, sequence: list[int]) -> list[Trip]:
    problem = program.problem
    place: dict[int, int] = {}
    for position, op in enumerate(sequence):
        place.setdefault(op, position)
    moments = [place[op] for op in program.windows.at]
    last = [0] * len(problem.values)
    trips = []

    def read(values: Iterable[int], position: int) -> None:
        for value in values:
            away = (k for k, moment in enumerate(moments) if last[value] < moment < position and not stays[value, k])
            if problem.producer[value] >= 0 and next(away, None) is not None:
                trips.append(Trip(value, position))
            last[value] = position

    for position, op in enumerate(sequence):
        read(dict.fromkeys(problem.ops[op].inputs), position)
        for value in problem.ops[op].outputs:
            last[value] = position
    read(program.results, len(sequence))
    return trips
