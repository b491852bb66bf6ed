"""HiGHS in a process of its own, which can be killed.

Its presolve has been seen to run on for ever on some of our larger programs, whatever the time limit and deaf to its
own interrupt (HiGHS 1.16; hangs in presolve are a known kind of report, ERGO-Code/HiGHS#1280 and #3074). A thread
of ours that is stuck there could never be stopped. The child writes down every incumbent as it finds it, so killing it
loses nothing but the proof.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from remat_solvers.toolkit.arrays import Floats

__all__ = ["Apart", "Solving", "child", "run", "solve_apart"]

CHILD = """
import sys
from remat_solvers.toolkit.programs.highs_process import child
child(sys.argv[1], *map(float, sys.argv[2:]))
"""
GRACE_S = 1.0  # after the limit, to write down the end
POLL_S = 0.05
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Apart:
    """What the child wrote down."""

    status: str  # the name of HiGHS's model status; empty where it was killed
    values: Floats | None  # of the columns; None: no point
    bound: float
    interrupted: bool = False


class Solving:
    """A program being solved in another process: `read` what it has so far, and `close` it.

    seconds: its limit, None: none; gap: the absolute one, at which a point counts as optimal.
    """

    def __init__(self, model: Any, seconds: float | None, gap: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="remat-highs-")
        model.writeModel(os.path.join(self._folder.name, "model.mps"))
        limit = FOREVER if seconds is None else seconds
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, self._folder.name, repr(limit), repr(gap)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # Ctrl-C is for us
        )

    def wait(self, seconds: float | None) -> bool:
        """Whether it has come to its end, within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def read(self) -> Apart:
        """What is written down by now."""
        return _read(Path(self._folder.name))

    def close(self) -> None:
        """Kill it, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.wait()
        self._folder.cleanup()


def solve_apart(model: Any, seconds: float | None, gap: float) -> Apart:
    """Solve the program of a `highspy.Highs` in another process, killed a little after its limit. See `Solving`."""
    solving = Solving(model, seconds, gap)
    interrupted = False
    try:
        solving.wait(None if seconds is None else seconds + GRACE_S)
    except KeyboardInterrupt:
        interrupted = True
    try:
        return replace(solving.read(), interrupted=interrupted)
    finally:
        solving.close()


def child(folder: str, limit: float, gap: float) -> None:
    """What the other process does."""
    import highspy

    place = Path(folder)
    model = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", limit)):
        model.setOptionValue(option, value)
    model.readModel(str(place / "model.mps"))
    run(model, gap, lambda known: _write(place, known))


def run(model: Any, gap: float, heard: Callable[[Apart], object] | None = None) -> Apart:
    """Solve a `highspy.Highs` here; better points and bounds are `heard` of as they come."""
    import highspy

    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", gap)
    known = Apart("", None, -FOREVER)

    def found(event: Any) -> None:
        nonlocal known
        known = Apart("", np.array(event.data_out.mip_solution), max(known.bound, event.data_out.mip_dual_bound))
        if heard is not None:
            heard(known)

    def risen(event: Any) -> None:
        nonlocal known
        bound = event.data_out.mip_dual_bound
        if bound > known.bound + gap and bound < FOREVER:
            known = replace(known, bound=bound)
            if heard is not None:
                heard(known)

    model.cbMipImprovingSolution.subscribe(found)
    model.cbMipInterrupt.subscribe(risen)
    model.run()
    info = model.getInfo()
    has_point = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    values = np.array(model.getSolution().col_value) if has_point else None
    bound = info.mip_dual_bound if model.getLp().integrality_ else info.objective_function_value
    known = Apart(model.getModelStatus().name, values, bound)
    if heard is not None:
        heard(known)
    return known


def _write(place: Path, known: Apart) -> None:
    values = np.empty(0) if known.values is None else known.values
    with open(place / "unfinished", "wb") as file:
        np.savez(file, status=known.status, values=values, bound=known.bound)
    os.replace(place / "unfinished", place / "found.npz")


def _read(place: Path) -> Apart:
    if not (place / "found.npz").exists():
        return Apart("", None, -FOREVER)
    with np.load(place / "found.npz") as found:
        values = found["values"]
        return Apart(str(found["status"]), values if len(values) else None, float(found["bound"]))
