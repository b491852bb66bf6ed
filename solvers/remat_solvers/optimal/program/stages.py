"""A program over few moments whose optimum no plan can beat: Checkmate's stages (Jain et al. 2020), made coarse.

Checkmate has a stage for every op. Here `at` = a_0, ..., a_(K-1) are K ops, the anchors, whose first runs come in this
order in every plan looked at. Moment k < K is the first run of a_k; moment K is the end of the step, when nothing runs.
Stage k is what happens after moment k-1 (or the start), up to and including moment k. With p(d) the producer of value
d, and for each op v the stages lo(v) <= hi(v) between which its first run lies:

    S[d, k]   1 where d is on the device during moment k: beside a_k while it runs, its inputs and outputs included
    R[v, k]   1 where v runs at least once in stage k; 1 where lo(v) = k = hi(v)

    minimise  sum of time(v) R[v, k]   subject to
    (1)  S[d, k] <= S[d, k-1] + R[p(d), k]
    (2)  R[v, k] <= S[d, k-1] + R[p(d), k]                         for every value d that v reads
    (3)  R[v, lo(v)] + ... + R[v, hi(v)] >= 1                      (= 1, and no R elsewhere, where v runs only once)
    (4)  S[d, k] = 1   for inputs and outputs of a_k, for results at the end, forward results at backward anchors
    (5)  sum of bytes(d) S[d, k] + workspace(a_k) <= budget - constants - reserve

Why the optimum is a lower bound. Take any valid plan within the budget that moves nothing to the host, and read S and R
off it, as their definitions say. The point is feasible and costs no more than the plan:

- (1) A value d on the device during moment k that is no output of a_k was there just before a_k ran. Either it was
  there all the time since moment k-1 ended, so it was there during that moment (what is there after an op was there
  while it ran: the replay ends nothing with it but workspace and second copies); or it came since then, and without
  copies values come only by a run of their producer: R[p(d), k] = 1. An output of a_k has p(d) = a_k, which runs in
  stage k. Before the first moment nothing but constants is there; constants are no variables.
- (2) When v runs in stage k all that it reads is there, and the same holds for each of these values: it was there since
  moment k-1, or its producer ran in stage k before. This holds for repeated runs and first runs alike, and for each
  output of an op with several: R is per op, S per value.
- (3) Every op runs at least once, its first run lies in the stages lo..hi, and an op that is not recomputable runs
  never again. Running before the first run is impossible, hence R = 0 before lo.
- (4) An op's inputs and outputs are there while it runs. All results are there at the end. Results of forward ops are
  there at the boundary and are not freed after it, and every backward op runs after it. (Results that are constants are
  no variables. A forward result may be freed and made again before the boundary; (4) says nothing about that.)
- (5) While a_k runs for the first time, the device holds what was there, all outputs, the workspace, constants and the
  reserve. It is the first run, so no output was there before: fresh copies and outputs are the same bytes, and the sum
  is exactly what the replay counts. At the end, it holds at least what S says.
- Cost. The plan's time is the sum over its runs; R counts those of a stage at most once. Ops of no time cost nothing
  in either. With copies there would be waits, which are not negative either, but (1) and (2) would not hold.

Nothing was asked of the anchors but their order, so the bound holds for any choice of them, and more anchors never
lower it: the restriction of a point to fewer of them is feasible there. Nothing is said about memory between the
moments; that is what makes it a relaxation.

Orders. In the given order every op is comparable with every other, any ops can be anchors, and lo = hi. In free order
only this is known of first runs: an op comes after those that make what it reads, ops with effects keep their order,
and forward ops come before backward ones. Anchors must be a chain of that partial order; lo(v) is the number of anchors
before v, and hi(v) the first anchor that is v or comes after it.

Left out, without changing the optimum. Call L(d) the last stage that could want d: K + 1 for results, else the largest
hi(u), or L of an output of u where u is recomputable, over the readers u of d. In a feasible point S[d, k] can be set
to 0 for k >= L(d), then R[v, k] for hi(v) < k where no output has L >= k: what is removed is on the right side only of
rows whose left side is removed too, or 0 already. R[v, k] is also left out where all outputs of v that are wanted have
S[., k-1] = 1: all rows with it hold without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np

from remat_solvers.errors import InputError
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.toolkit.arrays import Floats, Ints, Mask
from remat_solvers.toolkit.programs.rows import Rows

__all__ = ["ONE", "ZERO", "Graph", "Interval", "Program", "Stages"]


ZERO, ONE = -1, -2  # in place of a column: the variable is fixed
HALF = 0.5
LARGEST_UNITS = 1e6  # of the objective and of the memory rows: far above the solver's tolerances, small enough for them


class Graph:
    """A problem as flat arrays, and the partial order of its first runs."""

    def __init__(self, problem: Problem, order: Order) -> None:
        ops, values = problem.ops, problem.values
        self.problem, self.order = problem, order
        self.time_ns = np.array([op.time_ns for op in ops], dtype=np.int64)
        self.bytes = np.array([v.bytes for v in values], dtype=np.int64)
        self.producer = np.array(problem.producer, dtype=np.int64)
        self.made = self.producer >= 0
        self.recomputable = np.array([op.recomputable for op in ops], dtype=bool)
        self.backward = np.array([op.phase == "backward" for op in ops], dtype=bool)
        self.inputs = [[v for v in dict.fromkeys(op.inputs) if problem.producer[v] >= 0] for op in ops]
        self.readers = np.repeat(np.arange(len(ops)), [len(v) for v in self.inputs])  # of `reads`, side by side
        self.reads = np.array([v for some in self.inputs for v in some], dtype=np.int64)
        self.result = np.zeros(len(values), dtype=bool)
        self.result[list(problem.results)] = True
        self.result &= self.made
        self.owned = self.result & ~self.backward[self.producer] if len(ops) else self.result  # forward results
        self.floor_bytes = problem.static_bytes
        effects = [i for i, op in enumerate(ops) if op.effects]
        self._before = [sorted({problem.producer[v] for v in some}) for some in self.inputs]
        self._after = [sorted({r for v in op.outputs for r in problem.consumers[v]}) for op in ops]
        for earlier, later in pairwise(effects):
            self._before[later].append(earlier)
            self._after[earlier].append(later)

    def first_runs(self, at: Sequence[int]) -> tuple[Ints, Ints]:
        """Per op, the stages lo and hi between which its first run lies."""
        count = len(self.time_ns)
        if self.order is Order.GIVEN:
            stage = np.searchsorted(np.array(at, dtype=np.int64), np.arange(count))
            return stage, stage
        low, high = np.zeros(count, dtype=np.int64), np.full(count, len(at))
        for k, anchor in reversed(list(enumerate(at))):
            high[self.before(anchor)] = k
        for k, anchor in enumerate(at):
            low[self.after(anchor)] = k + 1
            low[anchor] = k
        return low, high

    def before(self, op: int) -> Mask:
        """Ops whose first run comes before that of `op` in every plan, and itself; for free order."""
        reached = self._reach([op], self._before)
        return reached | ~self.backward if self.backward[op] else reached

    def after(self, op: int) -> Mask:
        """Ops whose first run comes after that of `op` in every plan, and itself; for free order."""
        reached = self._reach([op], self._after)
        return reached | self.backward if not self.backward[op] else reached

    def _reach(self, start: list[int], edges: list[list[int]]) -> Mask:
        seen = bytearray(len(edges))
        for op in start:
            seen[op] = 1
        stack = list(start)
        while stack:
            for op in edges[stack.pop()]:
                if not seen[op]:
                    seen[op] = 1
                    stack.append(op)
        return np.frombuffer(bytes(seen), dtype=np.uint8).astype(bool)


class Stages:
    """Anchors, and what follows from them for every op and value."""

    def __init__(self, graph: Graph, at: Sequence[int]) -> None:
        self.graph = graph
        self.at = tuple(at)
        if graph.order is Order.GIVEN:
            chain = all(a < b for a, b in pairwise(self.at))
        else:
            chain = all(graph.after(a)[b] and a != b for a, b in pairwise(self.at))
        if not chain:
            raise InputError(f"the anchors {list(self.at)} do not come one after the other in every plan")
        self.low, self.high = graph.first_runs(self.at)
        self.wanted = self._wanted()

    def _wanted(self) -> Ints:
        """L of every value: the last stage that could want it; -1: none."""
        graph = self.graph
        wanted = np.where(graph.result, len(self.at) + 1, -1).tolist()
        high, recomputable = self.high.tolist(), graph.recomputable.tolist()
        ops = graph.problem.ops
        for op in range(len(ops) - 1, -1, -1):
            last = high[op]
            if recomputable[op]:
                for value in ops[op].outputs:
                    if wanted[value] > last:
                        last = wanted[value]
            last = min(last, len(self.at))
            for value in graph.inputs[op]:
                if wanted[value] < last:
                    wanted[value] = last
        return np.array(wanted, dtype=np.int64)


@dataclass(frozen=True)
class Interval:
    """Stages `first` to `last` as one, in a program."""

    first: int
    last: int
    ops: Ints  # with a column of their own for it
    columns: Ints  # of these ops
    rows: tuple[int, int]  # its first row, and the first behind it


class Program:
    """Columns and rows of the program over some stages. Fixed variables have no column.

    Units. Times are divided by `time_unit_ns`: their greatest common divisor where that leaves small numbers (then the
    optimum is a whole number), else what makes their sum LARGEST_UNITS. Bytes are divided by a unit and rounded down,
    and so is the room: whole numbers in exact rows, which hold wherever the true ones do.
    """

    def __init__(self, stages: Stages, budget_bytes: int) -> None:
        graph = self.graph = stages.graph
        self.stages = stages
        self.room_bytes = budget_bytes - graph.floor_bytes
        self.divisor_ns = gcd(*graph.time_ns.tolist()) or 1
        self.time_unit_ns = max(float(self.divisor_ns), int(graph.time_ns.sum()) / LARGEST_UNITS)
        if self.time_unit_ns < 2 * self.divisor_ns:
            self.time_unit_ns = float(self.divisor_ns)
        self.byte_unit = max(1, gcd(*graph.bytes.tolist()), round(max(0, self.room_bytes) / LARGEST_UNITS))
        self.columns = 0
        self.once = self._once()
        self.stay = self._stay()
        self.run = self._run()
        self.num_integers = self.columns  # columns from here on are continuous
        self.intervals: list[Interval] = []  # see cuts.py
        self.rows = Rows()
        before = np.full(len(graph.bytes), ZERO)
        for k in range(len(stages.at) + 1):
            self.window(before, self.stay[k], self.run[k])
            before = self.stay[k]
        self._first_runs()
        self._memory()
        self.base_ns = int((graph.time_ns * (self.run == ONE).sum(axis=0)).sum())

    def new_columns(self, many: int) -> Ints:
        """Indices of `many` more columns."""
        self.columns += many
        return np.arange(self.columns - many, self.columns)

    def _once(self) -> Mask:
        """[stage, op]: the op surely runs in the stage."""
        stages = self.stages
        count = len(stages.at) + 1
        once: Mask = (np.arange(count)[:, None] == stages.low) & (stages.low == stages.high)
        return once

    def _stay(self) -> Ints:
        """S as columns, [moment, value]."""
        graph, stages = self.graph, self.stages
        ops, last = graph.problem.ops, len(stages.at)
        count = len(graph.bytes)
        stay = np.full((last + 1, count), ZERO)
        one = np.zeros((last + 1, count), dtype=bool)
        for k, anchor in enumerate(stages.at):
            one[k, [*graph.inputs[anchor], *ops[anchor].outputs]] = True
            if graph.backward[anchor]:
                one[k] |= graph.owned
        one[last] = graph.result
        fixed = graph.made & ~graph.recomputable[graph.producer] if len(ops) else graph.made
        for k in range(last, 0, -1):  # what is made once and is there, or read, was there before
            read = np.zeros(count, dtype=bool)
            read[graph.reads[self.once[k, graph.readers]]] = True
            one[k - 1] |= fixed & (one[k] | read) & (stages.high[graph.producer] < k)
        for k in range(last + 1):
            free = graph.made & (stages.wanted > k) & ~one[k]
            if len(ops):
                free &= stages.low[graph.producer] <= k
            stay[k, free] = self.new_columns(int(free.sum()))
            stay[k, one[k]] = ONE
        return stay

    def _run(self) -> Ints:
        """R as columns, [stage, op]."""
        graph, stages = self.graph, self.stages
        count = len(graph.time_ns)
        run = np.full((len(stages.at) + 1, count), ZERO)
        before = np.full(len(graph.bytes), ZERO)
        for k in range(len(stages.at) + 1):
            wanted = graph.made & (before != ONE) & (stages.wanted >= k)
            useful = np.zeros(count, dtype=bool)
            useful[graph.producer[wanted]] = True
            free = (stages.low <= k) & (k <= stages.high) & (stages.low < stages.high)
            free |= graph.recomputable & (stages.high < k) & useful
            run[k, free] = self.new_columns(int(free.sum()))
            run[k, self.once[k]] = ONE
            before = self.stay[k]
        return run

    def window(self, before: Ints, after: Ints, run: Ints) -> None:
        """Rows (1) and (2) between two moments: S at the first, S at the second, and R of what lies between."""
        graph = self.graph
        if not len(graph.time_ns):
            return
        make = np.where(graph.made, run[graph.producer], ONE)
        sure = (before == ONE) | (make == ONE)
        read = np.zeros(len(before), dtype=bool)
        read[graph.reads[run[graph.readers] == ONE]] = True
        demanded = (read | (after == ONE)) & ~sure & graph.made
        values = np.flatnonzero(demanded)
        self.rows.add([(before[values], 1.0), (make[values], 1.0)], 1.0, np.inf)
        values = np.flatnonzero((after >= 0) & ~sure & ~demanded)
        self.rows.add([(before[values], 1.0), (make[values], 1.0), (after[values], -1.0)], 0.0, np.inf)
        edges = np.flatnonzero((run[graph.readers] >= 0) & ~sure[graph.reads] & ~demanded[graph.reads])
        values = graph.reads[edges]
        self.rows.add([(before[values], 1.0), (make[values], 1.0), (run[graph.readers[edges]], -1.0)], 0.0, np.inf)

    def _first_runs(self) -> None:
        """Rows (3)."""
        stages = self.stages
        ops = np.flatnonzero(stages.low < stages.high)
        stage = np.arange(len(stages.at) + 1)[:, None]
        inside = (stage >= stages.low[ops]) & (stage <= stages.high[ops])
        columns = np.where(inside, self.run[:, ops], ZERO)
        high = np.where(self.graph.recomputable[ops], np.inf, 1.0)
        self.rows.add([(row, 1.0) for row in columns], 1.0, high)

    def _memory(self) -> None:
        """Rows (5)."""
        size = self.graph.bytes // self.byte_unit
        ops = self.graph.problem.ops
        for k, stay in enumerate(self.stay):
            workspace = ops[self.stages.at[k]].workspace_bytes if k < len(self.stages.at) else 0
            room = (self.room_bytes - workspace) // self.byte_unit - int(size[stay == ONE].sum())
            values = np.flatnonzero((stay >= 0) & (size > 0))
            if room < 0 or int(size[values].sum()) > room:
                rows = np.zeros(len(values), dtype=np.int64)
                self.rows.add_sparse(rows, stay[values], size[values].astype(np.float64), 1, -np.inf, float(room))

    def point(self, stay: Mask, run: Mask) -> Floats:
        """The columns' values where S is `stay`, [moment, value], and R is `run`, [stage, op]."""
        point = np.zeros(self.columns)
        for columns, true in ((self.stay, stay), (self.run, run)):
            point[columns[(columns >= 0) & true]] = 1.0
        for interval in self.intervals:
            inside, ops = slice(interval.first, interval.last + 1), interval.ops
            point[interval.columns] = (run[inside, ops] & (self.run[inside, ops] >= 0)).any(axis=0)
        return point

    def decisions(self, point: Floats) -> tuple[Mask, Mask]:
        """S and R at a whole point."""
        whole = np.append(point > HALF, [True, False])  # at ONE and ZERO
        return whole[self.stay], whole[self.run]

    def rounded(self, point: Floats) -> tuple[Mask, Mask]:
        """A fractional point as decisions that may break rows: what mostly stays, and one first run per op."""
        stay, _ = self.decisions(point)
        run: Mask = self.run == ONE
        stages = self.stages
        ops = np.flatnonzero(stages.low < stages.high)
        stage = np.arange(len(run))[:, None]
        inside = (stage >= stages.low[ops]) & (stage <= stages.high[ops])
        much = np.where(inside & (self.run[:, ops] >= 0), np.append(point, 0.0)[self.run[:, ops]], -1.0)
        run[much.argmax(axis=0), ops] = True
        return stay, run

    def time_ns(self, cost: float) -> int:
        """The time of a point of some cost, in units."""
        return self.base_ns + round(cost * self.time_unit_ns)

    def costs(self) -> Floats:
        """Of the columns, in units."""
        costs = np.zeros(self.columns)
        for run in self.run:
            ops = np.flatnonzero(run >= 0)
            costs[run[ops]] = self.graph.time_ns[ops] / self.time_unit_ns
        return costs

    def bound_ns(self, objective: float, margin: float) -> int:
        """The least time of a plan where no point costs less than `objective` units, of which `margin` is in doubt.

        Every plan's time is a whole multiple of the divisor of all times.
        """
        extra = (objective - margin) * self.time_unit_ns
        return self.base_ns + self.divisor_ns * int(np.ceil(max(0.0, extra) / self.divisor_ns))
