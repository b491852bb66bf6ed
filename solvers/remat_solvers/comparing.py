"""Every method side by side on one problem, each in a process of its own, under its own time limit.

A method that crashes or hangs is a row like the others, with what happened in it.

The gap of a row is to the best bound that any method proved: of those for every order, and, for a plan whose first
computations keep the problem's order, of those for that order too. A bound above the time of a plan that it is about is
a bug of the method that claims it, and so is a proof that no plan fits where another method has one: the row says so,
and the bound is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from remat_solvers.bounds import peak_bound_bytes, time_bound_ns
from remat_solvers.isolation import SolverFailedError, solve_apart
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import Solver, solver_names
from remat_solvers.result import Limits, Order, Result, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order
from remat_solvers.solving import solve

__all__ = ["Comparison", "Row", "compare"]

DEFAULT_SECONDS = 30.0
INTERRUPTED = "interrupted by the user"
INTERRUPTED_BEFORE = "the user interrupted before its turn"


@dataclass(frozen=True, slots=True)
class Row:
    """What one method answered."""

    solver: str  # registry name
    status: str  # a Status; or `failed`; or `not_asked`, after Ctrl-C
    stopped: str  # a Stopped; empty where it failed or was not asked
    peak_bytes: int | None  # of the plan
    time_ns: int | None  # of the plan
    overhead: float | None  # time over store-all's, less 1
    gap: float | None  # to the best bound known, as a fraction of store-all's time
    bound_ns: int | None  # the method's own bound
    order: str | None  # the plans that bound_ns is about: an Order
    keeps_order: bool | None  # whether the plan's first computations keep the problem's order
    smallest_peak_bytes: int | None  # the smallest that the method knows to be reachable
    seconds: float  # the method's own; where it failed, wall-clock, the start of its process included
    reason: str  # why there is no plan, or more about it
    error: str | None = None  # how it crashed, or why it was killed


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows: the fastest plans first, then those without a plan, then what does not apply, failed, was not asked."""

    problem: str  # fingerprint
    name: str
    budget_bytes: int
    seconds: float | None  # limit of each method
    store_all_peak_bytes: int
    store_all_time_ns: int
    peak_bound_bytes: int  # proven: no plan is below
    bound_ns: int  # proven, for plans in any order
    given_bound_ns: int  # proven, for plans in the problem's order
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare(
    problem: Problem,
    budget_bytes: int,
    *,
    solvers: Sequence[str | Solver] | None = None,
    here: Sequence[Solver] = (),
    limits: Limits = Limits(DEFAULT_SECONDS),  # noqa: B008  (frozen)
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> Comparison:
    """Ask `solvers` (by default all that are registered), one after the other, each within `limits`.

    `here` are more solvers, which run in this process, since they cannot be sent to another. On Ctrl-C the method at
    work has failed, unless it hands back what it has, and those after it are rows that were not asked. `on_row` is
    called with every row as it comes, its gap still open.
    """
    rows: list[Row] = []
    asked = [(s, True) for s in (solver_names() if solvers is None else solvers)] + [(s, False) for s in here]
    interrupted = False
    store_all_ns = baseline(problem).time_ns
    for solver, apart in asked:
        watch = Stopwatch(limits)
        name = solver if isinstance(solver, str) else solver.name
        try:
            if interrupted:
                row = _without_answer(name, "not_asked", 0.0, reason=INTERRUPTED_BEFORE)
            else:
                ask = solve_apart if apart else solve
                result = ask(problem, budget_bytes, solver=solver, limits=limits, seed=seed)
                interrupted = result.stopped is Stopped.INTERRUPT  # it handed back what it had
                row = _row(result, store_all_ns)
        except KeyboardInterrupt:
            interrupted = True
            row = _without_answer(name, "failed", watch.seconds, error=INTERRUPTED)
        except SolverFailedError as failure:
            row = _without_answer(name, "failed", watch.seconds, error=str(failure))
        except Exception as failure:  # a method that runs here and crashes
            row = _without_answer(name, "failed", watch.seconds, error=f"{type(failure).__name__}: {failure}")
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return _settle(problem, budget_bytes, limits, rows)


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
    """Bounds that no plan contradicts, gaps to the best of them, and the order of the rows."""
    rows = [_contradicted(row, rows) for row in rows]
    sound = [row for row in rows if row.bound_ns is not None and row.error is None]
    free = max([time_bound_ns(problem), *(r.bound_ns or 0 for r in sound if r.order == Order.FREE.value)])
    given = max([free, *(r.bound_ns or 0 for r in sound)])
    unmodified = baseline(problem)

    def with_gap(row: Row) -> Row:
        if row.time_ns is None:
            return row
        bound_ns = given if row.keeps_order else free
        return replace(row, gap=(row.time_ns - bound_ns) / max(1, unmodified.time_ns))

    return Comparison(
        problem=problem.fingerprint,
        name=problem.name,
        budget_bytes=budget_bytes,
        seconds=limits.seconds,
        store_all_peak_bytes=unmodified.peak_bytes,
        store_all_time_ns=unmodified.time_ns,
        peak_bound_bytes=peak_bound_bytes(problem),
        bound_ns=free,
        given_bound_ns=given,
        rows=tuple(sorted(map(with_gap, rows), key=_rank)),
    )


def _contradicted(row: Row, rows: list[Row]) -> Row:
    """`row`, with an error where its bound, or its proof that nothing fits, speaks about another's plan."""
    for other in rows:
        if other.time_ns is None:
            continue
        if row.status == Status.INFEASIBLE.value:
            error = f"it says that no plan fits, and {other.solver}'s does, with a peak of {other.peak_bytes} bytes"
            return replace(row, error=error)
        about = row.order == Order.FREE.value or other.keeps_order
        if row.bound_ns is not None and about and other.time_ns < row.bound_ns:
            error = f"its bound of {row.bound_ns} ns is above the {other.time_ns} ns of {other.solver}'s plan"
            return replace(row, error=error)
    return row


def _rank(row: Row) -> tuple[int, int, int]:
    last = {Status.NOT_APPLICABLE.value: 1, "failed": 2, "not_asked": 3}.get(row.status, 0)
    has_plan = row.time_ns is not None
    return last + (not has_plan), row.time_ns or 0, row.peak_bytes or 0
