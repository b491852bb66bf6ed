"""Mixed-integer programs through PuLP: one way to run them, whatever the backend.

A backend stops at the time limit with the best point it has. What it says is read in one place (STATUS_MAP); a point
of an LP that is not solved to its end means nothing and is not handed out.

Larger programs of HiGHS run in a process of their own (highs_apart.py), which takes .2 to .4 s to start. Small ones do
not need it: of 504 of Checkmate's programs and relaxations with 300 to 2,000 variables, 78 reached a limit of .3 s, and
the last of them ended .52 s after it (HiGHS 1.16, on a busy machine).
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
from remat_solvers.toolkit.programs.highs_process import solve_apart

__all__ = ["Answer", "Backend", "Ended", "run"]

Backend: TypeAlias = Literal["highs", "cbc"]

THREADS = 1
APART_VARIABLES = 2_000  # larger programs of HiGHS run in a process of their own
APART_START_S = 0.5  # of its time, for that process to start
HIGHS_LEAST_GAP = 1e-6  # mip_abs_gap as it comes
HIGHS_FEASIBLE = 2  # info.primal_solution_status


class Ended(Enum):
    """What a backend says about a program."""

    OPTIMAL = "solved to its end"
    FEASIBLE = "a point, not proven optimal"
    INFEASIBLE = "proven to have no point"
    UNKNOWN = "neither a point nor a proof"


# (pulp.LpProblem.status, pulp.LpProblem.sol_status) -> what it means; all else is UNKNOWN.
STATUS_MAP: Mapping[tuple[int, int], Ended] = {
    (1, 1): Ended.OPTIMAL,  # LpStatusOptimal, LpSolutionOptimal
    (1, 2): Ended.FEASIBLE,  # LpStatusOptimal, LpSolutionIntegerFeasible: how PuLP names a limit with an incumbent
    (0, 2): Ended.FEASIBLE,  # LpStatusNotSolved, LpSolutionIntegerFeasible
    (-1, -1): Ended.INFEASIBLE,  # LpStatusInfeasible, LpSolutionInfeasible
    (-1, 0): Ended.INFEASIBLE,  # LpStatusInfeasible, LpSolutionNoSolutionFound: CBC where only the LP has points
}

# The same for what HiGHS itself says, by its name; all else means a point where there is one.
HIGHS_STATUS_MAP: Mapping[str, Ended] = {"kOptimal": Ended.OPTIMAL, "kInfeasible": Ended.INFEASIBLE}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about a program after a backend has run; values are read off its variables."""

    ended: Ended
    bound: float | None  # proven lower bound on the objective; None: none known
    relaxed: bool = False  # every variable was taken as continuous
    interrupted: bool = False  # the user pressed Ctrl-C; a point found before is still there


def run(program: Any, backend: Backend, *, seconds: float | None, relaxed: bool = False, within: float = 0.0) -> Answer:
    """Minimise a `pulp.LpProblem`; `relaxed` takes every variable as continuous.

    A point counts as optimal when no other is better by more than `within`, in units of the objective.
    """
    import pulp

    if backend == "highs":
        return _run_highs(pulp, program, seconds, relaxed, within)
    gaps = {} if relaxed else {"gapRel": 0.0, "gapAbs": within}
    bundled = getattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", None)
    solver = pulp.COIN_CMD(path=bundled, msg=False, mip=not relaxed, timeLimit=seconds, threads=THREADS, **gaps)
    if not solver.available():
        raise InputError("backend cbc is not installed; use backend highs, or install cbc")
    program.solve(solver)
    ended = _ended(program, relaxed)
    return Answer(ended, pulp.value(program.objective) - within if ended is Ended.OPTIMAL else None, relaxed)


def _run_highs(pulp: Any, program: Any, seconds: float | None, relaxed: bool, within: float) -> Answer:
    deadline = None if seconds is None else time.perf_counter() + seconds
    solver = pulp.HiGHS(msg=False, mip=not relaxed, threads=THREADS, gapRel=0.0, gapAbs=max(within, HIGHS_LEAST_GAP))
    solver.createAndConfigureSolver = silence_stdout()(solver.createAndConfigureSolver)
    if program.numVariables() > APART_VARIABLES:
        return _highs_apart(solver, program, deadline, relaxed, within)
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


def _highs_apart(solver: Any, program: Any, deadline: float | None, relaxed: bool, within: float) -> Answer:
    """The program as PuLP hands it over, solved in a process that can be killed."""
    solver.createAndConfigureSolver(program)
    solver.buildSolverModel(program)
    seconds = None if deadline is None else deadline - time.perf_counter() - APART_START_S
    if seconds is not None and seconds <= 0:
        return Answer(Ended.UNKNOWN, None, relaxed)
    apart = solve_apart(program.solverModel, seconds, max(within, HIGHS_LEAST_GAP))
    ended = HIGHS_STATUS_MAP.get(apart.status, Ended.UNKNOWN)
    if apart.values is None:
        ended = ended if ended is Ended.INFEASIBLE else Ended.UNKNOWN
    else:
        ended = ended if ended is Ended.OPTIMAL else Ended.FEASIBLE
        for variable, value in zip(program.variables(), apart.values.tolist(), strict=True):
            variable.varValue = value
    if relaxed and ended is Ended.FEASIBLE:
        ended = Ended.UNKNOWN
    known = ended is Ended.OPTIMAL if relaxed else abs(apart.bound) < float("inf")
    return Answer(ended, apart.bound if known else None, relaxed, apart.interrupted)


def _interruptible(interrupts: list[bool], deadline: float | None) -> Callable[[Any], None]:
    """How PuLP is to run HiGHS, so that Ctrl-C ends it with what it has; `interrupts` gets whether that happened.

    The limit is set when it starts: by then PuLP has handed the program over, which takes seconds for a large one.
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
