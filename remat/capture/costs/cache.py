"""A cache of measured costs on disk, so that an op is timed once per machine. Several processes may use it at once.

It is one SQLite file in the folder $REMAT_CACHE_DIR, else $XDG_CACHE_HOME/remat, else ~/.cache/remat. Where the folder
cannot be written, nothing is stored, and no error is raised. A broken file is replaced.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import torch

Row = tuple[int, int, int, int]
"""The costs of one execution: time_ns, spread_ns, workspace_bytes, kept_bytes."""

_BUSY_S = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS costs_2 "
    "(key TEXT PRIMARY KEY, time_ns INTEGER, spread_ns INTEGER, workspace_bytes INTEGER, kept_bytes INTEGER)"
)


def cache_path() -> Path:
    """Return the path of the cache file."""
    folder = os.environ.get("REMAT_CACHE_DIR")
    if folder:
        return Path(folder) / "costs.sqlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remat" / "costs.sqlite"


def read_rows(keys: Iterable[str]) -> dict[str, Row]:
    """Return the rows of those `keys` that the cache knows."""
    path = cache_path()
    if not path.exists():
        return {}
    rows: dict[str, Row] = {}
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as db:
            for key in keys:
                row = db.execute(
                    "SELECT time_ns, spread_ns, workspace_bytes, kept_bytes FROM costs_2 WHERE key = ?", (key,)
                ).fetchone()
                if row is not None and all(isinstance(number, int) and number >= 0 for number in row):
                    rows[key] = row
    except sqlite3.Error:
        return {}
    return rows


def write_rows(rows: Mapping[str, Row]) -> None:
    """Store `rows`, where the cache can be written."""
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _insert(path, rows)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # subclasses are raised for a lock or a full disk
                return
            path.unlink(missing_ok=True)
            _insert(path, rows)
    except (OSError, sqlite3.Error):
        return


def _insert(path: Path, rows: Mapping[str, Row]) -> None:
    with closing(sqlite3.connect(path, timeout=_BUSY_S)) as db, db:
        db.execute(_TABLE)
        db.executemany("INSERT OR REPLACE INTO costs_2 VALUES (?, ?, ?, ?, ?)", [(k, *r) for k, r in rows.items()])


def device_name(device: torch.device) -> str:
    """Return the name under which costs of `device` are stored: the model of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else device.type


@lru_cache
def _cpu_name() -> str:
    """Return the model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
