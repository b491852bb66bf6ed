"""Builds Checkmate's integer program for a problem with several outputs per op, workspace and results.

Stage t = 0..n-1 ends with the first computation of op t. A last stage n, without a first computation, exists where a
result of a backward op may be recomputed at the very end. Every variable is binary, but U:

    R[t, i]       op i is computed in stage t. R[t, t] = 1 (8a); R[t, i] = 0 for i > t (8c), and for i < t where op i is
                  not recomputable
    S[t, d]       value d is kept into stage t. 0 where its producer is not below t (8b); at the end 1 exactly for
                  results
    FREE[t, d, k] value d is freed after op k, its producer or a reader, in stage t
    U[t, k]       bytes on the device, beside the static bytes, while op k is computed in stage t

Minimise the sum of time(i) R[t, i] subject to, with p(d) the producer of d and `room` the budget less the static
bytes,

    (1b)  R[t, j] <= R[t, p(d)] + S[t, d]                for every value d that op j reads
    (1c)  S[t+1, d] <= R[t, p(d)] + S[t, d]
    (2)   U[t, k] = U[t, k-1] - (bytes freed after k-1) + R[t, k] bytes(outputs of k) <= room,
          U[t, before all] = sum of bytes(d) S[t, d]
          U[t, k] + R[t, k] workspace(k) <= room
    (3)   kappa (1 - FREE[t, d, k]) >= (1 - R[t, k]) + S[t+1, d] + (sum of R[t, j] over the readers j > k of d),
          kappa = the number of terms on the right

Where this is more than the paper's program:

- R is per op and S per value. An op that is recomputed for one of its outputs computes the others too, so
  FREE[t, d, p(d)] stays where an op has several. (The paper drops it: no optimal schedule computes a value that it does
  not use.)
- The caller owns the results of forward ops from the first backward op on: S = 1, they are not freed, and where their
  op is recomputed, the fresh copies count while it is computed and are freed afterwards, as in the replay.
- Between the forward's end and the tangents nothing is recomputed.

And where it is less, without a loss: the rows 1 - FREE <= hazards, which force out a value that nothing needs; the
values of no bytes, which are always kept; constants among the inputs of an op.

Moments (`moments=True`) are rows of one instant per stage, the first computation of op t: the inputs and outputs of op
t, its workspace and the values kept into stage t+1 are on the device together. They follow from (2) and (3).

    (4)   bytes(inputs and outputs of t) + workspace(t) + sum over other d of bytes(d) S[t+1, d] <= room

With (1b), (1c) and (4) alone, R[t, i] says that op i is computed at least once in stage t, in whatever order with the
others. Every plan without offload whose first computations keep the problem's order gives a point of that program at no
more than its time, so its optimum is a lower bound for all of them. That is more than the optimum of the whole program
proves, whose schedules compute an op at most once per stage and in the problem's order. `add_stage_memory` adds (2) and
(3) for a stage.

A second budget, as Rockmate has it, limits the bytes that the forward leaves to the backward (`Retained`). With t the
stage of the tangents:

    (5)   sum over counted d of bytes(d) S[t, d] <= limit
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.programs.pulp_backend import Answer, Ended

Term: TypeAlias = Any  # a variable of PuLP, or 0 or 1 where it is fixed
Amounts: TypeAlias = Mapping[tuple[int, int], float]  # (stage, op or value) -> the backend's value of the variable

LARGEST_COEFFICIENT = 10_000  # keeps the backends' tolerances (1e-6) small beside the numbers
TOLERANCE = 1e-6  # relative to the objective: by how much a backend's bound may be off


@dataclass(frozen=True, slots=True)
class Retained:
    """The limit on the bytes kept from the forward into the backward; only for problems with tangents."""

    limit_bytes: int
    uncounted: frozenset[int] = frozenset()  # values that are kept for other reasons


class CheckmateProgram:
    """The program for `problem` within `budget_bytes`, with its variables by stage and op or value."""

    def __init__(self, problem: Problem, budget_bytes: int, *, moments: bool, retained: Retained | None = None) -> None:
        import pulp

        ops, values = problem.ops, problem.values
        self._pulp = pulp
        self.problem = problem
        self.program = pulp.LpProblem("checkmate", pulp.LpMinimize)
        self.stages_with_memory: set[int] = set()  # those with rows (2) and (3)
        self._impossible = 0
        self._count = len(ops)
        self._forward_end = len(problem.forward_ops)
        self._results = {v for v in problem.results if values[v].kind != "constant"}
        forward_results = set(problem.forward_results)
        self._pinned = forward_results if problem.backward_ops else set()
        has_last_stage = any(ops[problem.producer[v]].recomputable for v in self._results - forward_results)
        self.stages = self._count + has_last_stage
        self._tangents = tangents_op(problem)
        room = budget_bytes - problem.static_bytes
        limits = [room, *([retained.limit_bytes] if retained is not None else [])]
        unit = _unit([*limits, *(v.bytes for v in values if v.kind != "constant"), *(op.workspace_bytes for op in ops)])
        self._room = room / unit
        self._size = [v.bytes / unit for v in values]
        self._workspace = [op.workspace_bytes / unit for op in ops]
        self._inputs = [
            [v for v in dict.fromkeys(op.inputs) if values[v].kind != "constant" and values[v].bytes] for op in ops
        ]
        self._computed = [v for v, p in enumerate(problem.producer) if p >= 0 and values[v].bytes]
        self._runs: dict[tuple[int, int], Term] = {}  # R below the diagonal
        self._kept: dict[tuple[int, int], Term] = {}  # S
        self._variables()
        for stage in range(self.stages):
            self._dependencies(stage)
            if moments and stage < self._count:
                self._moment(stage)
        if retained is not None:
            self._retain(retained.limit_bytes / unit, retained.uncounted)
        self._once_ns = sum(op.time_ns for op in ops)
        self._time_unit_ns = _unit([op.time_ns for op in ops])
        self._objective = [(ops[op].time_ns / self._time_unit_ns, run) for (_, op), run in self._runs.items()]
        self.program.setObjective(pulp.LpAffineExpression([(v, c) for c, v in self._objective]))

    def amounts(self) -> tuple[Amounts, Amounts]:
        """R and S of the point that the backend found."""
        runs, kept = (
            {key: float(term if isinstance(term, int) else term.varValue or 0.0) for key, term in terms.items()}
            for terms in (self._runs, self._kept)
        )
        return runs, kept

    def sequence(self) -> list[int]:
        """The ops of the point that the backend found, in execution order."""
        runs, _ = self.amounts()
        return stage_sequence(self.problem, (key for key, amount in runs.items() if amount > 0.5))

    def bound_ns(self, answer: Answer) -> int | None:
        """The backend's proven lower bound on the time of every point; None: it has proved none."""
        if answer.ended is Ended.OPTIMAL and not answer.relaxed:
            return sum(self.problem.ops[op].time_ns for op in self.sequence())
        if answer.bound is None:
            return None
        units = answer.bound - TOLERANCE * max(1.0, abs(answer.bound))
        step = gcd(*(op.time_ns for op in self.problem.ops)) or 1
        return self._once_ns + max(0, ceil(units * self._time_unit_ns / step)) * step

    def add_time_bound(self, time_ns: int) -> None:
        """Add the row that the time is at least `time_ns`, a bound that is proven already."""
        extra = (time_ns - self._once_ns) / self._time_unit_ns
        if extra > 0:
            self._row([(-c, v) for c, v in self._objective], TOLERANCE * extra - extra)

    def add_stage_memory(self, stage: int) -> None:
        """Add the rows (2) and (3) of a stage."""
        self.stages_with_memory.add(stage)
        if stage == self._tangents:
            for op in range(stage):
                self._row([(1, self._run(stage, op))], 0)
            return
        size = self._size
        pinned = self._pinned if stage >= self._forward_end else set()
        producer = self.problem.producer
        before: list[tuple[float, Term]] = [
            (size[v], self._keep(stage, v)) for v in self._computed if producer[v] < stage
        ]
        for op in range(min(stage + 1, self._count)):
            run = self._run(stage, op)
            if isinstance(run, int) and run == 0:
                continue
            outputs = self.problem.ops[op].outputs
            stored = sum(size[v] for v in outputs if v not in pinned)
            transient = sum(size[v] for v in outputs if v in pinned) + self._workspace[op]
            used = self.program.add_variable(f"U_{stage}_{op}", 0, self._room)
            self._row([(1, used), *((-c, v) for c, v in before), (-stored, run)], 0, equal=True)
            if transient:
                self._row([(1, used), (transient, run)], self._room)
            before = [(1, used)]
            if op < stage:
                has_several = len(outputs) > 1
                for value in (*self._inputs[op], *(outputs if has_several else ())):
                    if size[value] and value not in pinned and stage not in self.problem.consumers[value]:
                        before.append((-size[value], self._free(stage, value, op)))

    def _run(self, stage: int, op: int) -> Term:
        return 1 if stage == op else self._runs.get((stage, op), 0)

    def _keep(self, stage: int, value: int) -> Term:
        return self._kept.get((stage, value), 0)

    def _variables(self) -> None:
        producer = self.problem.producer
        for stage in range(self.stages):
            for op in range(min(stage, self._count)):
                if self.problem.ops[op].recomputable:
                    self._runs[stage, op] = self._binary(f"R_{stage}_{op}")
        for value in self._computed:
            for stage in range(producer[value] + 1, self.stages):
                pinned = value in self._pinned and stage >= self._forward_end
                self._kept[stage, value] = 1 if pinned else self._binary(f"S_{stage}_{value}")
            if value in self._results:
                self._kept[self.stages, value] = 1

    def _dependencies(self, stage: int) -> None:
        """Add the rows (1b) and (1c) of a stage."""
        producer = self.problem.producer
        for op in range(min(stage + 1, self._count)):
            run = self._run(stage, op)
            if isinstance(run, int) and run == 0:
                continue
            for value in self._inputs[op]:
                self._row([(1, run), (-1, self._run(stage, producer[value])), (-1, self._keep(stage, value))], 0)
        for value in self._computed:
            if producer[value] <= stage:
                computed, before = self._run(stage, producer[value]), self._keep(stage, value)
                self._row([(1, self._keep(stage + 1, value)), (-1, computed), (-1, before)], 0)

    def _moment(self, stage: int) -> None:
        """Add the row (4) of a stage."""
        used = {*self._inputs[stage], *self.problem.ops[stage].outputs}
        working_set = sum(self._size[v] for v in used) + self._workspace[stage]
        terms = [
            (self._size[v], self._keep(stage + 1, v))
            for v in self._computed
            if self.problem.producer[v] <= stage and v not in used
        ]
        self._row(terms, self._room - working_set)

    def _retain(self, limit: float, uncounted: frozenset[int]) -> None:
        """Add the row (5)."""
        assert self._tangents is not None
        kept = [v for v in self._computed if self.problem.producer[v] < self._tangents and v not in uncounted]
        self._row([(self._size[v], self._keep(self._tangents, v)) for v in kept], limit)

    def _free(self, stage: int, value: int, op: int) -> Term:
        """FREE[stage, value, op], with its row (3)."""
        later_reads = [self._run(stage, j) for j in self.problem.consumers[value] if op < j <= stage]
        hazards = [t for t in (self._keep(stage + 1, value), *later_reads) if not isinstance(t, int) or t]
        if any(isinstance(t, int) for t in hazards):
            return 0
        free = self._binary(f"FREE_{stage}_{value}_{op}")
        kappa = 1 + len(hazards)
        self._row([(kappa, free), (-1, self._run(stage, op)), *((1, t) for t in hazards)], kappa - 1)
        return free

    def _binary(self, name: str) -> Term:
        return self.program.add_variable(name, 0, 1, self._pulp.LpBinary)

    def _row(self, terms: list[tuple[float, Term]], upper: float, *, equal: bool = False) -> None:
        """Add the row: sum of coefficient * term <= upper, or = upper. Fixed terms go to the right."""
        unfixed = [(term, coefficient) for coefficient, term in terms if not isinstance(term, int)]
        upper -= sum(coefficient * term for coefficient, term in terms if isinstance(term, int))
        if not unfixed:
            if upper >= 0 and not (equal and upper):
                return
            self._impossible += 1
            zero = self.program.add_variable(f"never_{self._impossible}", 0, 0)
            unfixed, upper = [(zero, -1.0)], -1.0  # MPS files lose rows without variables
        left = self._pulp.LpAffineExpression(unfixed)
        self.program += left == upper if equal else left <= upper


def stage_sequence(problem: Problem, recomputations: Iterable[tuple[int, int]]) -> list[int]:
    """The op sequence of a frontier-advancing schedule, from the pairs (stage, op) of its recomputations."""
    count = len(problem.ops)
    pairs = sorted({*recomputations, *((op, op) for op in range(count))})
    return [op for _, op in pairs]


def _unit(numbers: list[int]) -> float:
    """The number to divide by, so that small integers stay integers and none is too large for a backend."""
    common = gcd(*numbers) or 1
    return max(float(common), max(numbers, default=0) / LARGEST_COEFFICIENT)
