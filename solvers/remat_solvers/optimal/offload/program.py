"""An integer program over few moments, a relaxation of all plans that recompute and copy over a link together.

Checkmate's variables (Jain et al., MLSys 2020, section 4) over stages that are runs of ops, joined by the host copies
of POET (Patil et al., ICML 2022), which flow: inside a stage copies need no order. Let b_1 < ... < b_K be ops, b_K the
last one. Moment k is the first computation of op b_k and T_k its end; moment K+1 is the end of the step, at which
nothing runs, and T_0 = 0. Stage k is what comes after moment k-1, up to and with moment k; it lasts T_k - T_(k-1). The
ops of (b_(k-1), b_k] run first in stage k. The b_k are called anchors.

    R[i,k]  0 or 1  op i runs in stage k
    S[d,k]  0 or 1  value d is on the device at moment k, computed there or arrived by T_k
    P[d,k]  0 or 1  a fetch of d arrives in stage k
    Q[d,k]  0..1    at moment k a fetch of d is under way: the part of it that has been copied by T_k
    O[d,k]  0..1    the part of d that is copied to the host in stage k, for the first time
    W[k]    >= 0    the time by which stage k lasts longer than its R

    minimise  sum of time(i) R[i,k] + sum of W[k]   subject to

    (1)  R[i,k] <= S[d,k-1] + R[p(d),k] + P[d,k]                        for every d that op i reads; p(d) computes d
    (2)  S[d,k] <= S[d,k-1] + R[p(d),k] + P[d,k]
    (3)  O[d,k] <= S[d,k-1] + R[p(d),k]
    (4)  P[d,k], Q[d,k] <= O[d,1] + ... + O[d,k-1] <= 1
    (5)  Q[d,k-1] <= P[d,k] + Q[d,k]
    (6)  S[d,k] + Q[d,k] <= 1
    (7)  sum of bytes(d) (S[d,k] + Q[d,k]) + workspace(b_k) <= room     S = 1 for what b_k reads and computes
    (8)  sum of to_host_ns(d) O[d,k]                          <= L[k] = sum of time(i) R[i,k] + W[k]
    (9)  sum of to_device_ns(d) (P[d,k] + Q[d,k] - Q[d,k-1])  <= L[k]
    (10) sum of bytes(d) O[d,k] over all d, k                 <= host_bytes
    (11) sum of to_host_ns(d) O[d,k] over the d that ops behind j compute        <= L[k] - time of (b_(k-1), j]
    (12) sum of to_device_ns(d) (P[d,k] - Q[d,k-1]) over the d from before stage k
         that ops of (b_(k-1), j] read, less to_device_ns(d) R[p(d),k]         <= L[k] - time of [j, b_k]

with (11) and (12) for some ops j of (b_(k-1), b_k]. Results have S = 1 at the end, and forward results S or a fetch
under way at moments of the backward.

Why no plan whose first computations keep the given order is faster than the optimum. Take a valid plan within the
budget. Repeats whose outputs nobody reads may be left out, with the copies of these outputs: every event's time is
a maximum of sums of earlier ones, so none comes later, and no bytes are added. An interval in which a value is off the
device (from a Free to the next Fetch) and that covers no moment is left out, too: the value is taken to stay; nothing
below looks at bytes anywhere but in moments. Now set

    R[i,k] = 1 where op i runs in stage k; W[k] = T_k - T_(k-1) - sum of time(i) R[i,k], which is not negative: compute
    is one stream, and more than one run only adds. The objective is T_(K+1), the plan's time.
    S[d,k] = 1 where d is on the device at moment k, unless by a fetch that arrives after T_k. Such a fetch has
    Q[d,k] = the part of its copy that was done by T_k.
    P[d,k] = 1 where a fetch issued before the end of stage k arrives by T_k, and did not arrive by T_(k-1) or was
    issued after moment k-1.
    O[d,k] = the part of d's first copy to the host that runs between T_(k-1) and T_k, 0 where it does not end in time.

    (1), (2): a value that op i reads, or that is resident at moment k, came to the device in stage k by its producer
    (R) or by a fetch, or it was resident before. A fetch that matters has arrived: by the start of op i, by the
    definition of S. It arrived in stage k (P), or before T_(k-1), and then the value has been resident since moment k-1
    (S), unless it was freed, and came again.
    (3): while the first copy runs, the bytes are resident, since a Free waits for it; and no fetch came before it. So d
    was resident at moment k-1 by a computation, or was computed in stage k.
    (4): before the Fetch came a Free, which waited for the copy; the interval covers a moment j, so the copy ended by
    T_j, and the fetch was issued later, in a stage after j.
    (5): a Free waits for copies, so a fetch under way arrives.     (6): by definition.
    (7): a fetch under way has all of its bytes; that is more than the copied part of them. What b_k reads has arrived,
    what it computes is resident. Outputs that were resident before count twice in the replay, once here.
    (8), (9): a queue copies one value at a time. Of fetches of one value that arrive in one stage one is counted.
    (11): the outputs of ops behind j are copied for the first time after the end of the first computation of j, before
    which the ops of (b_(k-1), j] have run in this stage. (12): likewise, a value that ops up to j read and that was not
    computed in this stage has arrived before j starts, and the ops of [j, b_k] run after that; where d was computed,
    its term is not positive.

Values smaller than a part of the room are taken to be always resident, and to have no bytes, which only adds points;
copies of more than MAX_COPY_STEPS steps are counted as that long. Both keep the bound valid.

With `order` free, the b_k lie on a path: b_(k+1) depends on b_k, so their first computations keep that order in every
plan. Any other op may run first in any stage that its path allows: not before the stage after the last b_k it depends
on, at the latest in the stage of the first b_k that depends on it. An op that is not recomputable runs once in these
stages.
(11) and (12) are left out. The rest of the proof is the same, with moments in the order of the b_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.arrays import Floats, Ints
from remat_solvers.toolkit.programs.rows import Rows

ZERO, ONE = -1, -2  # terms that are constants
LARGEST = 10_000.0  # number for bytes or times in the program: large against HiGHS's tolerances, small enough for them
MAX_COPY_STEPS = 10.0  # a longer copy is counted as so many times the time of all ops
SMALL_PART = 5_000  # values below this part of the room are taken to be always resident
MARKS = 6  # ops j of (11) and (12) per stage
TOLERANCE = 1e-6  # of HiGHS for rows, and ten times that for reduced costs, by which a bound may be wrong per column


@dataclass(frozen=True, slots=True)
class StageRanges:
    """The anchors, and per op the range of stages in which its first computation may be."""

    anchors: tuple[int, ...]
    earliest: tuple[int, ...]
    latest: tuple[int, ...]


def stage_ranges(problem: Problem, anchors: Sequence[int], order: Order) -> StageRanges:
    """The stages in which each op may run first.

    With a free order, the anchors lie on a path: each depends on the one before, or is a backward op behind a forward
    one.
    """
    ops = problem.ops
    if order is Order.GIVEN:
        stages = np.searchsorted(np.array(anchors), np.arange(len(ops)))
        return StageRanges(tuple(anchors), tuple(stages.tolist()), tuple(stages.tolist()))
    forward = [k for k, op in enumerate(anchors) if ops[op].phase == "forward"]
    first_backward_stage = forward[-1] + 1 if forward else 0  # no backward op runs before this stage
    backward = [k for k, op in enumerate(anchors) if ops[op].phase == "backward"]
    earliest, latest = [0] * len(ops), [len(anchors)] * len(ops)
    moment = {op: k for k, op in enumerate(anchors)}
    for i, op in enumerate(ops):
        producers = [problem.producer[v] for v in op.inputs if problem.producer[v] >= 0]
        producers_earliest = [moment[p] + 1 if p in moment else earliest[p] for p in producers]
        earliest[i] = max([*producers_earliest, first_backward_stage if op.phase == "backward" else 0])
        if i in moment:
            earliest[i] = moment[i]
    for i in range(len(ops) - 1, -1, -1):
        readers = [r for v in ops[i].outputs for r in problem.consumers[v]]
        readers_latest = [moment[r] if r in moment else latest[r] for r in readers]
        if ops[i].phase == "forward" and backward:
            readers_latest.append(backward[0])
        latest[i] = min([*readers_latest, len(anchors)])
        if i in moment:
            latest[i] = moment[i]
    return StageRanges(tuple(anchors), tuple(earliest), tuple(latest))


class JointProgram:
    """The program of the module's docstring, for HiGHS. R, S, P, Q, O, W hold the numbers of its variables."""

    def __init__(self, problem: Problem, budget_bytes: int, anchors: Sequence[int], order: Order = Order.GIVEN) -> None:
        assert problem.link is not None
        self.problem = problem
        self.order = order
        self.ranges = stage_ranges(problem, anchors, order)
        self.stages = len(anchors) + 1
        room_bytes = budget_bytes - problem.static_bytes
        self.every_op_once_ns = time_bound_ns(problem)
        self.time_unit_ns = max(1.0, self.every_op_once_ns / LARGEST)
        self.byte_unit = max(1.0, room_bytes / LARGEST)
        self.room = room_bytes / self.byte_unit
        self.size = [v.bytes / self.byte_unit for v in problem.values]
        link = problem.link
        rates = link.to_host_bytes_per_s, link.to_device_bytes_per_s
        self.to_host, self.to_device = (
            [
                min(copy_ns(v.bytes, rate, link.latency_ns) / self.time_unit_ns, MAX_COPY_STEPS * LARGEST)
                for v in problem.values
            ]
            for rate in rates
        )
        self.time = [op.time_ns / self.time_unit_ns for op in problem.ops]
        self.counted = [v.kind != "constant" and v.bytes * SMALL_PART > room_bytes for v in problem.values]
        self.results = {v for v in problem.results if problem.producer[v] >= 0}
        self.forward_results = set(problem.forward_results) if problem.backward_ops else set()
        self._cost: list[float] = []
        self._upper: list[float] = []
        self._integer: list[bool] = []
        self._entries: list[tuple[list[int], list[float], float]] = []
        self._variables()
        self._first_runs()
        self._dependencies()
        self._copies()
        for stage in range(self.stages):
            self._memory(stage)
            self._link(stage)
        if link.host_bytes is not None:
            parts = [
                (int(t), self.size[v]) for v, k in zip(*np.nonzero(self.O >= 0), strict=True) for t in [self.O[v, k]]
            ]
            self._at_most(parts, link.host_bytes / self.byte_unit)

    # The variables

    def _horizons(self) -> tuple[list[int], list[int]]:
        """Per op the last stage in which a run of it is of use; per value the last stage in which it may be read.

        The last stage stands for the end, at which results are read. A forward result has to be resident before the
        first moment of the backward; instances computed later are not kept.
        """
        problem, end = self.problem, self.stages - 1
        backward = [k for k, op in enumerate(self.ranges.anchors) if problem.ops[op].phase == "backward"]
        boundary = backward[0] if backward else end
        op_last = list(self.ranges.latest)
        last = [-1] * len(problem.values)
        for i in range(len(problem.ops) - 1, -1, -1):
            for value in problem.ops[i].outputs:
                readers = [op_last[r] for r in problem.consumers[value]]
                if value in self.results:
                    readers.append(boundary if value in self.forward_results else end)
                last[value] = max(readers, default=-1)
                if problem.ops[i].recomputable:
                    op_last[i] = max(op_last[i], last[value])
        return op_last, last

    def _variables(self) -> None:
        problem, end = self.problem, self.stages - 1
        early, late = self.ranges.earliest, self.ranges.latest
        self.last_run, self.last_read = self._horizons()
        shape = len(problem.values), self.stages
        self.R = np.full((len(problem.ops), self.stages), ZERO)
        self.S, self.O, self.P, self.Q = (np.full(shape, ZERO) for _ in range(4))
        for i, op in enumerate(problem.ops):
            if early[i] == late[i]:
                self.R[i, early[i]] = ONE
            first = early[i] + (early[i] == late[i])
            for k in range(first, (self.last_run[i] if op.recomputable else late[i]) + 1):
                self.R[i, k] = self._variable(self.time[i])
        for value, counted in enumerate(self.counted):
            if not counted:
                continue
            computed, last = early[problem.producer[value]], self.last_read[value]
            for k in range(computed, end):
                op = problem.ops[self.ranges.anchors[k]]
                if value in op.inputs or value in op.outputs:
                    self.S[value, k] = ONE
                elif k < last or value in self.forward_results:
                    self.S[value, k] = self._variable()
            if value in self.results:
                self.S[value, end] = ONE
            last = end if value in self.forward_results else last
            for k in range(computed, last):
                self.O[value, k] = self._variable(integer=False)
                if k > computed:
                    self.Q[value, k] = self._variable(integer=False)
                self.P[value, k + 1] = self._variable()
        self.W = [self._variable(1.0, integer=False, upper=np.inf) for _ in range(self.stages)]

    def _variable(self, cost: float = 0.0, *, integer: bool = True, upper: float = 1.0) -> int:
        self._cost.append(cost)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    # The rows

    def _at_most(self, terms: Iterable[tuple[int, float]], upper: float) -> None:
        """sum of coefficient * term <= upper."""
        row: dict[int, float] = {}
        for term, coefficient in terms:
            if term == ONE:
                upper -= coefficient
            elif term != ZERO:
                row[term] = row.get(term, 0.0) + coefficient
        if sum(c for c in row.values() if c > 0) > upper or (not row and upper < 0):
            self._entries.append((list(row), list(row.values()), upper))

    def _covered(self, term: int, by: Iterable[int]) -> None:
        """term <= sum of `by`."""
        if term != ZERO:
            self._at_most([(term, 1.0), *((int(t), -1.0) for t in by)], 0.0)

    def _sources(self, value: int, stage: int) -> list[int]:
        resident = self.S[value, stage - 1] if stage else ZERO
        return [int(resident), int(self.R[self.problem.producer[value], stage])]

    def _first_runs(self) -> None:
        for i, op in enumerate(self.problem.ops):
            early, late = self.ranges.earliest[i], self.ranges.latest[i]
            if early < late:
                runs = [int(t) for t in self.R[i, early : late + 1]]
                self._at_most([(t, -1.0) for t in runs], -1.0)
                if not op.recomputable:
                    self._at_most([(t, 1.0) for t in runs], 1.0)

    def _dependencies(self) -> None:
        """Add the rows (1) to (3)."""
        problem = self.problem
        for i, op in enumerate(problem.ops):
            for stage in np.nonzero(self.R[i] != ZERO)[0].tolist():
                for value in dict.fromkeys(op.inputs):
                    if self.counted[value]:
                        self._covered(int(self.R[i, stage]), [*self._sources(value, stage), self.P[value, stage]])
                    elif problem.producer[value] >= 0:  # always resident, once it has been computed
                        producer = problem.producer[value]
                        if self.ranges.latest[producer] > stage:
                            self._covered(int(self.R[i, stage]), self.R[producer, : stage + 1])
        for value, counted in enumerate(self.counted):
            if counted:
                for stage in range(self.stages):
                    sources = self._sources(value, stage)
                    self._covered(int(self.S[value, stage]), [*sources, self.P[value, stage]])
                    self._covered(int(self.O[value, stage]), sources)

    def _copies(self) -> None:
        """Add the rows (4) to (6), and those of forward results in the backward."""
        backward = [k for k, op in enumerate(self.ranges.anchors) if self.problem.ops[op].phase == "backward"]
        for value, counted in enumerate(self.counted):
            if not counted:
                continue
            parts = [int(t) for t in self.O[value]]
            if any(t != ZERO for t in parts):
                self._at_most([(t, 1.0) for t in parts], 1.0)
            for stage in range(1, self.stages):
                arrives, under_way = int(self.P[value, stage]), int(self.Q[value, stage])
                self._covered(arrives, parts[:stage])
                self._covered(under_way, parts[:stage])
                self._covered(int(self.Q[value, stage - 1]), [arrives, under_way])
                if under_way != ZERO:
                    self._at_most([(int(self.S[value, stage]), 1.0), (under_way, 1.0)], 1.0)
            if value in self.forward_results:
                for k in backward:
                    self._covered(ONE, [int(self.S[value, k]), int(self.Q[value, k])])

    def _memory(self, stage: int) -> None:
        """Add the rows (7)."""
        terms = [*self.S[:, stage].tolist(), *self.Q[:, stage].tolist()]
        workspace = self.problem.ops[self.ranges.anchors[stage]].workspace_bytes if stage < self.stages - 1 else 0
        self._at_most(
            zip(terms, [*self.size, *self.size], strict=True), self.room - workspace / self.byte_unit + TOLERANCE
        )

    def _link(self, stage: int) -> None:
        """Add the rows (8), (9), (11) and (12)."""
        duration = [(int(t), -c) for t, c in zip(self.R[:, stage], self.time, strict=True) if t != ZERO]
        duration.append((self.W[stage], -1.0))
        copied = [(int(t), c) for t, c in zip(self.O[:, stage], self.to_host, strict=True)]
        under_way = self.Q[:, stage - 1].tolist() if stage else [ZERO] * len(self.size)
        arriving = [(int(t), c) for t, c in zip(self.P[:, stage], self.to_device, strict=True)]
        done_before = [(t, -c) for t, c in zip(under_way, self.to_device, strict=True)]
        begun = [(int(t), c) for t, c in zip(self.Q[:, stage], self.to_device, strict=True)]
        self._at_most([*copied, *duration], 0.0)
        self._at_most([*arriving, *done_before, *begun, *duration], 0.0)
        if self.order is Order.FREE or stage == self.stages - 1:
            return
        first, last = (self.ranges.anchors[stage - 1] + 1 if stage else 0), self.ranges.anchors[stage]
        for mark in self._marks(first, last):
            before = sum(self.time[first : mark + 1])
            later = [copied[v] for op in self.problem.ops[mark + 1 : last + 1] for v in op.outputs]
            self._at_most([*later, *duration], -before)
            reads = {v for op in self.problem.ops[first : mark + 1] for v in op.inputs}
            fetched = [v for v in reads if self.counted[v] and self.problem.producer[v] < first]
            due = [t for v in fetched for t in (arriving[v], done_before[v])]
            recomputed = [(int(self.R[self.problem.producer[v], stage]), -self.to_device[v]) for v in fetched]
            self._at_most([*due, *recomputed, *duration], -sum(self.time[mark : last + 1]))

    def _marks(self, first: int, last: int) -> list[int]:
        """Some ops of a stage, evenly by time."""
        ends = np.cumsum(self.time[first : last + 1])
        at = np.searchsorted(ends, ends[-1] * np.arange(1, MARKS + 1) / (MARKS + 1))
        return sorted({first + int(k) for k in at})

    # To and from HiGHS

    def model(self, cutoff_ns: float | None = None) -> Any:
        """The `highspy.HighsLp`; with a cutoff, it has no points that are slower."""
        entries = list(self._entries)
        if cutoff_ns is not None:
            costs = [(k, c) for k, c in enumerate(self._cost) if c]
            entries.append(
                ([k for k, _ in costs], [c for _, c in costs], cutoff_ns / self.time_unit_ns - self._offset())
            )
        rows = Rows()
        rows.add_sparse(
            np.repeat(np.arange(len(entries)), [len(indices) for indices, _, _ in entries]),
            np.array([k for indices, _, _ in entries for k in indices], dtype=np.int64),
            np.array([c for _, coefficients, _ in entries for c in coefficients]),
            len(entries),
            -np.inf,
            np.array([upper for _, _, upper in entries]),
        )
        lp = rows.to_highs(np.array(self._cost), np.array(self._upper), np.array(self._integer))
        lp.offset_ = self._offset()
        return lp

    def _offset(self) -> float:
        return sum(
            self.time[i]
            for i, (a, b) in enumerate(zip(self.ranges.earliest, self.ranges.latest, strict=True))
            if a == b
        )

    def bound_ns(self, objective: float) -> int:
        """A safe bound on the time of every plan, in ns, from HiGHS's bound on the objective, offset included."""
        tolerance = TOLERANCE * (len(self._cost) + 1 + abs(objective))
        return max(self.every_op_once_ns, ceil((objective - tolerance) * self.time_unit_ns))

    def cost(self, point: Floats) -> float:
        """The objective of a point, offset included."""
        return float(np.dot(self._cost, point)) + self._offset()

    def value(self, terms: Ints, point: Floats) -> Floats:
        """The values of an array of terms in a point."""
        return np.where(terms >= 0, point[np.maximum(terms, 0)], (terms == ONE).astype(float))
