"""Bounds the time of every plan by an integer program over few moments, a coarse form of Checkmate's.

Checkmate (Jain et al. 2020, arXiv 1910.02653) has a stage for every op; here a stage ends at each of K anchors
a_0, ..., a_(K-1). stages.py defines anchors, moments, stages, lo, hi and L. With p(d) the producer of value d:

    S[d, k]   1 where d is on the device during moment k: while a_k runs, its inputs and outputs included
    R[v, k]   1 where v is computed at least once in stage k; 1 where lo(v) = k = hi(v)

    minimise  sum of time(v) R[v, k]   subject to
    (1)  S[d, k] <= S[d, k-1] + R[p(d), k]
    (2)  R[v, k] <= S[d, k-1] + R[p(d), k]                         for every value d that v reads
    (3)  R[v, lo(v)] + ... + R[v, hi(v)] >= 1                      (= 1, and no R elsewhere, where v runs only once)
    (4)  S[d, k] = 1   for inputs and outputs of a_k, for results at the end, forward results at backward anchors
    (5)  sum of bytes(d) S[d, k] + workspace(a_k) <= budget - constants - reserve

Why the optimum is a lower bound. Take any valid plan within the budget that moves nothing to the host, and read S and R
off it, as their definitions say. The point is feasible and costs no more than the plan:

- (1) A value d that is on the device during moment k and is no output of a_k was resident just before a_k ran. Either
  it was resident all the time since moment k-1 ended, so it was resident during that moment (what is resident after an
  op was resident while it ran: the replay ends nothing with it but workspace and second copies); or it came since then,
  and without copies values come only by a computation of their producer: R[p(d), k] = 1. An output of a_k has
  p(d) = a_k, which runs in stage k. Before the first moment nothing but constants is resident; constants are no
  variables.
- (2) When v runs in stage k all that it reads is resident, and the same holds for each of these values: it was resident
  since moment k-1, or its producer ran in stage k before. This holds for recomputations and first computations, and
  for each output of an op with several: R is per op, S per value.
- (3) Every op runs at least once, its first computation lies in the stages lo..hi, and an op that is not recomputable
  never runs again. It cannot run before its first computation, hence R = 0 before lo.
- (4) An op's inputs and outputs are resident while it runs. All results are resident at the end. Results of forward ops
  are resident at the boundary and are not freed after it, and every backward op runs after it. (Results that are
  constants are no variables. A forward result may be freed and computed again before the boundary; (4) says nothing
  about that.)
- (5) While a_k runs for the first time, the device holds what was resident, all outputs, the workspace, constants and
  the reserve. It is the first computation, so no output was resident before: fresh copies and outputs are the same
  bytes, and the sum is exactly what the replay counts. At the end, it holds at least what S says.
- Cost. The plan's time is the sum over its computations; R counts those of a stage at most once. Ops of no time cost
  nothing in either. With copies there would be waits, which are not negative either, but (1) and (2) would not hold.

The proof requires of the anchors only their order, so the bound holds for any choice of them, and more anchors never
lower it: the restriction of a point to fewer of them is feasible there. Nothing is said about memory between the
moments; that is what makes it a relaxation.

Variables that are left out, without changing the optimum. In a feasible point S[d, k] can be set to 0 for k >= L(d),
then R[v, k] for hi(v) < k where no output has L >= k: what is removed is on the right side only of rows whose left side
is removed too, or 0 already. R[v, k] is also left out where all outputs of v that are still of use have
S[., k-1] = 1: all rows with it hold without.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from remat_solvers.optimal.program.stages import Stages
from remat_solvers.toolkit.arrays import Floats, Ints, Mask
from remat_solvers.toolkit.programs.rows import Rows

ZERO, ONE = -1, -2  # in place of a column: the variable is fixed
HALF = 0.5
LARGEST_UNITS = 1e6  # of the objective and of the memory rows: far above the solver's tolerances, small enough for them


@dataclass(frozen=True)
class IntervalColumns:
    """The columns and rows that count stages `first` to `last` as one (interval_cuts.py)."""

    first: int
    last: int
    ops: Ints  # those that have a column of their own for the interval
    columns: Ints  # of these ops
    rows: tuple[int, int]  # its first row, and the first row after it


class StageProgram:
    """Columns and rows of the program over some stages. Variables that are fixed have no column.

    Units. Times are divided by `time_unit_ns`: their greatest common divisor where that leaves small numbers (then the
    optimum is an integer), else the unit in which their sum is LARGEST_UNITS. Bytes are divided by a unit and rounded
    down, and so is the capacity: integers in exact rows, which hold wherever the true ones do.
    """

    def __init__(self, stages: Stages, budget_bytes: int) -> None:
        graph = self.graph = stages.graph
        self.stages = stages
        self.capacity_bytes = budget_bytes - graph.static_bytes
        self.divisor_ns = gcd(*graph.time_ns.tolist()) or 1
        self.time_unit_ns = max(float(self.divisor_ns), int(graph.time_ns.sum()) / LARGEST_UNITS)
        if self.time_unit_ns < 2 * self.divisor_ns:
            self.time_unit_ns = float(self.divisor_ns)
        self.byte_unit = max(1, gcd(*graph.bytes.tolist()), round(max(0, self.capacity_bytes) / LARGEST_UNITS))
        self.columns = 0
        self.certain_runs = self._certain_runs()
        self.present = self._present_columns()
        self.computed = self._computed_columns()
        self.num_integers = self.columns  # columns from here on are continuous
        self.intervals: list[IntervalColumns] = []  # added by interval_cuts.py
        self.rows = Rows()
        before = np.full(len(graph.bytes), ZERO)
        for k in range(len(stages.anchors) + 1):
            self.add_window(before, self.present[k], self.computed[k])
            before = self.present[k]
        self._add_first_computations()
        self._add_memory()
        self.base_ns = int((graph.time_ns * (self.computed == ONE).sum(axis=0)).sum())

    def new_columns(self, count: int) -> Ints:
        """Add columns, and return their indices."""
        self.columns += count
        return np.arange(self.columns - count, self.columns)

    def _certain_runs(self) -> Mask:
        """Mask [stage, op]: in every plan the op is computed in the stage."""
        stages = self.stages
        count = len(stages.anchors) + 1
        certain: Mask = (np.arange(count)[:, None] == stages.low) & (stages.low == stages.high)
        return certain

    def _present_columns(self) -> Ints:
        """The columns of S, [moment, value]."""
        graph, stages = self.graph, self.stages
        ops, last = graph.problem.ops, len(stages.anchors)
        count = len(graph.bytes)
        present = np.full((last + 1, count), ZERO)
        one = np.zeros((last + 1, count), dtype=bool)
        for k, anchor in enumerate(stages.anchors):
            one[k, [*graph.inputs[anchor], *ops[anchor].outputs]] = True
            if graph.backward[anchor]:
                one[k] |= graph.forward_result
        one[last] = graph.result
        fixed = graph.produced & ~graph.recomputable[graph.producer] if len(ops) else graph.produced
        for k in range(last, 0, -1):  # a value that is computed only once and is present, or read, was present before
            read = np.zeros(count, dtype=bool)
            read[graph.reads[self.certain_runs[k, graph.readers]]] = True
            one[k - 1] |= fixed & (one[k] | read) & (stages.high[graph.producer] < k)
        for k in range(last + 1):
            free = graph.produced & (stages.last_use > k) & ~one[k]
            if len(ops):
                free &= stages.low[graph.producer] <= k
            present[k, free] = self.new_columns(int(free.sum()))
            present[k, one[k]] = ONE
        return present

    def _computed_columns(self) -> Ints:
        """The columns of R, [stage, op]."""
        graph, stages = self.graph, self.stages
        count = len(graph.time_ns)
        computed = np.full((len(stages.anchors) + 1, count), ZERO)
        before = np.full(len(graph.bytes), ZERO)
        for k in range(len(stages.anchors) + 1):
            of_use = graph.produced & (before != ONE) & (stages.last_use >= k)
            useful = np.zeros(count, dtype=bool)
            useful[graph.producer[of_use]] = True
            free = (stages.low <= k) & (k <= stages.high) & (stages.low < stages.high)
            free |= graph.recomputable & (stages.high < k) & useful
            computed[k, free] = self.new_columns(int(free.sum()))
            computed[k, self.certain_runs[k]] = ONE
            before = self.present[k]
        return computed

    def add_window(self, before: Ints, after: Ints, computed: Ints) -> None:
        """Add rows (1) and (2) between two moments, given S at the first, S at the second, and R between them."""
        graph = self.graph
        if not len(graph.time_ns):
            return
        produced = np.where(graph.produced, computed[graph.producer], ONE)
        certain = (before == ONE) | (produced == ONE)
        read = np.zeros(len(before), dtype=bool)
        read[graph.reads[computed[graph.readers] == ONE]] = True
        demanded = (read | (after == ONE)) & ~certain & graph.produced
        values = np.flatnonzero(demanded)
        self.rows.add([(before[values], 1.0), (produced[values], 1.0)], 1.0, np.inf)
        values = np.flatnonzero((after >= 0) & ~certain & ~demanded)
        self.rows.add([(before[values], 1.0), (produced[values], 1.0), (after[values], -1.0)], 0.0, np.inf)
        edges = np.flatnonzero((computed[graph.readers] >= 0) & ~certain[graph.reads] & ~demanded[graph.reads])
        values = graph.reads[edges]
        self.rows.add(
            [(before[values], 1.0), (produced[values], 1.0), (computed[graph.readers[edges]], -1.0)], 0.0, np.inf
        )

    def _add_first_computations(self) -> None:
        """Rows (3)."""
        stages = self.stages
        ops = np.flatnonzero(stages.low < stages.high)
        stage = np.arange(len(stages.anchors) + 1)[:, None]
        inside = (stage >= stages.low[ops]) & (stage <= stages.high[ops])
        columns = np.where(inside, self.computed[:, ops], ZERO)
        high = np.where(self.graph.recomputable[ops], np.inf, 1.0)
        self.rows.add([(row, 1.0) for row in columns], 1.0, high)

    def _add_memory(self) -> None:
        """Rows (5)."""
        size = self.graph.bytes // self.byte_unit
        ops = self.graph.problem.ops
        for k, present in enumerate(self.present):
            workspace = ops[self.stages.anchors[k]].workspace_bytes if k < len(self.stages.anchors) else 0
            capacity = (self.capacity_bytes - workspace) // self.byte_unit - int(size[present == ONE].sum())
            values = np.flatnonzero((present >= 0) & (size > 0))
            if capacity < 0 or int(size[values].sum()) > capacity:
                rows = np.zeros(len(values), dtype=np.int64)
                self.rows.add_sparse(
                    rows, present[values], size[values].astype(np.float64), 1, -np.inf, float(capacity)
                )

    def point(self, present: Mask, computed: Mask) -> Floats:
        """The values of the columns where S is `present`, [moment, value], and R is `computed`, [stage, op]."""
        point = np.zeros(self.columns)
        for columns, true in ((self.present, present), (self.computed, computed)):
            point[columns[(columns >= 0) & true]] = 1.0
        for interval in self.intervals:
            inside, ops = slice(interval.first, interval.last + 1), interval.ops
            point[interval.columns] = (computed[inside, ops] & (self.computed[inside, ops] >= 0)).any(axis=0)
        return point

    def decisions(self, point: Floats) -> tuple[Mask, Mask]:
        """S and R at an integer point."""
        values = np.append(point > HALF, [True, False])  # at ONE and ZERO
        return values[self.present], values[self.computed]

    def rounded(self, point: Floats) -> tuple[Mask, Mask]:
        """Round a fractional point to decisions that may violate rows: S, and one first computation per op."""
        present, _ = self.decisions(point)
        computed: Mask = self.computed == ONE
        stages = self.stages
        ops = np.flatnonzero(stages.low < stages.high)
        stage = np.arange(len(computed))[:, None]
        inside = (stage >= stages.low[ops]) & (stage <= stages.high[ops])
        share = np.where(inside & (self.computed[:, ops] >= 0), np.append(point, 0.0)[self.computed[:, ops]], -1.0)
        computed[share.argmax(axis=0), ops] = True
        return present, computed

    def time_ns(self, cost: float) -> int:
        """The time of a point whose cost is `cost` units."""
        return self.base_ns + round(cost * self.time_unit_ns)

    def costs(self) -> Floats:
        """The costs of the columns, in units of time."""
        costs = np.zeros(self.columns)
        for computed in self.computed:
            ops = np.flatnonzero(computed >= 0)
            costs[computed[ops]] = self.graph.time_ns[ops] / self.time_unit_ns
        return costs

    def bound_ns(self, objective: float, margin: float) -> int:
        """Turn a bound of `objective` units, of which `margin` is in doubt, into one on the time of every plan.

        Every plan's time is a whole multiple of the divisor of all times.
        """
        extra = (objective - margin) * self.time_unit_ns
        return self.base_ns + self.divisor_ns * int(np.ceil(max(0.0, extra) / self.divisor_ns))
