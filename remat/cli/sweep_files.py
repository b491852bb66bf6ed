"""A sweep for people, and on disk: one .json file, or a folder with a plan file for each point."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from remat.cli.terminal import check_writable
from remat.cli.text import share
from remat_solvers.formats import save_plan, save_sweep
from remat_solvers.pareto import Point, Sweep
from remat_solvers.result import Stopped
from remat_solvers.units import format_bytes, format_ns

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["check_place", "point_line", "save_curve", "sweep_notes", "sweep_table"]


def check_place(path: Path | None) -> None:
    """Raise OSError now, not after minutes of work, where `save_curve` could not write to `path`."""
    if path is None or _is_file(path):
        check_writable(path)
    elif path.exists():
        if any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, "is a folder that holds files; name a new one, or a .json file", str(path))
        check_writable(path / "sweep.json")
    else:
        check_writable(path)


def save_curve(path: Path, sweep: Sweep) -> None:
    """Write the sweep, whole or not at all.

    A path that ends in .json, and what exists and is no folder, becomes one file. Any other is a folder: `sweep.json`,
    and for each point with a plan `plan-BUDGET.json`, its budget in bytes.
    """
    if _is_file(path):
        save_sweep(path, sweep)
        return
    path = path.resolve()
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    made.mkdir()
    try:
        save_sweep(made / "sweep.json", sweep)
        for point in sweep.points:
            if point.plan is not None:
                save_plan(made / f"plan-{point.budget_bytes}.json", sweep.result(point))
        os.replace(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _is_file(path: Path) -> bool:
    return not path.is_dir() if path.exists() else path.suffix == ".json"


def point_line(point: Point) -> str:
    """One point, while the others are still to come."""
    found = "" if point.overhead is None else f", {point.overhead:+.2%} time"
    return f"{format_bytes(point.budget_bytes)}: {point.status}{found} ({point.seconds:.1f} s)"


def sweep_table(sweep: Sweep) -> Table:
    """The curve, a row per budget."""
    from rich.table import Table

    title = f"{sweep.name}: {sweep.solver}; store-all needs {format_bytes(sweep.store_all_peak_bytes)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for name in ("budget", "peak", "time", "overhead", "bound", "gap", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for point in sweep.points:
        table.add_row(
            format_bytes(point.budget_bytes),
            "" if point.peak_bytes is None else format_bytes(point.peak_bytes),
            "" if point.time_ns is None else format_ns(point.time_ns),
            "" if point.overhead is None else f"{point.overhead:+.2%}",
            "" if point.bound_ns is None else format_ns(point.bound_ns),
            "" if point.gap is None else f"{point.gap:.2%}",
            f"{point.seconds:.2f}",
            point.status,
        )
    return table


def sweep_notes(sweep: Sweep, written: Path | None) -> list[str]:
    """What there is to say beside the numbers."""
    smallest, whole = sweep.smallest_peak_bytes, sweep.store_all_peak_bytes
    notes = [
        f"smallest peak found: {share(format_bytes(smallest), smallest, format_bytes(whole), whole)}; "
        f"proven: none is below {format_bytes(sweep.peak_bound_bytes)}"
    ]
    notes += [f"{format_bytes(p.budget_bytes)}: {p.reason}" for p in sweep.points if p.plan is None and p.reason]
    if sweep.stopped is not Stopped.COMPLETE:
        notes.append(sweep.stopped.sentence)
    return notes if written is None else [*notes, f"written to {written}"]
