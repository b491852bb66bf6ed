"""Interval cuts: what stays true when several stages are looked at as one.

For an interval J = a..b of stages let R[v, J] be 1 where op v runs at least once in J:

    R[v, k] <= R[v, J] <= R[v, a] + ... + R[v, b]    for k in J
    S[d, b] <= S[d, a-1] + R[p(d), J]
    R[v, J] <= S[d, a-1] + R[p(d), J]                for every value d that v reads

Rows (1) and (2) of stages.py hold for J as for a stage, by the same argument: J is a stage of the program with fewer
anchors. So R[v, J] = max R[v, k] is feasible at every plan's point, and R[v, J] may be continuous. Whole points satisfy
all this already; fractional ones do not: "half a recompute in each of two stages" for what J needs once is cut off.
With all intervals, a program is at least as strong, as an LP too, as that of any subset of its anchors.

An interval's rows are added only where the LP's point breaks them. Given a point, the least R[v, J] that the last two
lines allow come from one pass over the ops from the last to the first; the interval is broken where one of them is
larger than the sum of its R.
"""

from __future__ import annotations

import numpy as np

from remat_solvers.optimal.program.stages import ONE, ZERO, Interval, Program
from remat_solvers.toolkit.arrays import Floats, Ints

__all__ = ["add_interval", "broken_by", "values_at"]


def add_interval(program: Program, first: int, last: int) -> None:
    """Columns and rows of the interval of stages `first` to `last`."""
    runs = program.run[first : last + 1]
    low, high = program.stages.low, program.stages.high
    inside = (runs == ONE).any(axis=0) | ((first <= low) & (high <= last))
    many = (runs >= 0).sum(axis=0)
    run = np.where(inside, ONE, np.where(many == 1, runs.max(axis=0), ZERO))
    ops = np.flatnonzero(~inside & (many > 1))
    columns = run[ops] = program.new_columns(len(ops))
    begin = program.rows.count
    program.rows.add([(stage[ops], 1.0) for stage in runs] + [(columns, -1.0)], 0.0, np.inf)
    for stage in runs:
        some = np.flatnonzero(stage[ops] >= 0)
        program.rows.add([(columns[some], 1.0), (stage[ops[some]], -1.0)], 0.0, np.inf)
    before = program.stay[first - 1] if first else np.full(len(program.graph.bytes), ZERO)
    program.window(before, program.stay[last], run)
    program.intervals.append(Interval(first, last, ops, columns, (begin, program.rows.count)))


def broken_by(program: Program, point: Floats, first: int, last: int) -> float:
    """How much a point breaks the rows of an interval, in time units: sum of time x (least R[v, J] - sum of R)."""
    graph = program.graph
    runs = values_at(point, program.run[first : last + 1])
    count = len(graph.bytes)
    before = values_at(point, program.stay[first - 1]) if first else np.zeros(count)
    after = values_at(point, program.stay[last])
    least = runs.max(axis=0)
    made = np.flatnonzero(graph.made)
    np.maximum.at(least, graph.producer[made], (after - before)[made])
    demand = least.tolist()
    kept, producer, inputs = before.tolist(), graph.producer.tolist(), graph.inputs
    for op in range(len(demand) - 1, -1, -1):
        here = demand[op]
        if here > 0:
            for value in inputs[op]:
                missing = here - kept[value]
                if missing > demand[producer[value]]:
                    demand[producer[value]] = missing
    over = np.array(demand) - runs.sum(axis=0)
    return float((np.maximum(over, 0.0) * graph.time_ns).sum() / program.time_unit_ns)


def values_at(point: Floats, columns: Ints) -> Floats:
    """The values of columns, those that are fixed included."""
    values: Floats = (columns == ONE).astype(np.float64)
    there = columns >= 0
    values[there] = point[columns[there]]
    return values
