"""The output of the command line: exit codes, one clear line per error, JSON alone on stdout, progress on stderr."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from typer.core import TyperGroup
from typer.exceptions import TyperException

from remat_solvers.errors import InfeasibleError, RematError

if TYPE_CHECKING:
    from rich.table import Table

    from remat_solvers.result import Progress

INTERRUPTED = 130  # the exit code that typer gives Ctrl-C
SECONDS_BETWEEN_REPORTS = 1.0


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    BAD_INPUT = 1  # usage, or an input that cannot be used
    NO_PLAN = 2  # infeasible, or none found
    LIMIT = 3  # time limit or Ctrl-C before any plan
    FAILED = 4  # validation or verification failed


class Commands(TyperGroup):
    """The commands, which return their exit code; errors become one line on stderr and the right code."""

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run the command that `args` (by default the process's arguments) names, then exit."""
        sys.exit(_guard(lambda: super(Commands, self).main(args, **{**extra, "standalone_mode": False})))


def _guard(run: Callable[[], int | None]) -> ExitCode:
    """The exit code that `run` returns, or that of its error, which is printed."""
    try:
        code = run() or ExitCode.OK
        if code != INTERRUPTED:
            return ExitCode(code)
        log("interrupted: there is no result yet, and nothing was written")
        return ExitCode.LIMIT
    except InfeasibleError as error:
        log(f"no plan: {error}")
        return ExitCode.NO_PLAN
    except TyperException as error:
        log(f"error: {error.format_message()}\nTry `remat --help`, or `remat COMMAND --help`.")
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        log(f"error: {name}{error.strerror or error}. Check that the path exists and may be read or written.")
    except RematError as error:
        log(f"error: {error}")
    return ExitCode.BAD_INPUT


def log(message: str) -> None:
    """Print a message for people on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Print `data` as one line of JSON on stdout."""
    print(json.dumps(data, allow_nan=False, default=str))


def print_table(table: Table, notes: Sequence[str] = ()) -> None:
    """Print a table on stdout, with notes below it."""
    from rich.console import Console

    Console().print(table)
    if notes:
        print("\n".join(["", *notes]))


def check_writable(path: Path | None) -> None:
    """Raise OSError, before minutes of work, where `path` could not be written after it."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        return  # a device or a pipe is written to as it is
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def progress_printer() -> Callable[[Progress], None]:
    """A callback that reports on stderr, at most once a second."""
    from remat_solvers.units import format_bytes, format_ns

    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < SECONDS_BETWEEN_REPORTS:
            return
        last = time.monotonic()
        parts = [f"{progress.seconds:6.1f} s"]
        if progress.time_ns is not None and progress.peak_bytes is not None:
            parts.append(f"best {format_ns(progress.time_ns)} at {format_bytes(progress.peak_bytes)}")
        if progress.bound_ns is not None:
            scope = "" if progress.order is None else f" {progress.order.scope}"
            parts.append(f"no plan is faster than {format_ns(progress.bound_ns)}{scope}")
        log("  ".join([*parts, progress.message]).rstrip())

    return report
