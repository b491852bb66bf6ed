"""Solves programs given as arrays with HiGHS, and says how far its bounds can be wrong.

Tolerances. HiGHS accepts a reduced cost that is wrong by its dual feasibility tolerance, 1e-7. All our columns lie in
[0, 1], so by weak duality an LP's objective is wrong by at most that per column; the tree takes the least of such
bounds, and rows with integer coefficients are exact. DOUBT_PER_COLUMN is ten times that, and is taken off every bound;
RELATIVE_DOUBT covers the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

from remat_solvers.processes.stdout import silence_stdout
from remat_solvers.toolkit.arrays import Floats
from remat_solvers.toolkit.programs.rows import Mark, Rows

DOUBT_PER_COLUMN = 1e-6
RELATIVE_DOUBT = 1e-9
INFINITY = float("inf")
HALF = 0.5
MIN_GAP = 1e-6  # the default of mip_abs_gap


class SolveEnd(Enum):
    """Says why a solve ended."""

    COMPLETE = "solved to the requested gap"
    EMPTY = "no point below the cutoff"
    LIMIT = "stopped by a limit"


@dataclass(frozen=True, slots=True)
class HighsAnswer:
    """The result of a solve. Bounds and costs are in units of the program."""

    ended: SolveEnd
    bound: float  # no point costs less; -inf: none is known
    point: Floats | None  # per column
    cost: float  # of the point
    nodes: int = 0


def margin(program: Program, bound: float) -> float:
    """By how much a bound may be wrong, in units of the program."""
    return DOUBT_PER_COLUMN * (program.columns + 1) + RELATIVE_DOUBT * abs(bound)


def new_highs(**options: Any) -> Any:
    """Return a silent, single-threaded `highspy.Highs`."""
    import highspy

    with silence_stdout():
        highs = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {"output_flag": False, "threads": 1, **options}.items():
        highs.setOptionValue(name, value)
    return highs


class Program(Protocol):
    """A program that grows: minimise costs x over its rows, 0 <= x <= 1. Its first columns are the integer ones."""

    columns: int
    num_integers: int
    rows: Rows

    def costs(self) -> Floats:
        """Return the cost of every column."""


def solve_lp(program: Program) -> HighsAnswer:
    """Solve the linear relaxation."""
    return Relaxation(program).solve(INFINITY)


class Relaxation:
    """The linear relaxation of a program that grows; each solve starts from the basis of the one before."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._highs = new_highs()
        self._columns = 0
        self._mark: Mark | None = None
        self.duals = np.empty(0)  # of the rows, after a solve

    def solve(self, seconds: float) -> HighsAnswer:
        """Return the optimum, or LIMIT where it is not found in time."""
        import highspy

        program, highs = self.program, self._highs
        if program.columns == 0:
            return _without_columns(program)
        if self._mark is None:
            highs.passModel(program.rows.to_highs(program.costs()))
        else:
            self._append(self._mark)
        self._columns, self._mark = program.columns, program.rows.mark
        highs.setOptionValue("time_limit", highs.getRunTime() + max(0.0, seconds))
        highs.run()
        status = highs.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return HighsAnswer(SolveEnd.EMPTY, INFINITY, None, INFINITY)
        if status != highspy.HighsModelStatus.kOptimal:
            return HighsAnswer(SolveEnd.LIMIT, -INFINITY, None, INFINITY)
        solution, cost = highs.getSolution(), highs.getInfo().objective_function_value
        self.duals = np.array(solution.row_dual)
        return HighsAnswer(SolveEnd.COMPLETE, cost, np.array(solution.col_value), cost)

    def _append(self, mark: Mark) -> None:
        """Pass on the columns and rows added since the last solve; columns first, old rows have no entries in them."""
        program, highs = self.program, self._highs
        count = program.columns - self._columns
        costs = program.costs()[self._columns :]
        zeros, ones, no_index = np.zeros(count), np.ones(count), np.empty(0, dtype=np.int32)
        highs.addCols(count, costs, zeros, ones, 0, np.zeros(count, dtype=np.int32), no_index, np.empty(0))
        starts, columns, coefficients, low, high = program.rows.matrix(mark)
        index = columns.astype(np.int32)
        highs.addRows(len(low), low, high, len(index), starts[:-1].astype(np.int32), index, coefficients)


def solve_mip(
    program: Program,
    *,
    seconds: float,
    gap: float,
    cutoff: float = INFINITY,
    nodes: int | None = None,
    start: Floats | None = None,
    on_point: Callable[[Floats, float], None] | None = None,
    on_bound: Callable[[float], bool] | None = None,
    **options: Any,
) -> HighsAnswer:
    """Find the best point that costs less than `cutoff` units, to an absolute gap of `gap` units.

    `start` is a point to begin with; `on_point` is called with each better point and its cost; `on_bound` is often
    called with the bound, and returns whether to stop.
    """
    import highspy

    if program.columns == 0:
        return _without_columns(program)
    highs = new_highs(
        time_limit=max(0.0, seconds),
        mip_rel_gap=0.0,
        mip_abs_gap=max(gap, MIN_GAP),
        objective_bound=cutoff,
        **options,
    )
    if nodes is not None:
        highs.setOptionValue("mip_max_nodes", nodes)
    integers = np.arange(program.columns) < program.num_integers
    highs.passModel(program.rows.to_highs(program.costs(), integers=integers))
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = start
        highs.setSolution(solution)
    if on_point is not None:
        report_point = on_point
        highs.cbMipImprovingSolution.subscribe(
            lambda event: report_point(np.array(event.data_out.mip_solution), event.data_out.objective_function_value)
        )
    if on_bound is not None:
        report_bound = on_bound

        def interrupt_if_requested(event: Any) -> None:
            if report_bound(min(event.data_out.mip_dual_bound, cutoff)):
                event.interrupt()

        highs.cbMipInterrupt.subscribe(interrupt_if_requested)
    highs.run()
    return _read_mip(highspy, highs, cutoff)


def _read_mip(highspy: Any, highs: Any, cutoff: float) -> HighsAnswer:
    status, info = highs.getModelStatus(), highs.getInfo()
    known = highspy.HighsModelStatus
    point, cost = None, INFINITY
    if info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible):
        point, cost = np.array(highs.getSolution().col_value), info.objective_function_value
    if status in (known.kInfeasible, known.kUnboundedOrInfeasible, known.kObjectiveBound):
        return HighsAnswer(SolveEnd.EMPTY, cutoff, point, cost, info.mip_node_count)
    bound = min(info.mip_dual_bound, cutoff)
    ended = SolveEnd.COMPLETE if status == known.kOptimal else SolveEnd.LIMIT
    return HighsAnswer(ended, bound, point, cost, max(0, info.mip_node_count))


def _without_columns(program: Program) -> HighsAnswer:
    """The answer where every variable is fixed."""
    _, _, _, low, high = program.rows.matrix()
    if (low > 0).any() or (high < 0).any():
        return HighsAnswer(SolveEnd.EMPTY, INFINITY, None, INFINITY)
    return HighsAnswer(SolveEnd.COMPLETE, 0.0, np.empty(0), 0.0)
