"""Solves a program with HiGHS in a process of its own, which can be killed.

The presolve of HiGHS may run for ever on some larger programs, whatever the time limit, and ignore its own interrupt
(HiGHS 1.16; hangs in presolve are a known kind of report, ERGO-Code/HiGHS#1280 and #3074). A thread that is stuck there
could never be stopped. The child process leaves every incumbent as it finds it, so killing it loses nothing but the
proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from remat_solvers.processes.child import FolderChild, leave_answer
from remat_solvers.toolkit.arrays import Floats

TARGET = "remat_solvers.toolkit.programs.highs_process:run_child"
MODEL = "model.mps"
GRACE_S = 1.0  # after the limit, to leave the last report
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class MipReport:
    """The state of a solve: the incumbent and the bound."""

    status: str  # the name of HiGHS's model status; empty where the solve has not ended
    values: Floats | None  # of the columns; None: no point is known
    bound: float
    interrupted: bool = False


NOTHING = MipReport("", None, -FOREVER)


class MipProcess:
    """A program that is being solved in another process: `read` its latest report, and `close` it.

    seconds: the time limit, None: none; gap: the absolute gap at which a point counts as optimal.
    """

    def __init__(self, model: Any, seconds: float | None, gap: float) -> None:
        self._child = FolderChild(TARGET)
        model.writeModel(str(self._child.folder / MODEL))
        self._child.start(repr(FOREVER if seconds is None else seconds), repr(gap))

    def wait(self, seconds: float | None) -> bool:
        """Whether the process ends within `seconds`; None: wait as long as it takes."""
        return self._child.wait(seconds) is not None

    def read(self) -> MipReport:
        """Return the latest report."""
        report = self._child.answer()
        return report if isinstance(report, MipReport) else NOTHING

    def close(self) -> None:
        """Kill the process if it still runs."""
        self._child.close()


def solve_mip_in_subprocess(model: Any, seconds: float | None, gap: float) -> MipReport:
    """Solve the program of a `highspy.Highs` in another process, killed shortly after its limit. See `MipProcess`."""
    process = MipProcess(model, seconds, gap)
    interrupted = False
    try:
        process.wait(None if seconds is None else seconds + GRACE_S)
    except KeyboardInterrupt:
        interrupted = True
    try:
        return replace(process.read(), interrupted=interrupted)
    finally:
        process.close()


def run_child(folder: str, seconds: str, gap: str) -> None:
    """Solve the model in `folder`, in the other process."""
    import highspy

    model = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", float(seconds))):
        model.setOptionValue(option, value)
    model.readModel(str(Path(folder) / MODEL))
    run_highs(model, float(gap), lambda report: leave_answer(folder, report))


def run_highs(model: Any, gap: float, on_report: Callable[[MipReport], object] = lambda _: None) -> MipReport:
    """Solve a `highspy.Highs` in this process; `on_report` is called with every better point or bound."""
    import highspy

    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", gap)
    report = NOTHING

    def report_point(event: Any) -> None:
        nonlocal report
        report = MipReport("", np.array(event.data_out.mip_solution), max(report.bound, event.data_out.mip_dual_bound))
        on_report(report)

    def report_bound(event: Any) -> None:
        nonlocal report
        bound = event.data_out.mip_dual_bound
        if bound > report.bound + gap and bound < FOREVER:
            report = replace(report, bound=bound)
            on_report(report)

    model.cbMipImprovingSolution.subscribe(report_point)
    model.cbMipInterrupt.subscribe(report_bound)
    model.run()
    info = model.getInfo()
    has_point = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    values = np.array(model.getSolution().col_value) if has_point else None
    bound = info.mip_dual_bound if model.getLp().integrality_ else info.objective_function_value
    report = MipReport(model.getModelStatus().name, values, bound)
    on_report(report)
    return report
