"""Writes a sweep to disk: as one .json file, or as a folder with a plan file for each point."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from remat.cli.terminal import check_writable
from remat_solvers.formats import save_plan, save_sweep
from remat_solvers.pareto import Sweep


def check_sweep_path(path: Path | None) -> None:
    """Raise OSError, before minutes of work, where `save_sweep_files` could not write to `path`."""
    if path is None or _is_file(path):
        check_writable(path)
    elif path.exists():
        if any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, "is a folder that holds files; name a new one, or a .json file", str(path))
        check_writable(path / "sweep.json")
    else:
        check_writable(path)


def save_sweep_files(path: Path, sweep: Sweep) -> None:
    """Write the sweep, whole or not at all.

    A path that ends in .json, or that exists and is no folder, becomes one file. Any other becomes a folder with
    `sweep.json` and, for each point with a plan, `plan-BUDGET.json`, where BUDGET is in bytes.
    """
    if _is_file(path):
        save_sweep(path, sweep)
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.mkdir()
    try:
        save_sweep(unfinished / "sweep.json", sweep)
        for point in sweep.points:
            if point.plan is not None:
                save_plan(unfinished / f"plan-{point.budget_bytes}.json", sweep.result(point))
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _is_file(path: Path) -> bool:
    return not path.is_dir() if path.exists() else path.suffix == ".json"
