"""States the relaxation that a certificate is about, row by row, from the meaning of the problem alone.

Take any plan without offload within the budget, and any ops a_0, ..., a_(m-1) that are computed first one after
the other: in the given order, ops of rising index; in any order, ops of which each depends on the one before (through
values, through effects, whose first computations keep the problem's order, or as backward ops depend on forward ops).
Moment k is the first computation of a_k, moment m the end of the step; stage k lasts from after moment k-1 to moment k,
included. Set

    stay(d, k) = 1 where value d is on the device at moment k (during the run)
    run(v, i, j) = 1 where op v is computed in stages i to j, once or more

Op v is computed first in a stage from low(v) to high(v). In the given order this is the one stage that the op belongs
to. In any order it is not before the stage after the last moment that v depends on, and not after the first moment that
depends on v. Then, with p the op that produces d, these rows hold for the 0/1 values above, whatever the plan:

    memory(k)             bytes of all d with stay(d, k), constants, reserve and workspace of a_k <= budget
    stay(d, i, j)         stay(d, j) <= stay(d, i-1) + run(p, i, j)        it was resident, or was computed since
    input(v, d, i, j)     run(v, i, j) <= stay(d, i-1) + run(p, i, j)      for every d that v reads
    inside(v, i, j, f, l) run(v, f, l) <= run(v, i, j)                     stages f..l are among i..j
    split(v, i, s.., j)   run(v, i, j) <= run(v, i, s-1) + ... + run(v, s, j)    of parts one after the other
    once(v)               1 <= sum of run(v, k, k) over the stages low..high
    only(v)               sum of run(v, k, k) over the stages low..high <= 1, where v is not recomputable

and these values are known (stay(d, -1) = 0):

    stay(d, k) = 1    d is read or produced by a_k; k = m and d is a result; d is a result of the forward and every
                      forward op has run by moment k (from then on it belongs to the caller)
    stay(d, k) = 0    low(p) > k
    run(v, i, j) = 1  i <= low(v) and high(v) <= j
    run(v, i, j) = 0  low(v) > j; v is not recomputable and high(v) < i

At its first computation no output of a_k is resident already, so memory(k) counts the same bytes as the replay. The
plan's time is at least the sum of time(v) run(v, k, k), since each run counted is one that happens.

Only check.py reads certificates with this file; it shares no code with the prover (optimal/certify.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from remat_solvers.errors import CertificateError
from remat_solvers.problem import Problem
from remat_solvers.result import Certificate, Order

Variable: TypeAlias = tuple[str, tuple[int, ...]]  # ("stay", (d, k)) or ("run", (v, i, j))
Row: TypeAlias = tuple[dict[Variable, int], int]  # coefficients and constant of g(x) >= 0


@dataclass(frozen=True)
class Relaxation:
    """Rows and variables of one certificate. Raises CertificateError for ops or stages that it may not have."""

    problem: Problem
    certificate: Certificate

    def __post_init__(self) -> None:
        at, ops = self.certificate.at, len(self.problem.ops)
        for k, op in enumerate(at):
            if op >= ops:
                raise CertificateError(f"at[{k}]: there is no op {op}, the problem has {ops}")
        for k in range(1, len(at)):
            if not self._comes_before(at[k - 1], at[k]):
                raise CertificateError(f"at[{k}]: op {at[k]} need not be computed first after op {at[k - 1]}")
        for k, (first, last) in enumerate(self.certificate.intervals):
            if not first < last <= len(at):
                raise CertificateError(f"intervals[{k}]: {first} to {last} is no run of stages; they end at {len(at)}")

    @property
    def last(self) -> int:
        """The moment at the end of the step, and the stage that leads to it."""
        return len(self.certificate.at)

    # The order of first computations

    @cached_property
    def _before(self) -> list[list[int]]:
        """Per op, the ops that must run directly before it: producers of its inputs, and the op of the last effect."""
        before: list[list[int]] = []
        effect: int | None = None
        for index, op in enumerate(self.problem.ops):
            direct = [self.problem.producer[d] for d in op.inputs if self.problem.producer[d] >= 0]
            if op.effects:
                direct += [] if effect is None else [effect]
                effect = index
            before.append(direct)
        return before

    @cached_property
    def _ancestors(self) -> list[set[int]]:
        """Per op of `at` all ops whose first computation comes before its own in every plan of the order."""
        ancestors = []
        for op in self.certificate.at:
            if self.certificate.order is Order.GIVEN:
                ancestors.append(set(range(op)))
                continue
            ancestors.append(_reach(op, self._before, self._phase("backward"), self.problem.forward_ops))
        return ancestors

    def _phase(self, phase: str) -> list[bool]:
        return [op.phase == phase for op in self.problem.ops]

    def _comes_before(self, op: int, then: int) -> bool:
        return op in self._ancestors[self.certificate.at.index(then)] and op != then

    @cached_property
    def high(self) -> list[int]:
        """Per op the last stage in which it may be computed first: that of the first moment which depends on it."""
        high = [self.last] * len(self.problem.ops)
        for k in reversed(range(self.last)):
            for op in (*self._ancestors[k], self.certificate.at[k]):
                high[op] = k
        return high

    @cached_property
    def low(self) -> list[int]:
        """Per op the first stage in which it may be computed first: the one after the last moment it depends on."""
        at, given = self.certificate.at, self.certificate.order is Order.GIVEN
        if given:
            return [sum(op > a for a in at) for op in range(len(self.problem.ops))]
        after: list[list[int]] = [[] for _ in self.problem.ops]
        for op, direct in enumerate(self._before):
            for u in direct:
                after[u].append(op)
        low = [0] * len(self.problem.ops)
        for k, start in enumerate(at):
            for op in _reach(start, after, self._phase("forward"), self.problem.backward_ops):
                low[op] = k + 1
        return low

    # Variables

    @cached_property
    def _forward_results(self) -> frozenset[int]:
        producer, ops = self.problem.producer, self.problem.ops
        return frozenset(d for d in self.problem.results if producer[d] >= 0 and ops[producer[d]].phase == "forward")

    @cached_property
    def _certain(self) -> list[set[int]]:
        """Per moment the values that are on the device then in every plan."""
        ops, producer = self.problem.ops, self.problem.producer
        forward_ends = max((self.high[op] for op in self.problem.forward_ops), default=0)
        certain = [{*ops[op].inputs, *ops[op].outputs} for op in self.certificate.at]
        certain.append(set(self.problem.results))
        return [
            {d for d in values | (self._forward_results if k >= forward_ends else set()) if producer[d] >= 0}
            for k, values in enumerate(certain)
        ]

    def box(self, variable: Variable) -> tuple[int, int]:
        """The smallest and the largest number that a variable can be, by the known values."""
        kind, indices = variable
        if kind == "stay":
            value, moment = indices
            if value in self._certain[moment]:
                return 1, 1
            return 0, int(self.low[self.problem.producer[value]] <= moment)
        op, first, last = indices
        if first <= self.low[op] and self.high[op] <= last:
            return 1, 1
        may_run = self.problem.ops[op].recomputable or first <= self.high[op]
        return 0, int(self.low[op] <= last and may_run)

    def exists(self, variable: Variable) -> bool:
        """Whether the relaxation has such a variable."""
        kind, indices = variable
        if kind == "stay":
            value, moment = indices
            return value < len(self.problem.values) and self.problem.producer[value] >= 0 and moment <= self.last
        op, first, last = indices
        stages_exist = first == last <= self.last or (first, last) in self._intervals
        return 0 <= op < len(self.problem.ops) and stages_exist  # -1 is the producer of constants

    @cached_property
    def _intervals(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.certificate.intervals)

    # Rows

    def row(self, kind: str, indices: tuple[int, ...]) -> Row:
        """The row g(x) >= 0 of that name. Raises CertificateError where there is none."""
        terms: list[tuple[Variable, int]] = []
        constant = 0
        if kind == "memory":
            (moment,) = indices
            problem = self.problem
            constant = self.certificate.budget_bytes - problem.constant_bytes - problem.reserve_bytes
            if moment < self.last:
                constant -= problem.ops[self.certificate.at[moment]].workspace_bytes
            terms = [
                (("stay", (d, moment)), -value.bytes)
                for d, value in enumerate(problem.values)
                if value.kind != "constant" and moment <= self.last
            ]
            if moment > self.last:
                raise CertificateError(f"multipliers: there is no row memory {indices}")
        elif kind in ("stay", "input"):
            value, first, last = indices[-3:]
            reader = ("stay", (value, last)) if kind == "stay" else ("run", (indices[0], first, last))
            if value >= len(self.problem.values) or (
                kind == "input" and (not self.exists(reader) or value not in self.problem.ops[indices[0]].inputs)
            ):
                raise CertificateError(f"multipliers: there is no row {kind} {indices}")
            terms = [(reader, -1), (("run", (self.problem.producer[value], first, last)), 1)]
            terms += [(("stay", (value, first - 1)), 1)] if first else []
        elif kind == "inside":
            op, first, last, from_, to = indices
            if not first <= from_ <= to <= last:
                raise CertificateError(f"multipliers: there is no row inside {indices}")
            terms = [(("run", (op, first, last)), 1), (("run", (op, from_, to)), -1)]
        elif kind == "split":
            op, *starts, last = indices
            ends = [start - 1 for start in starts[1:]] + [last]
            if any(first > end for first, end in zip(starts, ends, strict=True)):
                raise CertificateError(f"multipliers: there is no row split {indices}")
            terms = [(("run", (op, first, end)), 1) for first, end in zip(starts, ends, strict=True)]
            terms.append((("run", (op, starts[0], last)), -1))
        else:
            (op,) = indices
            if op >= len(self.problem.ops) or (kind == "only" and self.problem.ops[op].recomputable):
                raise CertificateError(f"multipliers: there is no row {kind} {indices}")
            sign = 1 if kind == "once" else -1
            terms = [(("run", (op, k, k)), sign) for k in range(self.low[op], self.high[op] + 1)]
            constant = -sign
        coefficients: dict[Variable, int] = {}
        for variable, coefficient in terms:
            if not self.exists(variable):
                raise CertificateError(f"multipliers: row {kind} {indices} has no {variable[0]} {variable[1]}")
            coefficients[variable] = coefficients.get(variable, 0) + coefficient
        return coefficients, constant

    # All rows
    def rows(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names of all rows of the relaxation; of the splits only those into single stages."""
        moments = range(self.last + 1)
        yield from (("memory", (k,)) for k in moments)
        values = [d for d, producer in enumerate(self.problem.producer) if producer >= 0]
        reads = [
            (v, d)
            for v, op in enumerate(self.problem.ops)
            for d in dict.fromkeys(op.inputs)
            if self.problem.producer[d] >= 0
        ]
        for first, last in (*((k, k) for k in moments), *sorted(self._intervals)):
            yield from (("stay", (d, first, last)) for d in values)
            yield from (("input", (v, d, first, last)) for v, d in reads)
        for v, op in enumerate(self.problem.ops):
            yield "once", (v,)
            if not op.recomputable:
                yield "only", (v,)
            for first, last in sorted(self._intervals):
                yield "split", (v, *range(first, last + 1), last)
                yield from (("inside", (v, first, last, k, k)) for k in range(first, last + 1))


def _reach(start: int, steps: list[list[int]], leaps: list[bool], all_of: tuple[int, ...]) -> set[int]:
    """Ops reached from `start` by one step or more; an op with `leaps` also steps to every op of `all_of`."""
    seen: set[int] = set()
    stack = [start]
    leapt = False
    while stack:
        op = stack.pop()
        reached = list(steps[op])
        if leaps[op] and not leapt:
            leapt = True
            reached += all_of
        stack += [u for u in reached if u not in seen]
        seen.update(reached)
    return seen - {start}
