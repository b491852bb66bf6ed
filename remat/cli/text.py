"""Problems, plans and results in a few lines: GiB and ms for people, bytes and ns for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from remat_solvers.formats import PlanFile
from remat_solvers.problem import Problem
from remat_solvers.result import Result, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.simulate import Timeline
from remat_solvers.units import format_bytes, format_ns

if TYPE_CHECKING:
    from rich.table import Table

    from remat_solvers.comparing import Comparison, Row

__all__ = [
    "ProblemSummary",
    "comparison_notes",
    "comparison_table",
    "describe_problem",
    "problem_line",
    "replay_lines",
    "result_lines",
    "row_line",
    "share",
]


class ProblemSummary(TypedDict):
    """A problem in a few numbers."""

    name: str
    fingerprint: str
    ops: int
    values: int
    constant_bytes: int
    store_all_peak_bytes: int
    store_all_time_ns: int


def describe_problem(problem: Problem) -> ProblemSummary:
    """The problem in a few numbers, those of the unmodified step (store-all) included."""
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
    """The problem in one line."""
    known = describe_problem(problem)
    peak, floor = format_bytes(known["store_all_peak_bytes"]), format_bytes(known["constant_bytes"])
    step = format_ns(known["store_all_time_ns"])
    return f"{known['ops']} ops, {known['values']} values; store-all peak {peak} (constants {floor}), step {step}"


def replay_lines(problem: Problem, made: PlanFile, timeline: Timeline) -> list[str]:
    """What a plan costs on `problem`, beside store-all and beside what its file says."""
    unmodified = describe_problem(problem)
    lines = []
    for name, now, then, before, show in (
        ("peak", timeline.peak_bytes, made.peak_bytes, unmodified["store_all_peak_bytes"], format_bytes),
        ("time", timeline.time_ns, made.time_ns, unmodified["store_all_time_ns"], format_ns),
    ):
        changed = "" if now == then else f"; {show(then)} when it was made"
        lines.append(f"{name}  {share(show(now), now, show(before), before)}{changed}")
    return [*lines, f"wait  {format_ns(timeline.wait_ns)}, host {format_bytes(timeline.host_bytes)}"]


def result_lines(result: Result, written: Path | None) -> list[str]:
    """A solver's answer; without a plan, what is known to be possible."""
    if result.peak_bytes is None or result.time_ns is None:
        lowest = result.smallest_peak_bytes
        known = "" if lowest is None else f"; {format_bytes(lowest)} is the smallest peak known to be reachable"
        floor = format_bytes(result.peak_bound_bytes)
        return [f"No plan is below {floor}{known}. Try a larger budget or another solver."]
    before, step = result.store_all_peak_bytes, result.store_all_time_ns
    lines = [
        f"budget  {format_bytes(result.budget_bytes)}",
        f"peak    {share(format_bytes(result.peak_bytes), result.peak_bytes, format_bytes(before), before)}",
        f"time    {share(format_ns(result.time_ns), result.time_ns, format_ns(step), step)}",
    ]
    lines.append(f"floor   {format_bytes(result.peak_bound_bytes)}: no plan's peak is lower")
    if result.gap is not None:
        lines.append(f"gap     {result.gap:.2%}: no plan within the budget is faster by more than that")
    lines.append(f"solved  in {result.seconds:.2f} s; {result.stopped.sentence}")
    return lines if written is None else [*lines, f"plan    {written}"]


def share(shown: str, part: int, shown_whole: str, whole: int) -> str:
    """A part as it is shown, and which share of the whole it is."""
    return f"{shown}, {part / max(whole, 1):.1%} of store-all's {shown_whole}"


def row_line(row: Row) -> str:
    """One method's answer, while the others are still asked."""
    found = "" if row.overhead is None else f", {row.overhead:+.2%} time"
    return f"{row.solver}: {row.error or row.status}{found} ({row.seconds:.1f} s)"


def comparison_table(comparison: Comparison) -> Table:
    """Every method side by side, for people."""
    from rich.table import Table

    whole = comparison.store_all_peak_bytes
    budget = share(format_bytes(comparison.budget_bytes), comparison.budget_bytes, format_bytes(whole), whole)
    table = Table(title=f"{comparison.name}: budget {budget} peak", title_justify="left", box=None)
    for name in ("solver", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("peak", "time over store-all", "gap", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            row.solver,
            row.status,
            "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            "" if row.overhead is None else f"{row.overhead:+.2%}",
            "" if row.gap is None else f"{row.gap:.2%}",
            f"{row.seconds:.2f}",
        )
    return table


def comparison_notes(comparison: Comparison) -> list[str]:
    """What there is to say beside the numbers: why there is no plan, what failed, what was cut short."""
    cut_short = {s.value: s.sentence.removesuffix(".") for s in Stopped if s is not Stopped.COMPLETE}
    notes = []
    for row in comparison.rows:
        said = [row.error or row.reason, cut_short.get(row.stopped, "")]
        if any(said):
            notes.append(f"{row.solver}: {'; '.join(filter(None, said))}")
    return notes
