"""A program over a few moments that no plan can beat, with recomputation and copies over a link together.

Checkmate's variables (Jain et al., MLSys 2020, section 4) over stages that are runs of ops, joined by the host copies
of POET (Patil et al., ICML 2022), which flow: inside a stage copies need no order. Let b_1 < ... < b_K be ops, b_K the
last one. Moment k is the first run of op b_k and T_k its end; moment K+1 is the end of the step, at which nothing runs,
and T_0 = 0. Stage k is what comes after moment k-1, up to and with moment k; it lasts T_k - T_(k-1). The ops of
(b_(k-1), b_k] run first in stage k.

    R[i,k]  whole  op i runs in stage k
    S[d,k]  whole  value d is on the device at moment k, computed there or arrived by T_k
    P[d,k]  whole  a fetch of d arrives in stage k
    Q[d,k]  0..1   at moment k a fetch of d is under way: the part of it that has been copied by T_k
    O[d,k]  0..1   the part of d that is copied to the host in stage k, for the first time
    W[k]    >= 0   what stage k lasts longer than its R

    minimise  sum of time(i) R[i,k] + sum of W[k]   subject to

    (1)  R[i,k] <= S[d,k-1] + R[p(d),k] + P[d,k]                        for every d that op i reads; p(d) makes d
    (2)  S[d,k] <= S[d,k-1] + R[p(d),k] + P[d,k]
    (3)  O[d,k] <= S[d,k-1] + R[p(d),k]
    (4)  P[d,k], Q[d,k] <= O[d,1] + ... + O[d,k-1] <= 1
    (5)  Q[d,k-1] <= P[d,k] + Q[d,k]
    (6)  S[d,k] + Q[d,k] <= 1
    (7)  sum of bytes(d) (S[d,k] + Q[d,k]) + workspace(b_k) <= room     S = 1 for what b_k reads and makes
    (8)  sum of to_host_ns(d) O[d,k]                          <= L[k] = sum of time(i) R[i,k] + W[k]
    (9)  sum of to_device_ns(d) (P[d,k] + Q[d,k] - Q[d,k-1])  <= L[k]
    (10) sum of bytes(d) O[d,k] over all d, k                 <= host_bytes
    (11) sum of to_host_ns(d) O[d,k] over the d that ops behind j make        <= L[k] - time of (b_(k-1), j]
    (12) sum of to_device_ns(d) (P[d,k] - Q[d,k-1]) over the d from before stage k
         that ops of (b_(k-1), j] read, less to_device_ns(d) R[p(d),k]         <= L[k] - time of [j, b_k]

with (11) and (12) for some ops j of (b_(k-1), b_k]. Results have S = 1 at the end, and forward results S or a fetch
under way at moments of the backward.

Why no plan whose first computations keep the given order is faster than the optimum. Take a valid plan within the
budget. Repeats whose outputs nobody reads may be left out, with the moves of what they make: every event's time is a
maximum of sums of earlier ones, so none comes later, and no bytes are added. An absence of a value (from a Free to the
next Fetch) that covers no moment is left out, too: the value is taken to stay; nothing below looks at bytes anywhere
but in moments. Now set

    R[i,k] = 1 where op i runs in stage k; W[k] = T_k - T_(k-1) - sum of time(i) R[i,k], which is not negative: compute
    is one stream, and more than one run only adds. The objective is T_(K+1), the plan's time.
    S[d,k] = 1 where d is on the device at moment k, unless by a fetch that arrives after T_k. Such a fetch has
    Q[d,k] = the part of its copy that was done by T_k.
    P[d,k] = 1 where a fetch issued before the end of stage k arrives by T_k, and did not arrive by T_(k-1) or was
    issued after moment k-1.
    O[d,k] = the part of d's first copy to the host that runs between T_(k-1) and T_k, 0 where it does not end in time.

    (1), (2): what op i reads, or what is there at moment k, came to the device in stage k by its producer (R) or by a
    fetch. A fetch that matters has arrived: by the start of op i, by the definition of S. It arrived in stage k
    (P), or before T_(k-1), and then the value has been there since moment k-1 (S), unless it was freed, and came again.
    (3): while the first copy runs the bytes are there, a Free waits for it; and no fetch came before it. So d was
    there at moment k-1 by a computation, or was computed in stage k.
    (4): before the Fetch came a Free, which waited for the copy; the absence covers a moment j, so the copy ended by
    T_j, and the fetch was issued later, in a stage after j.
    (5): a Free waits for copies, so a fetch under way arrives.     (6): by definition.
    (7): a fetch under way has all of its bytes; that is more than the copied part of them. What b_k reads has arrived,
    what it makes is there. Outputs that were there before count twice in the replay, once here.
    (8), (9): a queue copies one value at a time. Of fetches of one value that arrive in one stage one is counted.
    (11): what ops behind j make is copied for the first time after the end of the first run of j, before which the ops
    of (b_(k-1), j] have run in this stage. (12): likewise, what is read by ops up to j and was not computed in this
    stage has arrived before j starts, and the ops of [j, b_k] run after that; where d was computed, its term is not
    positive.

Values smaller than a part of the room are taken to be always there, and to have no bytes, which only adds points;
copies of more than LONGEST steps are counted as that long. Both keep the bound valid.

With `order` free, the b_k lie on a path: b_(k+1) depends on b_k, so their first runs keep that order in every plan. Any
other op may run first in any stage that its path allows: not before the stage after the last b_k it depends on, at the
latest in the stage of the first b_k that depends on it. One that does not run again runs once in these stages. (11) and
(12) are left out. The rest of the proof is the same, with moments in the order of the b_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.arrays import Floats, Ints
from remat_solvers.toolkit.programs.rows import Rows

__all__ = ["MovingProgram", "Windows", "windows"]

ZERO, ONE = -1, -2  # terms that are no variables
LARGEST = 10_000.0  # of the program's bytes and times: large against HiGHS's tolerances, small enough for them
LONGEST = 10.0  # steps that a copy is counted at most
SMALLEST_PART = 5_000  # values below this part of the room are taken to be always there
MARKS = 6  # ops j of (11) and (12) per stage
TOLERANCE = 1e-6  # HiGHS's, of rows; and ten times that of reduced costs, which a bound may be wrong by per column


@dataclass(frozen=True, slots=True)
class Windows:
    """The moments' ops, and per op the stages in which it may run first."""

    at: tuple[int, ...]
    early: tuple[int, ...]
    late: tuple[int, ...]


def windows(problem: Problem, at: Sequence[int], order: Order) -> Windows:
    """Stages of first runs. With a free order, `at` lies on a path: each op depends on the one before, or is a backward
    op behind a forward one."""
    ops = problem.ops
    if order is Order.GIVEN:
        stage = np.searchsorted(np.array(at), np.arange(len(ops)))
        return Windows(tuple(at), tuple(stage.tolist()), tuple(stage.tolist()))
    forward = [k for k, op in enumerate(at) if ops[op].phase == "forward"]
    turn = forward[-1] + 1 if forward else 0  # no backward op runs before this stage
    backward = [k for k, op in enumerate(at) if ops[op].phase == "backward"]
    early, late = [0] * len(ops), [len(at)] * len(ops)
    moment = {op: k for k, op in enumerate(at)}
    for i, op in enumerate(ops):
        producers = [problem.producer[v] for v in op.inputs if problem.producer[v] >= 0]
        after = [moment[p] + 1 if p in moment else early[p] for p in producers]
        early[i] = max([*after, turn if op.phase == "backward" else 0])
        if i in moment:
            early[i] = moment[i]
    for i in range(len(ops) - 1, -1, -1):
        readers = [r for v in ops[i].outputs for r in problem.consumers[v]]
        before = [moment[r] if r in moment else late[r] for r in readers]
        if ops[i].phase == "forward" and backward:
            before.append(backward[0])
        late[i] = min([*before, len(at)])
        if i in moment:
            late[i] = moment[i]
    return Windows(tuple(at), tuple(early), tuple(late))


class MovingProgram:
    """The rows of the module's docstring as arrays, for HiGHS; `point` reads its answer."""

    def __init__(self, problem: Problem, budget_bytes: int, at: Sequence[int], order: Order = Order.GIVEN) -> None:
        assert problem.link is not None
        self.problem = problem
        self.order = order
        self.windows = windows(problem, at, order)
        self.stages = len(at) + 1
        room_bytes = budget_bytes - problem.constant_bytes - problem.reserve_bytes
        self.once_ns = sum(op.time_ns for op in problem.ops)
        self.ns = max(1.0, self.once_ns / LARGEST)
        self.unit = max(1.0, room_bytes / LARGEST)
        self.room = room_bytes / self.unit
        self.size = [v.bytes / self.unit for v in problem.values]
        link = problem.link
        rates = link.to_host_bytes_per_s, link.to_device_bytes_per_s
        self.out, self.back = (
            [min(copy_ns(v.bytes, rate, link.latency_ns) / self.ns, LONGEST * LARGEST) for v in problem.values]
            for rate in rates
        )
        self.time = [op.time_ns / self.ns for op in problem.ops]
        self.kept = [v.kind != "constant" and v.bytes * SMALLEST_PART > room_bytes for v in problem.values]
        self.results = {v for v in problem.results if problem.producer[v] >= 0}
        self.pinned = {v for v in self.results if self._forward(v)} if problem.backward_ops else set()
        self._cost: list[float] = []
        self._upper: list[float] = []
        self._whole: list[bool] = []
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
            self._at_most(parts, link.host_bytes / self.unit)

    def _forward(self, value: int) -> bool:
        return self.problem.ops[self.problem.producer[value]].phase == "forward"

    # The variables

    def _horizons(self) -> tuple[list[int], list[int]]:
        """Per op the last stage in which a run of it is of use, per value the last in which it may be read.

        The last stage stands for the end: what a result is for. A forward result is pinned before the first moment of
        the backward; copies made later vanish.
        """
        problem, end = self.problem, self.stages - 1
        backward = [k for k, op in enumerate(self.windows.at) if problem.ops[op].phase == "backward"]
        pinned = backward[0] if backward else end
        op_last = list(self.windows.late)
        last = [-1] * len(problem.values)
        for i in range(len(problem.ops) - 1, -1, -1):
            for value in problem.ops[i].outputs:
                wanted = [op_last[r] for r in problem.consumers[value]]
                if value in self.results:
                    wanted.append(pinned if value in self.pinned else end)
                last[value] = max(wanted, default=-1)
                if problem.ops[i].recomputable:
                    op_last[i] = max(op_last[i], last[value])
        return op_last, last

    def _variables(self) -> None:
        problem, end = self.problem, self.stages - 1
        early, late = self.windows.early, self.windows.late
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
        for value, kept in enumerate(self.kept):
            if not kept:
                continue
            made, last = early[problem.producer[value]], self.last_read[value]
            for k in range(made, end):
                op = problem.ops[self.windows.at[k]]
                if value in op.inputs or value in op.outputs:
                    self.S[value, k] = ONE
                elif k < last or value in self.pinned:
                    self.S[value, k] = self._variable()
            if value in self.results:
                self.S[value, end] = ONE
            last = end if value in self.pinned else last
            for k in range(made, last):
                self.O[value, k] = self._variable(whole=False)
                if k > made:
                    self.Q[value, k] = self._variable(whole=False)
                self.P[value, k + 1] = self._variable()
        self.W = [self._variable(1.0, whole=False, most=np.inf) for _ in range(self.stages)]

    def _variable(self, cost: float = 0.0, *, whole: bool = True, most: float = 1.0) -> int:
        self._cost.append(cost)
        self._upper.append(most)
        self._whole.append(whole)
        return len(self._cost) - 1

    # The rows

    def _at_most(self, terms: Iterable[tuple[int, float]], most: float) -> None:
        """sum of coefficient * term <= most."""
        row: dict[int, float] = {}
        for term, coefficient in terms:
            if term == ONE:
                most -= coefficient
            elif term != ZERO:
                row[term] = row.get(term, 0.0) + coefficient
        if sum(c for c in row.values() if c > 0) > most or (not row and most < 0):
            self._entries.append((list(row), list(row.values()), most))

    def _covered(self, term: int, by: Iterable[int]) -> None:
        """term <= sum of `by`."""
        if term != ZERO:
            self._at_most([(term, 1.0), *((int(t), -1.0) for t in by)], 0.0)

    def _sources(self, value: int, stage: int) -> list[int]:
        kept = self.S[value, stage - 1] if stage else ZERO
        return [int(kept), int(self.R[self.problem.producer[value], stage])]

    def _first_runs(self) -> None:
        for i, op in enumerate(self.problem.ops):
            early, late = self.windows.early[i], self.windows.late[i]
            if early < late:
                runs = [int(t) for t in self.R[i, early : late + 1]]
                self._at_most([(t, -1.0) for t in runs], -1.0)
                if not op.recomputable:
                    self._at_most([(t, 1.0) for t in runs], 1.0)

    def _dependencies(self) -> None:
        """(1) to (3)."""
        problem = self.problem
        for i, op in enumerate(problem.ops):
            for stage in np.nonzero(self.R[i] != ZERO)[0].tolist():
                for value in dict.fromkeys(op.inputs):
                    if self.kept[value]:
                        self._covered(int(self.R[i, stage]), [*self._sources(value, stage), self.P[value, stage]])
                    elif problem.producer[value] >= 0:  # always there, once it has been made
                        producer = problem.producer[value]
                        if self.windows.late[producer] > stage:
                            self._covered(int(self.R[i, stage]), self.R[producer, : stage + 1])
        for value, kept in enumerate(self.kept):
            if kept:
                for stage in range(self.stages):
                    had = self._sources(value, stage)
                    self._covered(int(self.S[value, stage]), [*had, self.P[value, stage]])
                    self._covered(int(self.O[value, stage]), had)

    def _copies(self) -> None:
        """(4) to (6), and forward results in the backward."""
        backward = [k for k, op in enumerate(self.windows.at) if self.problem.ops[op].phase == "backward"]
        for value, kept in enumerate(self.kept):
            if not kept:
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
            if value in self.pinned:
                for k in backward:
                    self._covered(ONE, [int(self.S[value, k]), int(self.Q[value, k])])

    def _memory(self, stage: int) -> None:
        """(7)."""
        here = [*self.S[:, stage].tolist(), *self.Q[:, stage].tolist()]
        workspace = self.problem.ops[self.windows.at[stage]].workspace_bytes if stage < self.stages - 1 else 0
        self._at_most(zip(here, [*self.size, *self.size], strict=True), self.room - workspace / self.unit + TOLERANCE)

    def _link(self, stage: int) -> None:
        """(8), (9), (11) and (12)."""
        lasts = [(int(t), -c) for t, c in zip(self.R[:, stage], self.time, strict=True) if t != ZERO]
        lasts.append((self.W[stage], -1.0))
        out = [(int(t), c) for t, c in zip(self.O[:, stage], self.out, strict=True)]
        before = self.Q[:, stage - 1].tolist() if stage else [ZERO] * len(self.size)
        back = [(int(t), c) for t, c in zip(self.P[:, stage], self.back, strict=True)]
        early = [(t, -c) for t, c in zip(before, self.back, strict=True)]
        later = [(int(t), c) for t, c in zip(self.Q[:, stage], self.back, strict=True)]
        self._at_most([*out, *lasts], 0.0)
        self._at_most([*back, *early, *later, *lasts], 0.0)
        if self.order is Order.FREE or stage == self.stages - 1:
            return
        first, last = (self.windows.at[stage - 1] + 1 if stage else 0), self.windows.at[stage]
        for mark in self._marks(first, last):
            ran = sum(self.time[first : mark + 1])
            behind = [out[v] for op in self.problem.ops[mark + 1 : last + 1] for v in op.outputs]
            self._at_most([*behind, *lasts], -ran)
            reads = {v for op in self.problem.ops[first : mark + 1] for v in op.inputs}
            ahead = [v for v in reads if self.kept[v] and self.problem.producer[v] < first]
            due = [t for v in ahead for t in (back[v], early[v])]
            again = [(int(self.R[self.problem.producer[v], stage]), -self.back[v]) for v in ahead]
            self._at_most([*due, *again, *lasts], -sum(self.time[mark : last + 1]))

    def _marks(self, first: int, last: int) -> list[int]:
        """Some ops of a stage, evenly by time."""
        ends = np.cumsum(self.time[first : last + 1])
        at = np.searchsorted(ends, ends[-1] * np.arange(1, MARKS + 1) / (MARKS + 1))
        return sorted({first + int(k) for k in at})

    # What HiGHS gets and says

    def model(self, cutoff_ns: float | None = None) -> Any:
        """A `highspy.HighsLp`; with a cutoff, points that are not faster are left out."""
        entries = list(self._entries)
        if cutoff_ns is not None:
            costs = [(k, c) for k, c in enumerate(self._cost) if c]
            entries.append(([k for k, _ in costs], [c for _, c in costs], cutoff_ns / self.ns - self._offset()))
        rows = Rows()
        rows.add_sparse(
            np.repeat(np.arange(len(entries)), [len(indices) for indices, _, _ in entries]),
            np.array([k for indices, _, _ in entries for k in indices], dtype=np.int64),
            np.array([c for _, coefficients, _ in entries for c in coefficients]),
            len(entries),
            -np.inf,
            np.array([most for _, _, most in entries]),
        )
        lp = rows.to_highs(np.array(self._cost), np.array(self._upper), np.array(self._whole))
        lp.offset_ = self._offset()
        return lp

    def _offset(self) -> float:
        return sum(
            self.time[i] for i, (a, b) in enumerate(zip(self.windows.early, self.windows.late, strict=True)) if a == b
        )

    def bound_ns(self, objective: float) -> int:
        """What HiGHS's bound on the objective, offset included, says about the time of every plan: whole ns, safely."""
        doubt = TOLERANCE * (len(self._cost) + 1 + abs(objective))
        return max(self.once_ns, ceil((objective - doubt) * self.ns))

    def cost(self, point: Floats) -> float:
        """The objective of a point, offset included."""
        return float(np.dot(self._cost, point)) + self._offset()

    def value(self, terms: Ints, point: Floats) -> Floats:
        """The values of an array of terms in a point."""
        return np.where(terms >= 0, point[np.maximum(terms, 0)], (terms == ONE).astype(float))
