"""A solver in a process of its own: it may hang, crash or eat the memory, and the caller still gets an answer.

The child is a fresh interpreter that shares no state with the caller. It is asked through a file, answers through a
file, and keeps stdout and stderr for itself, so that whatever a backend prints mixes with nothing. It is killed,
with all that it started, when it has not answered a little after its time limit.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from remat_solvers.problem import Problem
from remat_solvers.registry import Solver
from remat_solvers.result import Limits, Result
from remat_solvers.solving import solve

__all__ = ["SolverFailedError", "solve_apart"]

CHILD = "import sys; from remat_solvers.isolation import answer; answer(sys.argv[1])"
START_S = 15.0  # for a child to start and read the problem, on a busy machine
GRACE_SHARE = 0.25  # of the limit: backends look at their clocks between steps
LAST_WORDS = 200  # characters of a crashed child's stderr that are shown


class SolverFailedError(Exception):
    """A method crashed, or had to be killed."""


@dataclass(frozen=True, slots=True)
class _Question:
    problem: Problem
    budget_bytes: int
    solver: str | Solver
    limits: Limits
    seed: int


def solve_apart(
    problem: Problem,
    budget_bytes: int,
    *,
    solver: str | Solver,
    limits: Limits,
    seed: int = 0,
) -> Result:
    """`remat_solvers.solve` in a process of its own, killed a while after its limit: a quarter of it and START_S.

    A solver object must be importable where Python finds its class now. Raises SolverFailedError, which says how, where
    the method crashed or did not end, and KeyboardInterrupt, after killing it, on Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="remat-solve-") as folder:
        place = Path(folder)
        (place / "question").write_bytes(pickle.dumps(_Question(problem, budget_bytes, solver, limits, seed)))
        with open(place / "said", "wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, folder],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,
            )
        limit = None if limits.seconds is None else limits.seconds * (1 + GRACE_SHARE) + START_S
        code: int | None = None
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            if not (place / "answer").exists():
                raise SolverFailedError(f"killed: no answer within {limit:.0f} s") from None
        finally:
            _kill(child)
        return _read(place, code or 0)


def answer(folder: str) -> None:
    """What the child does: solve, and leave the result, or the error, in `folder`."""
    place = Path(folder)
    content: Result | SolverFailedError
    try:
        question: _Question = pickle.loads((place / "question").read_bytes())
        content = solve(
            question.problem, question.budget_bytes, solver=question.solver, limits=question.limits, seed=question.seed
        )
    except Exception as error:
        traceback.print_exc()
        content = SolverFailedError(f"{type(error).__name__}: {error}")
    unfinished = place / "unfinished"
    unfinished.write_bytes(pickle.dumps(content))
    unfinished.rename(place / "answer")


def _read(place: Path, code: int) -> Result:
    if not (place / "answer").exists():
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        words = (place / "said").read_text(errors="replace").strip()[-LAST_WORDS:]
        raise SolverFailedError(": ".join([how, *words.splitlines()[-1:]]))
    content: Result | SolverFailedError = pickle.loads((place / "answer").read_bytes())
    if isinstance(content, SolverFailedError):
        raise content
    return content


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started; nothing happens where it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)  # its own session, so its group bears its id
        else:
            child.kill()
    child.wait()
