"""Compares methods: each solves the same problem under the same time limit, in a process of its own.

A method that crashes or does not end becomes a row like the others, with the error in it.

The gap of a row is to the best bound that any method proved: of those for every order of the ops, and, for a plan whose
first computations keep the problem's order, of those for that order too. A bound above the time of a plan that it
covers is a bug of the method that claims it, and so is a proof that no plan fits if another method has one. Then the
row has an error, and the bound is not used.
"""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remat_solvers.bounds import peak_bound_bytes, time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.processes.child import FolderChild, leave_answer
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import Solver, solver_names
from remat_solvers.result import Limits, Order, Result, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order
from remat_solvers.solving import solve
from remat_solvers.units import parse_budget

DEFAULT_SECONDS = 30.0
INTERRUPTED = "interrupted by the user"
INTERRUPTED_BEFORE = "the user interrupted before its turn"
START_S = 15.0  # for a child process to start and read the problem, on a busy machine
GRACE_SHARE = 0.25  # of the time limit: backends check their clocks only between steps
STDERR_SHOWN = 200  # last characters of a crashed child's output


@dataclass(frozen=True, slots=True)
class Row:
    """The answer of one method."""

    solver: str  # registry name
    status: str  # a Status; or `failed`; or, after Ctrl-C, `not_asked`
    stopped: str  # a Stopped; empty for `failed` and `not_asked`
    peak_bytes: int | None  # of the plan
    time_ns: int | None  # of the plan
    overhead: float | None  # the plan's time over store-all's, minus 1
    gap: float | None  # to the best bound known, as a fraction of store-all's time
    bound_ns: int | None  # the method's own bound
    order: str | None  # the plans for which bound_ns holds: an Order
    keeps_order: bool | None  # whether the plan's first computations keep the problem's order
    smallest_peak_bytes: int | None  # the smallest that the method knows to be reachable
    seconds: float  # the method's own; of a failed one, wall-clock, the start of its process included
    reason: str  # why there is no plan, or a remark on it
    error: str | None = None  # how the method crashed, why it was killed, or which of its claims is false


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows: the fastest plans first, then no plan found, not applicable, failed, and not run."""

    problem: str  # fingerprint
    name: str
    budget_bytes: int
    seconds: float | None  # limit of each method
    store_all_peak_bytes: int
    store_all_time_ns: int
    peak_bound_bytes: int  # proven: no plan has a smaller peak
    bound_ns: int  # proven, for plans in any order
    given_bound_ns: int  # proven, for plans in the problem's order
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class SolverFailedError(Exception):
    """A method crashed, or had to be killed."""


def compare(
    problem: Problem,
    budget_bytes: int | str,
    *,
    solvers: Sequence[str | Solver] | None = None,
    limits: Limits = Limits(DEFAULT_SECONDS),  # noqa: B008  (frozen)
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> Comparison:
    """Solve with each of `solvers` (default: all registered ones), one after the other, each within `limits`.

    The budget is an int, "8GiB", "800MB", or "60%" of the store-all peak. Raises BudgetError where it cannot be read.

    A solver object whose class says `in_process = True`, since it cannot be sent to another process, runs in this one.
    On Ctrl-C the row of the method at work is `failed`, unless the method returns the plan that it has; the methods
    after it are not run, and their rows are `not_asked`. `on_row` is called with each row as soon as it exists; its gap
    is None then.
    """
    rows: list[Row] = []
    interrupted = False
    unmodified = baseline(problem)
    budget = parse_budget(budget_bytes, unmodified.peak_bytes)
    for solver in solver_names() if solvers is None else solvers:
        watch = Stopwatch(limits)
        name = solver if isinstance(solver, str) else solver.name
        solve_one = solve if getattr(solver, "in_process", False) else solve_in_subprocess
        try:
            if interrupted:
                row = _without_answer(name, "not_asked", 0.0, reason=INTERRUPTED_BEFORE)
            else:
                result = solve_one(problem, budget, solver=solver, limits=limits, seed=seed)
                interrupted = result.stopped is Stopped.INTERRUPT  # with the best plan it had
                row = _row(result, unmodified.time_ns)
        except KeyboardInterrupt:
            interrupted = True
            row = _without_answer(name, "failed", watch.seconds, error=INTERRUPTED)
        except SolverFailedError as failure:
            row = _without_answer(name, "failed", watch.seconds, error=str(failure))
        except Exception as failure:  # raised by a method in this process
            row = _without_answer(name, "failed", watch.seconds, error=f"{type(failure).__name__}: {failure}")
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return _settle(problem, budget, limits, rows)


@dataclass(frozen=True, slots=True)
class _Task:
    """The arguments of `remat_solvers.solve`, for a child process."""

    problem: Problem
    budget_bytes: int
    solver: str | Solver
    limits: Limits
    seed: int


def solve_in_subprocess(
    problem: Problem, budget_bytes: int, *, solver: str | Solver, limits: Limits, seed: int = 0
) -> Result:
    """`remat_solvers.solve` in a child process, which is killed a quarter of its time limit and START_S after it.

    The class of a solver object must be importable where Python finds it now. Raises SolverFailedError, which says how
    the method crashed or that it did not end, and KeyboardInterrupt on Ctrl-C, after the child is killed.
    """
    limit_s = None if limits.seconds is None else limits.seconds * (1 + GRACE_SHARE) + START_S
    with FolderChild("remat_solvers.comparing:solve_task") as child:
        (child.folder / "task").write_bytes(pickle.dumps(_Task(problem, budget_bytes, solver, limits, seed)))
        child.start()
        code = child.wait(limit_s)
        answer: Result | SolverFailedError | None = child.answer()
        if answer is None:
            killed = f"killed: no answer within {limit_s:.0f} s"
            answer = SolverFailedError(killed if code is None else _death(code, child.output()))
    if isinstance(answer, SolverFailedError):
        raise answer
    return answer


def solve_task(folder: str) -> None:
    """In the child process: solve the task in `folder`, and leave there the result or the error."""
    answer: Result | SolverFailedError
    try:
        task: _Task = pickle.loads((Path(folder) / "task").read_bytes())
        answer = solve(task.problem, task.budget_bytes, solver=task.solver, limits=task.limits, seed=task.seed)
    except Exception as error:
        traceback.print_exc()
        answer = SolverFailedError(f"{type(error).__name__}: {error}")
    leave_answer(folder, answer)


def _death(code: int, output: str) -> str:
    """The exit code of a child without an answer, and the last line of its output."""
    death = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return ": ".join([death, *output.strip()[-STDERR_SHOWN:].splitlines()[-1:]])


def _without_answer(name: str, status: str, seconds: float, *, reason: str = "", error: str | None = None) -> Row:
    nothing = dict.fromkeys(
        ("peak_bytes", "time_ns", "overhead", "gap", "bound_ns", "order", "keeps_order", "smallest_peak_bytes")
    )
    return Row(solver=name, status=status, stopped="", seconds=seconds, reason=reason, error=error, **nothing)


def _row(result: Result, store_all_ns: int) -> Row:
    return Row(
        solver=result.solver,
        status=result.status.value,
        stopped=result.stopped.value,
        peak_bytes=result.peak_bytes,
        time_ns=result.time_ns,
        overhead=None if result.time_ns is None else result.time_ns / max(1, store_all_ns) - 1,
        gap=None,
        bound_ns=result.bound_ns,
        order=None if result.bound_ns is None else result.order.value,
        keeps_order=None if result.plan is None else keeps_order(result.plan),
        smallest_peak_bytes=result.smallest_peak_bytes,
        seconds=result.seconds,
        reason=result.reason,
    )


def _settle(problem: Problem, budget_bytes: int, limits: Limits, rows: list[Row]) -> Comparison:
    """The comparison of all rows, sorted: bounds that a plan contradicts become errors, gaps are to the best others."""
    rows = [_contradicted(row, rows) for row in rows]
    sound = [row for row in rows if row.bound_ns is not None and row.error is None]
    free_ns = max([time_bound_ns(problem), *(r.bound_ns or 0 for r in sound if r.order == Order.FREE.value)])
    given_ns = max([free_ns, *(r.bound_ns or 0 for r in sound)])
    unmodified = baseline(problem)

    def with_gap(row: Row) -> Row:
        if row.time_ns is None:
            return row
        bound_ns = given_ns if row.keeps_order else free_ns
        return replace(row, gap=(row.time_ns - bound_ns) / max(1, unmodified.time_ns))

    return Comparison(
        problem=problem.fingerprint,
        name=problem.name,
        budget_bytes=budget_bytes,
        seconds=limits.seconds,
        store_all_peak_bytes=unmodified.peak_bytes,
        store_all_time_ns=unmodified.time_ns,
        peak_bound_bytes=peak_bound_bytes(problem),
        bound_ns=free_ns,
        given_bound_ns=given_ns,
        rows=tuple(sorted(map(with_gap, rows), key=_rank)),
    )


def _contradicted(row: Row, rows: list[Row]) -> Row:
    """`row`, with an error where another method's plan contradicts its bound or its proof that no plan fits."""
    for other in rows:
        if other.time_ns is None:
            continue
        if row.status == Status.INFEASIBLE.value:
            error = f"it claims that no plan fits, but {other.solver}'s does, with a peak of {other.peak_bytes} bytes"
            return replace(row, error=error)
        covered = row.order == Order.FREE.value or other.keeps_order
        if row.bound_ns is not None and covered and other.time_ns < row.bound_ns:
            error = f"its bound of {row.bound_ns} ns is above the {other.time_ns} ns of {other.solver}'s plan"
            return replace(row, error=error)
    return row


def _rank(row: Row) -> tuple[int, int, int]:
    last = {Status.NOT_APPLICABLE.value: 1, "failed": 2, "not_asked": 3}.get(row.status, 0)
    has_plan = row.time_ns is not None
    return last + (not has_plan), row.time_ns or 0, row.peak_bytes or 0
