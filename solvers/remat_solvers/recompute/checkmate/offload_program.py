"""Recompute and swap in one integer program over a few moments, with copies that flow: what to do, not yet when.

Checkmate's program has a stage per op, which is too many for real graphs, and even for small ones with swapping on top.
Here a stage is a run of consecutive ops. Of the paper's variables R and S stay, those inside a stage (U, FREE) go, and
POET's host copies (Patil et al., ICML 2022: SSd, MIn, MOut) join them, as fractions. With moment k the first run of op
b_k, b_1 < ... < b_K the last op, and stage k what runs after moment k-1 up to moment k; the end of the step is one more
moment, at which nothing runs:

    R[i, k]   op i runs (at least once) in stage k; 1 for the ops that stage k has to run first
    S[d, k]   value d is on the device at moment k; 1 for what b_k reads and makes, and for results in the end
    O[d, k]   part of d that is copied to the host in stage k, of 0..1
    P[d, k]   d is fetched for stage k
    E[d, k]   part of that fetch that runs in stage k-1 already, and has bytes at moment k-1; E <= P
    W[k]      time that stage k waits for copies

    minimise  sum of time(i) R[i, k] + sum of W[k]   subject to
    S[d, k] <= S[d, k-1] + R[p(d), k] + P[d, k]
    R[i, k] <= S[d, k-1] + R[p(d), k] + P[d, k]                          for every value d that op i reads
    O[d, k] <= S[d, k-1] + R[p(d), k]
    P[d, k] <= O[d, 1] + ... + O[d, k-1] <= 1
    sum of bytes(d) (S[d, k] + E[d, k+1]) + workspace(b_k) <= room
    sum of to_host_ns(d) O[d, k]                          <= sum of time(i) R[i, k] + W[k]
    sum of to_device_ns(d) (P[d, k] - E[d, k] + E[d, k+1]) <= sum of time(i) R[i, k] + W[k]

with p(d) the producer of d. `additive` has no W and no rows of it, and the times of all copies in the objective, as
POET counts them.

Memory is looked at in K moments only, and inside a stage copies need no order. So the optimum is a guess at what the
best plan does, mostly an optimistic one. No bound is read off it; the plan made from it is replayed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.recompute.checkmate.solver import SwapTime
from remat_solvers.schedule import tangents_first
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended, minimise
from remat_solvers.toolkit.sequences.pruning import drop_useless
from remat_solvers.toolkit.transfers.intervals import Absence, Clock, absences

__all__ = ["Choice", "choose", "moments"]

Term: TypeAlias = Any  # a variable of PuLP, or 0 or 1 where it is fixed
HALF = 0.5
LARGEST = 10_000.0  # of the program's bytes and times: large against the backends' tolerances, small enough for them
NEAR = 8  # moments that are nearer to each other than this part of a stage are one
LONGEST = 10.0  # steps that a copy is counted at most; longer ones are as useless
WITHIN = 5e-4  # of the step's time: a better point is not searched for
PRICE = 1e-3  # of a copy, as a part of its time
SMALLEST_PART = 2_000  # values below this part of the room are not swapped by the program


@dataclass(frozen=True, slots=True)
class Choice:
    """What the program says, in terms of the problem's ops."""

    sequence: list[int]
    away: list[Absence]
    time_ns: float  # of the program's account
    interrupted: bool  # by the user: no better point was searched for


def moments(problem: Problem, profile: Sequence[int], count: int) -> list[int]:
    """The op of most memory in each of `count` slices of the ops, and the last op.

    The forward and the backward are sliced apart, by time; `profile` has the bytes while each op runs.
    """
    clock = Clock(problem, range(len(problem.ops)))
    total, end = clock.starts[-1], len(problem.ops)
    turn = len(problem.forward_ops)
    ahead = max(1, count // 2) if turn else 0
    edges = [clock.starts[turn] * k // max(1, ahead) for k in range(ahead)]
    behind = max(1, count - ahead)
    edges += [clock.starts[turn] + (total - clock.starts[turn]) * k // behind for k in range(behind)]
    places = sorted({*(clock.first_ending_at(edge) for edge in edges), turn, end})
    highest = [max(range(a, b), key=lambda op: profile[op]) for a, b in pairwise(places) if a < b]
    apart = total // (NEAR * count)
    far = [a for a, b in pairwise(highest) if clock.starts[b] - clock.starts[a] > apart or profile[a] > profile[b]]
    return sorted({*far, highest[-1], end - 1})


def choose(
    problem: Problem,
    room_bytes: int,
    at: Sequence[int],
    backend: Backend,
    *,
    swap_time: SwapTime,
    seconds: float | None,
) -> Choice | None:
    """The program's best point, expanded to the problem's ops; None: the backend found no point.

    `room_bytes` is what activations and gradients may have; `at` are the moments' ops.
    """
    program = _Program(problem, room_bytes, at, swap_time)
    answer = minimise(program.program, backend, seconds=seconds, gap=WITHIN * LARGEST)
    if answer.ended in (Ended.INFEASIBLE, Ended.UNKNOWN):
        if answer.interrupted:
            raise KeyboardInterrupt
        return None
    sequence = program.expanded()
    return Choice(sequence, program.away(sequence), program.time_ns(), answer.interrupted)


class _Program:
    def __init__(self, problem: Problem, room_bytes: int, at: Sequence[int], swap_time: SwapTime) -> None:
        import pulp

        assert problem.link is not None
        self._pulp = pulp
        self.problem = problem
        self.at = [*at, len(problem.ops)]
        self.stage_of = [bisect_left(self.at, op) for op in range(len(problem.ops))]
        self.program = pulp.LpProblem("moments", pulp.LpMinimize)
        values, link = problem.values, problem.link
        self.unit = max(1.0, room_bytes / LARGEST)
        self.ns = max(1.0, sum(op.time_ns for op in problem.ops) / LARGEST)
        self.size = [v.bytes / self.unit for v in values]
        rates = link.to_host_bytes_per_s, link.to_device_bytes_per_s
        self.out_ns, self.back_ns = (
            [min(copy_ns(v.bytes, rate, link.latency_ns) / self.ns, LONGEST * LARGEST) for v in values]
            for rate in rates
        )
        self.starts = Clock(problem, range(len(problem.ops))).starts
        self.made = [v for v, producer in enumerate(problem.producer) if producer >= 0]
        self.last_stage = [max((self.stage_of[r] for r in readers), default=-1) for readers in problem.consumers]
        forward = {v for v in problem.results if problem.producer[v] >= 0 and self._forward(v)}
        self.pinned = forward if problem.backward_ops else set()
        self.results = {v for v in problem.results if problem.producer[v] >= 0}
        self.swappable = [v for v in self.made if values[v].bytes * SMALLEST_PART >= room_bytes and v not in forward]
        self.R: dict[tuple[int, int], Term] = {}
        self.S: dict[tuple[int, int], Term] = {}
        self.O: dict[tuple[int, int], Term] = {}
        self.P: dict[tuple[int, int], Term] = {}
        self.E: dict[tuple[int, int], Term] = {}
        self.W: list[Term] = []
        self._variables(swap_time)
        for stage in range(len(self.at)):
            self._dependencies(stage)
            self._memory(stage, room_bytes)
            if swap_time == "overlapped":
                self._copies(stage)
        if link.host_bytes is not None:
            self._row([(part, self.size[v]) for (v, _), part in self.O.items()], link.host_bytes / self.unit)
        objective = [(run, problem.ops[op].time_ns / self.ns) for (op, _), run in self.R.items()]
        objective += [(wait, 1.0) for wait in self.W]
        objective += [(part, self._haste(v)) for (v, _), part in self.O.items()]
        if swap_time == "additive":
            objective += [(part, self.out_ns[v]) for (v, _), part in self.O.items()]
            objective += [(fetch, self.back_ns[v]) for (v, _), fetch in self.P.items()]
        self.program.setObjective(pulp.LpAffineExpression(objective))

    def _forward(self, value: int) -> bool:
        return self.problem.ops[self.problem.producer[value]].phase == "forward"

    def _haste(self, value: int) -> float:
        """A small price of a copy, larger for what is made later: of equal choices, the one that is copied first."""
        made = self.starts[self.problem.producer[value]] / max(1, self.starts[-1])
        return PRICE * self.out_ns[value] * (1 + made)

    def _variables(self, swap_time: SwapTime) -> None:
        problem, count = self.problem, len(self.at)
        for op, stage in enumerate(self.stage_of):
            if problem.ops[op].recomputable:
                makes_result = any(v in self.results for v in problem.ops[op].outputs)
                for k in range(stage + 1, count - 1 + makes_result):
                    self.R[op, k] = self._variable(f"R_{op}_{k}")
        for value in self.made:
            made = self.stage_of[problem.producer[value]]
            for k in range(made, count):
                ends = k == count - 1
                used = not ends and self._used(value, self.at[k])
                pinned = value in self.pinned and self.at[k] >= len(problem.forward_ops)
                if used or pinned or (ends and value in self.results):
                    self.S[value, k] = 1
                elif ends:
                    continue
                elif k < self.last_stage[value] or value in self.results or self._wanted_again(value):
                    self.S[value, k] = self._variable(f"S_{value}_{k}")
        for value in self.swappable:
            made = self.stage_of[problem.producer[value]]
            last = count - 1 if value in self.results else self.last_stage[value]
            for k in range(made, min(last, count - 1)):
                self.O[value, k] = self._variable(f"O_{value}_{k}", whole=False)
                self.P[value, k + 1] = self._variable(f"P_{value}_{k + 1}")
                if swap_time == "overlapped":
                    self.E[value, k + 1] = self._variable(f"E_{value}_{k + 1}", whole=False)
        self.W = [self._variable(f"W_{k}", whole=False, most=None) for k in range(count)]

    def _used(self, value: int, op: int) -> bool:
        known = self.problem.ops[op]
        return value in known.inputs or value in known.outputs

    def _wanted_again(self, value: int) -> bool:
        """Whether an op that reads the value may run again."""
        return any(self.problem.ops[reader].recomputable for reader in self.problem.consumers[value])

    def _run(self, op: int, stage: int) -> Term:
        return 1 if self.stage_of[op] == stage else self.R.get((op, stage), 0)

    def _had(self, value: int, stage: int) -> list[Term]:
        """Where a value may come from in a stage."""
        return [self.S.get((value, stage - 1), 0), self._run(self.problem.producer[value], stage)]

    def _dependencies(self, stage: int) -> None:
        problem = self.problem
        for op in range(len(problem.ops)):
            run = self._run(op, stage)
            if isinstance(run, int) and run == 0:
                continue
            for value in dict.fromkeys(problem.ops[op].inputs):
                if problem.producer[value] >= 0:
                    self._at_most(run, [*self._had(value, stage), self.P.get((value, stage), 0)])
        for value in self.made:
            self._at_most(self.S.get((value, stage), 0), [*self._had(value, stage), self.P.get((value, stage), 0)])
            self._at_most(self.O.get((value, stage), 0), self._had(value, stage))
            fetch = self.P.get((value, stage), 0)
            before = [self.O[value, k] for k in range(stage) if (value, k) in self.O]
            self._at_most(fetch, before)
            self._at_most(self.E.get((value, stage), 0), [fetch])
            if before and stage == self.last_stage[value]:
                self._row([(part, 1.0) for part in before], 1.0)

    def _memory(self, stage: int, room_bytes: int) -> None:
        terms = [(self.S[v, stage], self.size[v]) for v in self.made if (v, stage) in self.S]
        terms += [(self.E[v, stage + 1], self.size[v]) for v in self.swappable if (v, stage + 1) in self.E]
        workspace = sum(op.workspace_bytes for op in self.problem.ops[self.at[stage] : self.at[stage] + 1])
        self._row(terms, (room_bytes - workspace) / self.unit)

    def _copies(self, stage: int) -> None:
        ops = self.problem.ops
        once = sum(ops[op].time_ns for op, k in enumerate(self.stage_of) if k == stage) / self.ns
        work = [(run, -ops[op].time_ns / self.ns) for (op, k), run in self.R.items() if k == stage]
        work.append((self.W[stage], -1.0))
        out = [(part, self.out_ns[v]) for (v, k), part in self.O.items() if k == stage]
        back = [(fetch, self.back_ns[v]) for (v, k), fetch in self.P.items() if k == stage]
        back += [(early, -self.back_ns[v]) for (v, k), early in self.E.items() if k == stage]
        back += [(early, self.back_ns[v]) for (v, k), early in self.E.items() if k == stage + 1]
        self._row([*out, *work], once)
        self._row([*back, *work], once)

    def _variable(self, name: str, *, whole: bool = True, most: float | None = 1) -> Term:
        return self.program.add_variable(name, 0, most, self._pulp.LpBinary if whole else self._pulp.LpContinuous)

    def _at_most(self, left: Term, right: list[Term]) -> None:
        """left <= sum of right."""
        if isinstance(left, int) and left == 0:
            return
        fixed = sum(t for t in right if isinstance(t, int)) - (left if isinstance(left, int) else 0)
        if fixed >= 1 or (fixed == 0 and isinstance(left, int) and not any(not isinstance(t, int) for t in right)):
            return
        terms = [(t, -1.0) for t in right if not isinstance(t, int)]
        self._row([*terms, *([] if isinstance(left, int) else [(left, 1.0)])], float(fixed))

    def _row(self, terms: list[tuple[Term, float]], most: float) -> None:
        free = [(t, c) for t, c in terms if not isinstance(t, int)]
        most -= sum(t * c for t, c in terms if isinstance(t, int))
        if free:
            self.program += self._pulp.LpAffineExpression(free) <= most

    def time_ns(self) -> float:
        """Of the point found, ops that run once included."""
        return float(self._pulp.value(self.program.objective)) * self.ns + sum(op.time_ns for op in self.problem.ops)

    def _says(self, terms: dict[tuple[int, int], Term], key: tuple[int, int]) -> bool:
        term = terms.get(key, 0)
        return bool(term if isinstance(term, int) else (term.varValue or 0.0) > HALF)

    def expanded(self) -> list[int]:
        """The op sequence: stage by stage, what is not there and is not fetched runs again where it is needed."""
        problem = self.problem
        sequence: list[int] = []
        there: set[int] = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
        constants = frozenset(there)

        def missing(values: Iterable[int], stage: int) -> list[int]:
            """The ops that have to run again for what is not there; the rest of it is fetched."""
            again = []
            for value in values:
                producer = problem.producer[value]
                if value not in there:
                    if not self._says(self.P, (value, stage)) and problem.ops[producer].recomputable:
                        again.append(producer)
                    else:
                        there.add(value)
            return again

        def perform(ops: Sequence[int], stage: int) -> None:
            waiting = list(ops)[::-1]
            while waiting:
                before = missing(problem.ops[waiting[-1]].inputs, stage)
                waiting += before
                if not before:
                    sequence.append(waiting.pop())
                    there.update(problem.ops[sequence[-1]].outputs)

        first = 0
        for stage, last in enumerate(self.at):
            perform(range(first, min(last + 1, len(problem.ops))), stage)
            first = last + 1
            stays = [v for v in self.made if self._says(self.S, (v, stage))]
            if first != len(problem.forward_ops) or not problem.backward_ops:
                for value in stays:
                    perform(missing([value], stage), stage)
            there = {*constants, *stays}
        return list(tangents_first(problem, drop_useless(problem, sequence)))

    def away(self, sequence: Sequence[int]) -> list[Absence]:
        """The absences that cover a moment at which the program has their value off the device."""
        seen: dict[int, int] = {}
        for position, op in enumerate(sequence):
            seen.setdefault(op, position)
        places = [seen[op] for op in self.at[:-1]]
        return [
            a
            for a in absences(self.problem, sequence)
            if any(a.last < place < a.back and not self._says(self.S, (a.value, k)) for k, place in enumerate(places))
        ]
