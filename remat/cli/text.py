"""The texts that commands print: problems, plans, results and tables, in GiB and ms; bytes and ns for programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from remat_solvers.formats import PlanFile
from remat_solvers.pareto import Point, Sweep
from remat_solvers.problem import Problem
from remat_solvers.result import Result, Status, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.simulate import Timeline
from remat_solvers.units import format_bytes, format_ns

if TYPE_CHECKING:
    from rich.table import Table

    from remat_solvers.comparing import Comparison, Row


class ProblemSummary(TypedDict):
    """The size of a problem, and the peak and time of its unmodified step (store-all)."""

    name: str
    fingerprint: str
    ops: int
    values: int
    constant_bytes: int
    store_all_peak_bytes: int
    store_all_time_ns: int


def describe_problem(problem: Problem) -> ProblemSummary:
    """Summarise a problem for JSON."""
    unmodified = baseline(problem)
    return {
        "name": problem.name,
        "fingerprint": problem.fingerprint,
        "ops": len(problem.ops),
        "values": len(problem.values),
        "constant_bytes": problem.constant_bytes,
        "store_all_peak_bytes": unmodified.peak_bytes,
        "store_all_time_ns": unmodified.time_ns,
    }


def problem_line(problem: Problem) -> str:
    """Summarise a problem in one line."""
    unmodified = baseline(problem)
    peak, constants = format_bytes(unmodified.peak_bytes), format_bytes(problem.constant_bytes)
    sizes = f"{len(problem.ops)} ops, {len(problem.values)} values"
    return f"{sizes}; store-all peak {peak} (constants {constants}), step {format_ns(unmodified.time_ns)}"


def replay_lines(problem: Problem, plan_file: PlanFile, timeline: Timeline) -> list[str]:
    """The cost of a plan on `problem`, beside that of store-all and beside what its file records."""
    unmodified = baseline(problem)
    lines = []
    for name, value, recorded, whole, form in (
        ("peak", timeline.peak_bytes, plan_file.peak_bytes, unmodified.peak_bytes, format_bytes),
        ("time", timeline.time_ns, plan_file.time_ns, unmodified.time_ns, format_ns),
    ):
        changed = "" if value == recorded else f"; {form(recorded)} when it was solved"
        lines.append(f"{name}  {_share(form, value, whole)}{changed}")
    return [*lines, f"wait  {format_ns(timeline.wait_ns)}, host {format_bytes(timeline.host_bytes)}"]


def result_lines(result: Result, written: Path | None) -> list[str]:
    """A result for people; without a plan, the peaks that are known to be possible."""
    floor = format_bytes(result.peak_bound_bytes)
    if result.peak_bytes is None or result.time_ns is None:
        smallest = result.smallest_peak_bytes
        known = "" if smallest is None else f"; {format_bytes(smallest)} is the smallest peak known to be reachable"
        advice = "a larger budget" if result.status is Status.INFEASIBLE else "a larger budget or another solver"
        return [f"No plan's peak is below {floor}{known}. Try {advice}."]
    lines = [
        f"budget  {format_bytes(result.budget_bytes)}",
        f"peak    {_share(format_bytes, result.peak_bytes, result.store_all_peak_bytes)}",
        f"time    {_share(format_ns, result.time_ns, result.store_all_time_ns)}",
        f"floor   {floor}: no plan's peak is lower",
    ]
    if result.gap is not None:
        lines.append(f"gap     {result.gap:.2%}: no plan within the budget is faster by more, {result.order.scope}")
    lines.append(f"solved  in {result.seconds:.2f} s; {result.stopped.sentence}")
    return lines if written is None else [*lines, f"plan    {written}"]


def _share(form: Callable[[int], str], part: int, whole: int) -> str:
    """A part, and its share of the whole, which is store-all's."""
    return f"{form(part)}, {part / max(whole, 1):.1%} of store-all's {form(whole)}"


def row_line(row: Row) -> str:
    """One solver's row of a comparison in a line, printed as soon as it is known."""
    overhead = "" if row.overhead is None else f", {row.overhead:+.2%} time"
    return f"{row.solver}: {row.error or row.status}{overhead} ({row.seconds:.1f} s)"


def comparison_table(comparison: Comparison) -> Table:
    """The comparison for people, with a row for each solver."""
    from rich.table import Table

    budget = _share(format_bytes, comparison.budget_bytes, comparison.store_all_peak_bytes)
    table = Table(title=f"{comparison.name}: budget {budget} peak", title_justify="left", box=None)
    for name in ("solver", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("peak", "time over store-all", "gap", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            row.solver,
            row.status,
            _cell(format_bytes, row.peak_bytes),
            _cell("{:+.2%}".format, row.overhead),
            _cell("{:.2%}".format, row.gap),
            f"{row.seconds:.2f}",
        )
    return table


def comparison_notes(comparison: Comparison) -> list[str]:
    """The lines below the table: why there is no plan, what failed, and what was stopped early."""
    stopped_early = {s.value: s.sentence.removesuffix(".") for s in Stopped if s is not Stopped.COMPLETE}
    notes = []
    for row in comparison.rows:
        remarks = [remark for remark in (row.error or row.reason, stopped_early.get(row.stopped)) if remark]
        if remarks:
            notes.append(f"{row.solver}: {'; '.join(remarks)}")
    return notes


def point_line(point: Point) -> str:
    """One point in a line, printed as soon as it is known."""
    overhead = "" if point.overhead is None else f", {point.overhead:+.2%} time"
    return f"{format_bytes(point.budget_bytes)}: {point.status}{overhead} ({point.seconds:.1f} s)"


def sweep_table(sweep: Sweep) -> Table:
    """The curve for people, with a row for each budget."""
    from rich.table import Table

    title = f"{sweep.name}: {sweep.solver}; store-all needs {format_bytes(sweep.store_all_peak_bytes)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for name in ("budget", "peak", "time", "overhead", "bound", "gap", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for point in sweep.points:
        table.add_row(
            format_bytes(point.budget_bytes),
            _cell(format_bytes, point.peak_bytes),
            _cell(format_ns, point.time_ns),
            _cell("{:+.2%}".format, point.overhead),
            _cell(format_ns, point.bound_ns),
            _cell("{:.2%}".format, point.gap),
            f"{point.seconds:.2f}",
            point.status,
        )
    return table


def sweep_notes(sweep: Sweep, written: Path | None) -> list[str]:
    """The lines below the table: the smallest peak, points without a plan, and why the sweep stopped early."""
    notes = [
        f"smallest peak found: {_share(format_bytes, sweep.smallest_peak_bytes, sweep.store_all_peak_bytes)}; "
        f"proven: none is below {format_bytes(sweep.peak_bound_bytes)}"
    ]
    notes += [f"{format_bytes(p.budget_bytes)}: {p.reason}" for p in sweep.points if p.plan is None and p.reason]
    if sweep.stopped is not Stopped.COMPLETE:
        notes.append(sweep.stopped.sentence)
    return notes if written is None else [*notes, f"written to {written}"]


def _cell(form: Callable[[Any], str], value: float | None) -> str:
    """The text of a table's cell; empty where there is no value."""
    return "" if value is None else form(value)
