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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Apart", "child", "solve_apart"]

CHILD = (
    "import sys; from remat_solvers.recompute.highs_apart import child; child(sys.argv[1], *map(float, sys.argv[2:]))"
)
GRACE_S = 1.0  # after the limit, to write down the end
POLL_S = 0.05
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Apart:
    """What the child wrote down."""

    status: str  # the name of HiGHS's model status; empty where it was killed
    values: NDArray[np.float64] | None  # of the columns; None: no point
    bound: float
    interrupted: bool = False


def solve_apart(model: Any, seconds: float | None, gap: float) -> Apart:
    """Solve the program of a `highspy.Highs` in another process, killed a little after its limit.

    gap: the absolute one, at which a point counts as optimal.
    """
    with tempfile.TemporaryDirectory(prefix="remat-highs-") as folder:
        model.writeModel(os.path.join(folder, "model.mps"))
        limit = FOREVER if seconds is None else seconds
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, folder, repr(limit), repr(gap)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # Ctrl-C is for us
        )
        interrupted = False
        try:
            process.wait(None if seconds is None else seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()
        return _read(Path(folder), interrupted)


def child(folder: str, limit: float, gap: float) -> None:
    """What the other process does."""
    import highspy

    place = Path(folder)
    model = highspy.Highs()  # type: ignore[no-untyped-call]
    gaps = (("mip_rel_gap", 0.0), ("mip_abs_gap", gap))
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", limit), *gaps):
        model.setOptionValue(option, value)
    model.readModel(str(place / "model.mps"))

    def found(event: Any) -> None:
        out = event.data_out
        _write(place, "", np.array(out.mip_solution), out.mip_dual_bound)

    model.cbMipImprovingSolution.subscribe(found)
    model.run()
    info = model.getInfo()
    has_point = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    values = np.array(model.getSolution().col_value) if has_point else None
    bound = info.mip_dual_bound if model.getLp().integrality_ else info.objective_function_value
    _write(place, model.getModelStatus().name, values, bound)


def _write(place: Path, status: str, values: NDArray[np.float64] | None, bound: float) -> None:
    with open(place / "unfinished", "wb") as file:
        np.savez(file, status=status, values=np.empty(0) if values is None else values, bound=bound)
    os.replace(place / "unfinished", place / "found.npz")


def _read(place: Path, interrupted: bool) -> Apart:
    if not (place / "found.npz").exists():
        return Apart("", None, -FOREVER, interrupted)
    with np.load(place / "found.npz") as found:
        values = found["values"]
        return Apart(str(found["status"]), values if len(values) else None, float(found["bound"]), interrupted)
