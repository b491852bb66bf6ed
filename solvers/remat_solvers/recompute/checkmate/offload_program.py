"""A coarse integer program for recomputation and offloading; it chooses what to move, not exactly when.

Checkmate's program has a stage per op, which is too many for real graphs, and even for small ones with swapping on top.
Here a stage is a run of consecutive ops. Of the paper's variables R and S stay, those inside a stage (U, FREE) are left
out, and POET's host copies (Patil et al., ICML 2022: SSd, MIn, MOut) are added, as fractions. Moment k is the first
computation of its anchor, op b_k, with b_1 < ... < b_K the last op, and stage k is all that is computed after moment
k-1 up to moment k. The end of the step is one more moment, at which nothing is computed:

    R[i, k]   op i is computed (at least once) in stage k; 1 for the ops whose first computation is in stage k
    S[d, k]   value d is on the device at moment k; 1 for the inputs and outputs of b_k, and for results in the end
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

The program counts memory in K moments only, and inside a stage copies need no order. So its optimum is an estimate of
what the best plan does, mostly an optimistic one. It gives no bound; the plan that follows from it is replayed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.schedule import tangents_first
from remat_solvers.simulate import copy_ns
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended, minimise
from remat_solvers.toolkit.sequences.pruning import drop_useless
from remat_solvers.toolkit.transfers.intervals import Clock, IdleInterval, idle_intervals

SwapTime: TypeAlias = Literal["overlapped", "additive"]  # how the time of copies is counted, see above
Term: TypeAlias = Any  # a variable of PuLP, or 0 or 1 where it is fixed

HALF = 0.5
LARGEST = 10_000.0  # of the program's bytes and times: large against the backends' tolerances, small enough for them
MERGED_PART = 8  # moments that are nearer to each other than this part of a stage are merged
LONGEST_STEPS = 10.0  # that a copy is counted at most; longer ones are as useless
GAP = 5e-4  # of the step's time: a better point is not searched for
COPY_PRICE = 1e-3  # of a copy, as a part of its time
SMALLEST_PART = 2_000  # values below this part of the room are not swapped by the program


@dataclass(frozen=True, slots=True)
class OffloadChoice:
    """A point of the program in terms of the problem's ops."""

    sequence: list[int]
    offloaded: list[IdleInterval]  # of `sequence`
    time_ns: float  # of the program's account
    interrupted: bool  # by the user: no better point was searched for


def choose_moments(problem: Problem, used_bytes: Sequence[int], count: int) -> list[int]:
    """The anchors: the op of most memory in each of `count` slices of the ops, and the last op.

    The forward and the backward are sliced separately, by time; `used_bytes` has the bytes while each op runs.
    """
    clock = Clock(problem, range(len(problem.ops)))
    total, end = clock.starts[-1], len(problem.ops)
    boundary = len(problem.forward_ops)
    forward_slices = max(1, count // 2) if boundary else 0
    edges_ns = [clock.starts[boundary] * k // max(1, forward_slices) for k in range(forward_slices)]
    backward_slices = max(1, count - forward_slices)
    backward_ns = total - clock.starts[boundary]
    edges_ns += [clock.starts[boundary] + backward_ns * k // backward_slices for k in range(backward_slices)]
    edges = sorted({*(clock.first_ending_at(edge_ns) for edge_ns in edges_ns), boundary, end})
    highest = [max(range(a, b), key=lambda op: used_bytes[op]) for a, b in pairwise(edges) if a < b]
    near_ns = total // (MERGED_PART * count)

    def separate(op: int, following: int) -> bool:
        return clock.starts[following] - clock.starts[op] > near_ns or used_bytes[op] > used_bytes[following]

    return sorted({*(a for a, b in pairwise(highest) if separate(a, b)), highest[-1], end - 1})


def solve_offload_program(
    problem: Problem,
    room_bytes: int,
    anchors: Sequence[int],
    backend: Backend,
    *,
    swap_time: SwapTime,
    seconds: float | None,
) -> OffloadChoice | None:
    """The program's best point, expanded to the problem's ops; None: the backend found no point.

    `room_bytes` is the memory for activations and gradients: the budget without the static bytes.
    """
    program = OffloadProgram(problem, room_bytes, anchors, swap_time)
    answer = minimise(program.program, backend, seconds=seconds, gap=GAP * LARGEST)
    if answer.ended in (Ended.INFEASIBLE, Ended.UNKNOWN):
        if answer.interrupted:
            raise KeyboardInterrupt
        return None
    sequence = program.sequence()
    return OffloadChoice(sequence, program.offloaded(sequence), program.time_ns(), answer.interrupted)


class OffloadProgram:
    """The variables and rows of the program, and how its point is read."""

    def __init__(self, problem: Problem, room_bytes: int, anchors: Sequence[int], swap_time: SwapTime) -> None:
        import pulp

        assert problem.link is not None
        self._pulp = pulp
        self.problem = problem
        self.anchors = [*anchors, len(problem.ops)]
        self.stage_of = [bisect_left(self.anchors, op) for op in range(len(problem.ops))]
        self.program = pulp.LpProblem("moments", pulp.LpMinimize)
        values, link = problem.values, problem.link
        self.byte_unit = max(1.0, room_bytes / LARGEST)
        self.time_unit_ns = max(1.0, sum(op.time_ns for op in problem.ops) / LARGEST)
        self.size = [v.bytes / self.byte_unit for v in values]
        rates = link.to_host_bytes_per_s, link.to_device_bytes_per_s
        self.offload_units, self.fetch_units = (
            [min(copy_ns(v.bytes, rate, link.latency_ns) / self.time_unit_ns, LONGEST_STEPS * LARGEST) for v in values]
            for rate in rates
        )
        self.starts = Clock(problem, range(len(problem.ops))).starts
        self.computed = [v for v, producer in enumerate(problem.producer) if producer >= 0]
        self.last_stage = [max((self.stage_of[r] for r in readers), default=-1) for readers in problem.consumers]
        forward_results = set(problem.forward_results)
        self.pinned = forward_results if problem.backward_ops else set()
        self.results = {v for v in problem.results if problem.producer[v] >= 0}
        large = [v for v in self.computed if values[v].bytes * SMALLEST_PART >= room_bytes]
        self.swappable = [v for v in large if v not in forward_results]
        self.R: dict[tuple[int, int], Term] = {}
        self.S: dict[tuple[int, int], Term] = {}
        self.O: dict[tuple[int, int], Term] = {}
        self.P: dict[tuple[int, int], Term] = {}
        self.E: dict[tuple[int, int], Term] = {}
        self.W: list[Term] = []
        self._variables(swap_time)
        for stage in range(len(self.anchors)):
            self._dependencies(stage)
            self._memory(stage, room_bytes)
            if swap_time == "overlapped":
                self._copies(stage)
        if link.host_bytes is not None:
            self._row([(part, self.size[v]) for (v, _), part in self.O.items()], link.host_bytes / self.byte_unit)
        objective = [(run, problem.ops[op].time_ns / self.time_unit_ns) for (op, _), run in self.R.items()]
        objective += [(wait, 1.0) for wait in self.W]
        objective += [(part, self._copy_price(v)) for (v, _), part in self.O.items()]
        if swap_time == "additive":
            objective += [(part, self.offload_units[v]) for (v, _), part in self.O.items()]
            objective += [(fetch, self.fetch_units[v]) for (v, _), fetch in self.P.items()]
        self.program.setObjective(pulp.LpAffineExpression(objective))

    def _copy_price(self, value: int) -> float:
        """A small price of a copy, larger for later values: of equal choices, it prefers the value computed first."""
        start = self.starts[self.problem.producer[value]] / max(1, self.starts[-1])
        return COPY_PRICE * self.offload_units[value] * (1 + start)

    def _variables(self, swap_time: SwapTime) -> None:
        problem, count = self.problem, len(self.anchors)
        for op, stage in enumerate(self.stage_of):
            if problem.ops[op].recomputable:
                computes_result = any(v in self.results for v in problem.ops[op].outputs)
                for k in range(stage + 1, count - 1 + computes_result):
                    self.R[op, k] = self._variable(f"R_{op}_{k}")
        for value in self.computed:
            first = self.stage_of[problem.producer[value]]
            for k in range(first, count):
                ends = k == count - 1
                used = not ends and self._used(value, self.anchors[k])
                pinned = value in self.pinned and self.anchors[k] >= len(problem.forward_ops)
                if used or pinned or (ends and value in self.results):
                    self.S[value, k] = 1
                elif ends:
                    continue
                elif k < self.last_stage[value] or value in self.results or self._may_be_reread(value):
                    self.S[value, k] = self._variable(f"S_{value}_{k}")
        for value in self.swappable:
            first = self.stage_of[problem.producer[value]]
            last = count - 1 if value in self.results else self.last_stage[value]
            for k in range(first, min(last, count - 1)):
                self.O[value, k] = self._variable(f"O_{value}_{k}", whole=False)
                self.P[value, k + 1] = self._variable(f"P_{value}_{k + 1}")
                if swap_time == "overlapped":
                    self.E[value, k + 1] = self._variable(f"E_{value}_{k + 1}", whole=False)
        self.W = [self._variable(f"W_{k}", whole=False, upper=None) for k in range(count)]

    def _used(self, value: int, op: int) -> bool:
        return value in self.problem.ops[op].inputs or value in self.problem.ops[op].outputs

    def _may_be_reread(self, value: int) -> bool:
        """Whether an op that reads the value may be recomputed."""
        return any(self.problem.ops[reader].recomputable for reader in self.problem.consumers[value])

    def _run(self, op: int, stage: int) -> Term:
        return 1 if self.stage_of[op] == stage else self.R.get((op, stage), 0)

    def _sources(self, value: int, stage: int) -> list[Term]:
        """The terms by which a value is resident in a stage without a fetch: kept before it, or computed in it."""
        return [self.S.get((value, stage - 1), 0), self._run(self.problem.producer[value], stage)]

    def _dependencies(self, stage: int) -> None:
        problem = self.problem
        for op in range(len(problem.ops)):
            run = self._run(op, stage)
            if isinstance(run, int) and run == 0:
                continue
            for value in dict.fromkeys(problem.ops[op].inputs):
                if problem.producer[value] >= 0:
                    self._at_most(run, [*self._sources(value, stage), self.P.get((value, stage), 0)])
        for value in self.computed:
            self._at_most(self.S.get((value, stage), 0), [*self._sources(value, stage), self.P.get((value, stage), 0)])
            self._at_most(self.O.get((value, stage), 0), self._sources(value, stage))
            fetch = self.P.get((value, stage), 0)
            before = [self.O[value, k] for k in range(stage) if (value, k) in self.O]
            self._at_most(fetch, before)
            self._at_most(self.E.get((value, stage), 0), [fetch])
            if before and stage == self.last_stage[value]:
                self._row([(part, 1.0) for part in before], 1.0)

    def _memory(self, stage: int, room_bytes: int) -> None:
        terms = [(self.S[v, stage], self.size[v]) for v in self.computed if (v, stage) in self.S]
        terms += [(self.E[v, stage + 1], self.size[v]) for v in self.swappable if (v, stage + 1) in self.E]
        workspace = sum(op.workspace_bytes for op in self.problem.ops[self.anchors[stage] : self.anchors[stage] + 1])
        self._row(terms, (room_bytes - workspace) / self.byte_unit)

    def _copies(self, stage: int) -> None:
        ops = self.problem.ops
        once = sum(ops[op].time_ns for op, k in enumerate(self.stage_of) if k == stage) / self.time_unit_ns
        work = [(run, -ops[op].time_ns / self.time_unit_ns) for (op, k), run in self.R.items() if k == stage]
        work.append((self.W[stage], -1.0))
        out = [(part, self.offload_units[v]) for (v, k), part in self.O.items() if k == stage]
        back = [(fetch, self.fetch_units[v]) for (v, k), fetch in self.P.items() if k == stage]
        back += [(early, -self.fetch_units[v]) for (v, k), early in self.E.items() if k == stage]
        back += [(early, self.fetch_units[v]) for (v, k), early in self.E.items() if k == stage + 1]
        self._row([*out, *work], once)
        self._row([*back, *work], once)

    def _variable(self, name: str, *, whole: bool = True, upper: float | None = 1) -> Term:
        return self.program.add_variable(name, 0, upper, self._pulp.LpBinary if whole else self._pulp.LpContinuous)

    def _at_most(self, left: Term, right: list[Term]) -> None:
        """Add the row: left <= sum of right."""
        if isinstance(left, int) and left == 0:
            return
        fixed = sum(t for t in right if isinstance(t, int)) - (left if isinstance(left, int) else 0)
        if fixed >= 1 or (fixed == 0 and isinstance(left, int) and not any(not isinstance(t, int) for t in right)):
            return
        terms = [(t, -1.0) for t in right if not isinstance(t, int)]
        self._row([*terms, *([] if isinstance(left, int) else [(left, 1.0)])], float(fixed))

    def _row(self, terms: list[tuple[Term, float]], upper: float) -> None:
        """Add the row: sum of term * coefficient <= upper. Fixed terms go to the right."""
        unfixed = [(t, c) for t, c in terms if not isinstance(t, int)]
        upper -= sum(t * c for t, c in terms if isinstance(t, int))
        if unfixed:
            self.program += self._pulp.LpAffineExpression(unfixed) <= upper

    def time_ns(self) -> float:
        """The time of the point found, first computations included."""
        return float(self._pulp.value(self.program.objective)) * self.time_unit_ns + sum(
            op.time_ns for op in self.problem.ops
        )

    def _holds(self, terms: dict[tuple[int, int], Term], key: tuple[int, int]) -> bool:
        term = terms.get(key, 0)
        return bool(term if isinstance(term, int) else (term.varValue or 0.0) > HALF)

    def sequence(self) -> list[int]:
        """The op sequence, stage by stage: a value is recomputed before its reader if neither resident nor fetched."""
        problem = self.problem
        sequence: list[int] = []
        resident: set[int] = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
        constants = frozenset(resident)

        def missing(values: Iterable[int], stage: int) -> list[int]:
            """The ops to recompute for those of `values` that are not resident; the other ones are fetched."""
            recomputed = []
            for value in values:
                producer = problem.producer[value]
                if value not in resident:
                    if not self._holds(self.P, (value, stage)) and problem.ops[producer].recomputable:
                        recomputed.append(producer)
                    else:
                        resident.add(value)
            return recomputed

        def compute(ops: Sequence[int], stage: int) -> None:
            stack = list(ops)[::-1]
            while stack:
                before = missing(problem.ops[stack[-1]].inputs, stage)
                stack += before
                if not before:
                    sequence.append(stack.pop())
                    resident.update(problem.ops[sequence[-1]].outputs)

        first = 0
        for stage, last in enumerate(self.anchors):
            compute(range(first, min(last + 1, len(problem.ops))), stage)
            first = last + 1
            kept = [v for v in self.computed if self._holds(self.S, (v, stage))]
            if first != len(problem.forward_ops) or not problem.backward_ops:
                for value in kept:
                    compute(missing([value], stage), stage)
            resident = {*constants, *kept}
        return list(tangents_first(problem, drop_useless(problem, sequence)))

    def offloaded(self, sequence: Sequence[int]) -> list[IdleInterval]:
        """The idle intervals that cover a moment at which the program has their value off the device."""
        first: dict[int, int] = {}  # op -> position of its first computation
        for position, op in enumerate(sequence):
            first.setdefault(op, position)
        moments = [first[op] for op in self.anchors[:-1]]
        return [
            i
            for i in idle_intervals(self.problem, sequence)
            if any(
                i.last < moment < i.back and not self._holds(self.S, (i.value, k)) for k, moment in enumerate(moments)
            )
        ]
