"""Solves mixed-integer programs written with PuLP, by HiGHS or CBC.

A backend stops at the time limit with the best point it has. One table translates its status (STATUS_MAP). A point of
an LP that is not solved to its end means nothing, so it is not returned.

Larger programs of HiGHS run in a process of their own (highs_process.py), which takes .2 to .4 s to start. Small ones
do not need it: of 504 of Checkmate's programs and relaxations with 300 to 2,000 variables, 78 reached a limit of .3 s,
and the last of them ended .52 s after it (HiGHS 1.16, on a busy machine).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias

from remat_solvers.errors import InputError
from remat_solvers.processes.interrupt import run_interruptibly
from remat_solvers.processes.stdout import silence_stdout
from remat_solvers.toolkit.programs.highs_process import solve_mip_in_subprocess

Backend: TypeAlias = Literal["highs", "cbc"]

THREADS = 1
SUBPROCESS_VARIABLES = 2_000  # HiGHS solves programs with more variables in a process of its own
SUBPROCESS_START_S = 0.5  # of its time limit, for that process to start
HIGHS_MIN_GAP = 1e-6  # the default of mip_abs_gap
HIGHS_FEASIBLE = 2  # info.primal_solution_status


class Ended(Enum):
    """The state of a program after a backend has run."""

    OPTIMAL = "solved to its end"
    FEASIBLE = "a point, not proven optimal"
    INFEASIBLE = "proven to have no point"
    UNKNOWN = "neither a point nor a proof"


# (pulp.LpProblem.status, pulp.LpProblem.sol_status) -> Ended; all else is UNKNOWN.
STATUS_MAP: Mapping[tuple[int, int], Ended] = {
    (1, 1): Ended.OPTIMAL,  # LpStatusOptimal, LpSolutionOptimal
    (1, 2): Ended.FEASIBLE,  # LpStatusOptimal, LpSolutionIntegerFeasible: PuLP says so at a limit with an incumbent
    (0, 2): Ended.FEASIBLE,  # LpStatusNotSolved, LpSolutionIntegerFeasible
    (-1, -1): Ended.INFEASIBLE,  # LpStatusInfeasible, LpSolutionInfeasible
    (-1, 0): Ended.INFEASIBLE,  # LpStatusInfeasible, LpSolutionNoSolutionFound: CBC where only the LP has points
}

# The same for the names of HiGHS's model statuses; all else is FEASIBLE where there is a point.
HIGHS_STATUS_MAP: Mapping[str, Ended] = {"kOptimal": Ended.OPTIMAL, "kInfeasible": Ended.INFEASIBLE}


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a backend; the values of the point are in the variables of the program."""

    ended: Ended
    bound: float | None  # proven lower bound on the objective; None: none known
    relaxed: bool = False  # every variable was taken as continuous
    interrupted: bool = False  # the user pressed Ctrl-C; a point found before is kept


def minimise(
    program: Any, backend: Backend, *, seconds: float | None, relaxed: bool = False, gap: float = 0.0
) -> Answer:
    """Minimise a `pulp.LpProblem`; with `relaxed`, every variable is continuous.

    A point counts as optimal when no other is better by more than `gap`, in units of the objective. Raises InputError
    where the backend is not installed.
    """
    import pulp

    if backend == "highs":
        return _run_highs(pulp, program, seconds, relaxed, gap)
    gaps = {} if relaxed else {"gapRel": 0.0, "gapAbs": gap}
    bundled = getattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", None)
    solver = pulp.COIN_CMD(path=bundled, msg=False, mip=not relaxed, timeLimit=seconds, threads=THREADS, **gaps)
    if not solver.available():
        raise InputError("backend cbc is not installed; use backend highs, or install cbc")
    program.solve(solver)
    ended = _ended(program, relaxed)
    return Answer(ended, pulp.value(program.objective) - gap if ended is Ended.OPTIMAL else None, relaxed)


def _run_highs(pulp: Any, program: Any, seconds: float | None, relaxed: bool, gap: float) -> Answer:
    deadline = None if seconds is None else time.perf_counter() + seconds
    solver = pulp.HiGHS(msg=False, mip=not relaxed, threads=THREADS, gapRel=0.0, gapAbs=max(gap, HIGHS_MIN_GAP))
    solver.createAndConfigureSolver = silence_stdout()(solver.createAndConfigureSolver)
    if program.numVariables() > SUBPROCESS_VARIABLES:
        return _run_highs_in_subprocess(solver, program, deadline, relaxed, gap)
    interrupts: list[bool] = []
    solver.callSolver = _interruptible(interrupts, deadline)
    program.solve(solver)
    model = program.solverModel
    info = model.getInfo()
    ended = _ended(program, relaxed)
    if ended is Ended.FEASIBLE and info.primal_solution_status != HIGHS_FEASIBLE:
        ended = Ended.UNKNOWN
    bound = info.objective_function_value if relaxed else info.mip_dual_bound
    known = ended is Ended.OPTIMAL if relaxed else abs(bound) < model.getInfinity()
    return Answer(ended, bound if known else None, relaxed, any(interrupts))


def _run_highs_in_subprocess(solver: Any, program: Any, deadline: float | None, relaxed: bool, gap: float) -> Answer:
    """Solve the program as PuLP passes it to HiGHS, in a process that can be killed."""
    solver.createAndConfigureSolver(program)
    solver.buildSolverModel(program)
    seconds = None if deadline is None else deadline - time.perf_counter() - SUBPROCESS_START_S
    if seconds is not None and seconds <= 0:
        return Answer(Ended.UNKNOWN, None, relaxed)
    report = solve_mip_in_subprocess(program.solverModel, seconds, max(gap, HIGHS_MIN_GAP))
    ended = HIGHS_STATUS_MAP.get(report.status, Ended.UNKNOWN)
    if report.values is None:
        ended = ended if ended is Ended.INFEASIBLE else Ended.UNKNOWN
    else:
        ended = ended if ended is Ended.OPTIMAL else Ended.FEASIBLE
        for variable, value in zip(program.variables(), report.values.tolist(), strict=True):
            variable.varValue = value
    if relaxed and ended is Ended.FEASIBLE:
        ended = Ended.UNKNOWN
    known = ended is Ended.OPTIMAL if relaxed else abs(report.bound) < float("inf")
    return Answer(ended, report.bound if known else None, relaxed, report.interrupted)


def _interruptible(interrupts: list[bool], deadline: float | None) -> Callable[[Any], None]:
    """Return a function for PuLP that runs HiGHS so that Ctrl-C ends it with its incumbent.

    Whether that happened is appended to `interrupts`. The limit is set when HiGHS starts: by then PuLP has passed the
    program on, which takes seconds for a large one.
    """

    def call(program: Any) -> None:
        model = program.solverModel
        if deadline is not None:
            model.setOptionValue("time_limit", max(0.0, deadline - time.perf_counter()))
        model.HandleUserInterrupt = True
        interrupts.append(run_interruptibly(model.run, model.cancelSolve)[1])

    return call


def _ended(program: Any, relaxed: bool) -> Ended:
    ended = STATUS_MAP.get((program.status, program.sol_status), Ended.UNKNOWN)
    return Ended.UNKNOWN if relaxed and ended is Ended.FEASIBLE else ended
