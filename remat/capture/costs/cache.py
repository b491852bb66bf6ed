"""Measured costs on disk, so that an op is timed once per machine: one SQLite file, safe for several processes.

The folder is $REMAT_CACHE_DIR, else $XDG_CACHE_HOME/remat, else ~/.cache/remat. A folder that cannot be
written is no error: then nothing is remembered. A broken file is replaced.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

__all__ = ["Row", "cache_path", "read_rows", "write_rows"]

Row = tuple[int, int, int, int]
"""time_ns, spread_ns, workspace_bytes, kept_bytes"""

_BUSY_S = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS costs_2 "
    "(key TEXT PRIMARY KEY, time_ns INTEGER, spread_ns INTEGER, workspace_bytes INTEGER, kept_bytes INTEGER)"
)


def cache_path() -> Path:
    """Where costs are kept."""
    own = os.environ.get("REMAT_CACHE_DIR")
    if own:
        return Path(own) / "costs.sqlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remat" / "costs.sqlite"


def read_rows(keys: Iterable[str]) -> dict[str, Row]:
    """The known ones among `keys`."""
    path = cache_path()
    if not path.exists():
        return {}
    found: dict[str, Row] = {}
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as db:
            for key in keys:
                row = db.execute(
                    "SELECT time_ns, spread_ns, workspace_bytes, kept_bytes FROM costs_2 WHERE key = ?", (key,)
                ).fetchone()
                if row is not None and all(isinstance(number, int) and number >= 0 for number in row):
                    found[key] = row
    except sqlite3.Error:
        return {}
    return found


def write_rows(rows: Mapping[str, Row]) -> None:
    """Remember `rows`."""
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _insert(path, rows)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # its subclasses are a lock, a full disk and their kind
                return
            path.unlink(missing_ok=True)
            _insert(path, rows)
    except (OSError, sqlite3.Error):
        return


def _insert(path: Path, rows: Mapping[str, Row]) -> None:
    with closing(sqlite3.connect(path, timeout=_BUSY_S)) as db, db:
        db.execute(_TABLE)
        db.executemany("INSERT OR REPLACE INTO costs_2 VALUES (?, ?, ?, ?, ?)", [(k, *r) for k, r in rows.items()])
