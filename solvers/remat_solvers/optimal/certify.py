"""Writes certificates, with which anyone can check a bound without trust in any of the solvers.

The program is that of program/program.py, relaxed to an LP, with rows named as in certificates/rows.py. Its dual
solution, read off HiGHS, is a list of weights of rows, and any such list proves a bound by weak duality (Checkmate's
relaxation as in Jain et al. 2020, arXiv 1910.02653, section 4.5, over few stages). The checker computes in exact
arithmetic how much it proves: a solver's tolerance can cost a nanosecond, never the truth.

A second LP proves that no plan fits: it minimises the bytes by which the memory rows must be exceeded. Its weights
prove every smaller budget infeasible as well, so it also gives floors under the peak of every plan.

Variables that no optimum needs have no column here (`Stages.last_use`); leaving them out lowers no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from remat_solvers.certificates.check import proven_ns
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.program import ONE, ZERO
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.problem import Problem
from remat_solvers.result import Certificate, Leaf, Order
from remat_solvers.toolkit.programs.highs import new_highs
from remat_solvers.toolkit.programs.rows import Rows

Interval: TypeAlias = tuple[int, int]
Name: TypeAlias = tuple[str, tuple[int, ...]]

INTEGER = 1e-9  # relative distance to an integer below which a weight is rounded to it
COST_UNITS = 1e4  # the time of the step, or the bytes of the memory rows: far above HiGHS's tolerances


def certify(
    problem: Problem,
    budget_bytes: int,
    *,
    order: Order,
    at: Sequence[int],
    intervals: Sequence[Interval] = (),
    seconds: float | None = None,
) -> Certificate:
    """Evidence for the bound that the relaxation over the moments `at` gives on the time of plans within the budget.

    at: ops whose first computations come one after the other in every plan of the order; intervals: first and last
    stage (from 0 to len(at)) of series of stages whose recomputations are counted together, which strengthens the
    bound. If the relaxation has no point the certificate proves that no plan fits. After `seconds` the LP stops, and
    the certificate proves less. Raises InputError for `at` that the order does not allow.
    """
    program = RelaxedProgram(problem, budget_bytes, order, at, intervals)
    certificate = program.certificate(program.multipliers(excess=False, seconds=seconds))
    if certificate.bound_ns is not None and not program.solved:
        other = program.certificate(program.multipliers(excess=True, seconds=seconds))
        certificate = other if other.bound_ns is None else certificate
    return certificate


def certify_floor(
    problem: Problem,
    *,
    order: Order,
    at: Sequence[int],
    intervals: Sequence[Interval] = (),
    seconds: float | None = None,
) -> Certificate | None:
    """Evidence that no plan has a peak of `budget_bytes` or less, for the largest such budget the relaxation gives.

    None: it gives none, not even 0. The arguments are those of `certify`.
    """
    lowest = problem.static_bytes
    program = RelaxedProgram(problem, lowest, order, at, intervals)
    relaxation = program.multipliers(excess=True, seconds=seconds)
    end = Leaf(multipliers=(("memory", (len(at),), 1.0),))  # this row alone proves the bytes of the results
    results_bytes = sum(problem.values[v].bytes for v in problem.results)
    claims = (
        _for_largest_budget(problem, replace(program.certificate(leaf), bound_ns=None), high)
        for leaf, high in ((relaxation, lowest + round(program.objective) + 1), (end, lowest + results_bytes))
    )
    return max(filter(None, claims), key=lambda claim: claim.budget_bytes, default=None)


def _for_largest_budget(problem: Problem, certificate: Certificate, high: int) -> Certificate | None:
    """The certificate with the largest budget up to `high` for which it proves that no plan fits; None: for none.

    Weights that rule a budget out rule out every smaller one, since only the memory rows contain the budget.
    """
    low = -1
    step = 1
    while low < high:  # the answer is likely at, or just below, `high`
        middle = max(low + 1, high - step + 1)
        if proven_ns(problem, replace(certificate, budget_bytes=middle)) is None:
            low = middle
        else:
            high = middle - 1
        step *= 2
    return replace(certificate, budget_bytes=low) if low >= 0 else None


@dataclass
class RelaxedProgram:
    """The LP: columns for variables that are not fixed, rows with the names of the checker."""

    problem: Problem
    budget_bytes: int
    order: Order
    anchors: Sequence[int]
    intervals: Sequence[Interval]
    names: list[Name] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)  # of rows, as handed to the solver
    cells: list[tuple[int, int, float]] = field(default_factory=list)  # row, column, coefficient
    variables: list[Name] = field(default_factory=list)  # by column
    solved: bool = False
    objective: float = 0.0  # bytes in excess, or ns

    def __post_init__(self) -> None:
        self.graph = OpGraph(self.problem, self.order)
        self.stages = Stages(self.graph, self.anchors)
        self.last = len(self.stages.anchors)
        self.low, self.high = self.stages.low.tolist(), self.stages.high.tolist()
        self.last_use = self.stages.last_use.tolist()
        self.produced = np.flatnonzero(self.graph.produced).tolist()
        moments = range(self.last + 1)
        self.stay = [self._present_columns(k) for k in moments]
        self.run = {stages: self._computed_columns(*stages) for stages in (*((k, k) for k in moments), *self.intervals)}
        for stages in self.run:
            self._window(*stages)
        for first, last in self.intervals:
            self._parts(first, last)
        self._first_runs()
        self._memory()

    # Columns

    def _column(self, kind: str, *indices: int) -> int:
        self.variables.append((kind, indices))
        return len(self.variables) - 1

    def _present_columns(self, k: int) -> list[int]:
        ops = self.problem.ops
        certain = set(
            self.problem.results if k == self.last else (*ops[self.anchors[k]].inputs, *ops[self.anchors[k]].outputs)
        )
        if k >= max((self.high[op] for op in self.problem.forward_ops), default=0):
            certain |= set(np.flatnonzero(self.graph.forward_result).tolist())
        columns = [ZERO] * len(self.problem.values)
        for value in self.produced:
            if value in certain:
                columns[value] = ONE
            elif self.last_use[value] > k and self.low[self.problem.producer[value]] <= k:
                columns[value] = self._column("stay", value, k)
        return columns

    def _computed_columns(self, first: int, last: int) -> list[int]:
        columns = []
        for index, op in enumerate(self.problem.ops):
            low, high = self.low[index], self.high[index]
            recomputed = op.recomputable and any(self.last_use[value] >= first for value in op.outputs)
            if first <= low and high <= last:
                columns.append(ONE)
            elif low <= last and (first <= high or recomputed):
                columns.append(self._column("run", index, first, last))
            else:
                columns.append(ZERO)
        return columns

    # Rows

    def _row(self, name: Name, terms: Sequence[tuple[int, float]], constant: float, scale: float = 1.0) -> None:
        """Add the row sum of terms + constant >= 0, unless it holds whatever the free variables are."""
        row = len(self.names)
        cells = [(row, column, c * scale) for column, c in terms if column >= 0]
        constant += sum(c for column, c in terms if column == ONE)
        if sum(min(0.0, c) for _, _, c in cells) + constant * scale < 0:
            self.names.append(name)
            self.lower.append(-constant * scale)
            self.scale.append(scale)
            self.cells += cells

    def _window(self, first: int, last: int) -> None:
        """Add rows: a value that is resident, or read, after some stages was resident before or is computed in them."""
        producer = self.problem.producer
        before = self.stay[first - 1] if first else [ZERO] * len(producer)
        after, run = self.stay[last], self.run[first, last]
        uncertain = [d for d in self.produced if before[d] != ONE and run[producer[d]] != ONE]
        for d in uncertain:
            if after[d] != ZERO:
                self._row(("stay", (d, first, last)), [(before[d], 1), (run[producer[d]], 1), (after[d], -1)], 0)
            for v in self.problem.consumers[d]:
                if run[v] != ZERO:
                    terms = [(before[d], 1.0), (run[producer[d]], 1.0), (run[v], -1.0)]
                    self._row(("input", (v, d, first, last)), terms, 0)

    def _parts(self, first: int, last: int) -> None:
        """Add rows: an op is computed in some stages if and only if it is computed in a part of them."""
        inner = [(i, j) for i, j in self.run if first <= i <= j <= last and (i, j) != (first, last)]
        longest: dict[int, int] = {}
        for i, j in inner:
            longest[i] = max(j, longest.get(i, i))
        starts = [first]
        while longest[starts[-1]] < last:
            starts.append(longest[starts[-1]] + 1)
        whole = self.run[first, last]
        for v in range(len(self.problem.ops)):
            parts = [self.run[i, longest[i]][v] for i in starts]
            if whole[v] == ZERO or ONE in parts:
                continue
            self._row(("split", (v, *starts, last)), [*((part, 1.0) for part in parts), (whole[v], -1.0)], 0)
            for i, part in zip(starts, parts, strict=True):
                if part != ZERO:
                    self._row(("inside", (v, first, last, i, longest[i])), [(whole[v], 1.0), (part, -1.0)], 0)

    def _first_runs(self) -> None:
        for v, op in enumerate(self.problem.ops):
            columns = [self.run[k, k][v] for k in range(self.low[v], self.high[v] + 1)]
            if len(columns) > 1:
                self._row(("once", (v,)), [(column, 1.0) for column in columns], -1)
                if not op.recomputable:
                    self._row(("only", (v,)), [(column, -1.0) for column in columns], 1)

    def _memory(self) -> None:
        sizes = [value.bytes for value in self.problem.values]
        unit = max(1, sum(sizes)) / COST_UNITS
        for k, stay in enumerate(self.stay):
            workspace = self.problem.ops[self.anchors[k]].workspace_bytes if k < self.last else 0
            room = self.budget_bytes - self.graph.static_bytes - workspace
            terms = [(stay[d], -float(sizes[d])) for d in self.produced if sizes[d]]
            self._row(("memory", (k,)), terms, room, 1 / unit)

    # Solutions

    def multipliers(self, *, excess: bool, seconds: float | None) -> Leaf:
        """Weights of rows: the dual solution of minimal time or, with `excess`, of minimal bytes over the budget."""
        solver, unit = self.solver(excess=excess, seconds=seconds)
        return self.weights(solver, unit)

    def weights(self, solver: Any, unit: float) -> Leaf:
        """Run the solver, and return the weights of rows that it ends with."""
        import highspy

        solver.run()
        self.solved = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        self.objective = solver.getInfo().objective_function_value * unit
        return self.leaf([y * unit for y in solver.getSolution().row_dual])

    def leaf(self, duals: Sequence[float]) -> Leaf:
        """Translate the weights of the solver's rows to weights of the named rows."""
        weights = ((name, _tidy(y * s)) for name, y, s in zip(self.names, duals, self.scale, strict=True))
        return Leaf(multipliers=tuple((kind, indices, weight) for (kind, indices), weight in weights if weight > 0))

    def certificate(self, *leaves: Leaf) -> Certificate:
        """The certificate of these leaves."""
        certificate = Certificate(
            problem=self.problem.fingerprint,
            budget_bytes=self.budget_bytes,
            order=self.order,
            at=tuple(self.anchors),
            bound_ns=0,
            intervals=tuple(self.intervals),
            leaves=leaves,
        )
        return replace(certificate, bound_ns=proven_ns(self.problem, certificate))

    def solver(self, *, excess: bool, seconds: float | None) -> tuple[Any, float]:
        """A `highspy.Highs` with the LP, and the size of one unit of its objective, in ns or bytes."""
        ops = self.problem.ops
        width = len(self.variables)
        unit = max(1, sum(op.time_ns for op in ops)) / COST_UNITS
        costs = [
            ops[indices[0]].time_ns / unit if kind == "run" and indices[1] == indices[2] else 0.0
            for kind, indices in self.variables
        ]
        cells = self.cells
        memory = [r for r, (kind, _) in enumerate(self.names) if kind == "memory"]
        if excess and memory:
            unit = 1 / self.scale[memory[0]]
            costs = [0.0] * width
            cells = [*cells, *((r, width, 1.0) for r in memory)]
        row, column, coefficient = np.array(sorted(cells)).reshape(-1, 3).T
        rows = Rows()
        rows.add_sparse(row.astype(int), column.astype(int), coefficient, len(self.names), np.array(self.lower), np.inf)
        solver = new_highs()
        if seconds is not None:
            solver.setOptionValue("time_limit", seconds)
        upper = np.array([1.0] * width + [np.inf] * excess)
        solver.passModel(rows.to_highs(np.array([*costs, *([1.0] * excess)]), upper))
        return solver, unit


def _tidy(weight: float) -> float:
    """Round a weight that is an integer but for rounding errors, so that the bound is exact to the last ns or byte."""
    rounded = round(weight)
    return float(rounded) if abs(weight - rounded) <= INTEGER * max(1.0, abs(weight)) else float(weight)
