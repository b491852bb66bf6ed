"""Commands of the command line, run in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from remat.cli.app import app

OK, BAD_INPUT, NO_PLAN, LIMIT, FAILED = range(5)


def run(*args: object, code: int = OK, columns: int = 80) -> Result:
    """Run a command on a terminal of `columns` columns, check its exit code, and return its output."""
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(argument) for argument in args])
    assert done.exit_code == code, f"{done.stdout}\n{done.stderr}\n{done.exception!r}"
    assert "Traceback" not in done.output
    return done


def run_json(*args: object, code: int = OK) -> Any:
    """Return the JSON document that the command prints."""
    return json.loads(run(*args, "--json", code=code).stdout)
