"""Strengthens the program with interval cuts: rows that hold when several stages are taken as one.

For an interval J = a..b of stages let R[v, J] be 1 where op v is computed at least once in J:

    R[v, k] <= R[v, J] <= R[v, a] + ... + R[v, b]    for k in J
    S[d, b] <= S[d, a-1] + R[p(d), J]
    R[v, J] <= S[d, a-1] + R[p(d), J]                for every value d that v reads

Rows (1) and (2) of program.py hold for J as for a stage, by the same argument: J is a stage of the program with fewer
anchors. So R[v, J] = max R[v, k] is feasible at every plan's point, and R[v, J] may be continuous. Integer points
satisfy all this already; fractional ones do not: "half a recomputation in each of two stages" for what J needs once is
cut off. With all intervals, a program is at least as strong, as an LP too, as that of any subset of its anchors.

An interval's rows are added only where the LP's point violates them. Given a point, the least R[v, J] that the last two
lines allow come from one pass over the ops from the last to the first; the interval is violated where one of them is
larger than the sum of its R.
"""

from __future__ import annotations

import numpy as np

from remat_solvers.optimal.program.program import ONE, ZERO, IntervalColumns, StageProgram
from remat_solvers.toolkit.arrays import Floats, Ints


def add_interval(program: StageProgram, first: int, last: int) -> None:
    """Add the columns and rows of the interval of stages `first` to `last`."""
    per_stage = program.computed[first : last + 1]
    low, high = program.stages.low, program.stages.high
    inside = (per_stage == ONE).any(axis=0) | ((first <= low) & (high <= last))
    num_columns = (per_stage >= 0).sum(axis=0)
    computed = np.where(inside, ONE, np.where(num_columns == 1, per_stage.max(axis=0), ZERO))
    ops = np.flatnonzero(~inside & (num_columns > 1))
    columns = computed[ops] = program.new_columns(len(ops))
    begin = program.rows.count
    program.rows.add([(stage[ops], 1.0) for stage in per_stage] + [(columns, -1.0)], 0.0, np.inf)
    for stage in per_stage:
        own = np.flatnonzero(stage[ops] >= 0)
        program.rows.add([(columns[own], 1.0), (stage[ops[own]], -1.0)], 0.0, np.inf)
    before = program.present[first - 1] if first else np.full(len(program.graph.bytes), ZERO)
    program.add_window(before, program.present[last], computed)
    program.intervals.append(IntervalColumns(first, last, ops, columns, (begin, program.rows.count)))


def violation(program: StageProgram, point: Floats, first: int, last: int) -> float:
    """By how much a point violates the rows of an interval, in time units: sum of time x (least R[v, J] - sum of R)."""
    graph = program.graph
    per_stage = values_at(point, program.computed[first : last + 1])
    count = len(graph.bytes)
    before = values_at(point, program.present[first - 1]) if first else np.zeros(count)
    after = values_at(point, program.present[last])
    demands = per_stage.max(axis=0)
    values = np.flatnonzero(graph.produced)
    np.maximum.at(demands, graph.producer[values], (after - before)[values])
    demand = demands.tolist()
    kept, producer, inputs = before.tolist(), graph.producer.tolist(), graph.inputs
    for op in range(len(demand) - 1, -1, -1):
        demand_of_op = demand[op]
        if demand_of_op > 0:
            for value in inputs[op]:
                missing = demand_of_op - kept[value]
                if missing > demand[producer[value]]:
                    demand[producer[value]] = missing
    excess = np.array(demand) - per_stage.sum(axis=0)
    return float((np.maximum(excess, 0.0) * graph.time_ns).sum() / program.time_unit_ns)


def values_at(point: Floats, columns: Ints) -> Floats:
    """The values of columns, those of fixed variables included."""
    values: Floats = (columns == ONE).astype(np.float64)
    free = columns >= 0
    values[free] = point[columns[free]]
    return values
