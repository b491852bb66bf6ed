"""Runs `auto` on one task in its own process, and returns its result, its reports over time, and its memory.

The process and its children are killed at the end, so that a task that hangs costs one answer and not the table.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "solvers")]

__all__ = ["Answer", "Task", "run_task"]

GRACE_FACTOR, GRACE_S = 2.0, 90.0  # a task is killed after this factor of its limit, and these seconds


@dataclass(frozen=True)
class Task:
    """A problem of problems.py, a budget and options of auto."""

    problem: str
    seconds: float
    share: float | None = None  # budget in per cent of the store-all peak, without static bytes
    budget_bytes: int | None = None  # the budget in bytes; where both are None, the smallest peak is searched for
    seed: int = 0
    options: Mapping[str, Any] | None = None
    link: str | None = None


@dataclass(frozen=True)
class Answer:
    """The result. Overheads, bounds and gaps are in per cent of the store-all time, peaks of the store-all peak."""

    overhead: float | None = None
    bound: float | None = None
    order: str = ""  # the order of first computations to which the bound applies
    gap: float | None = None
    status: str = ""
    seconds: float | None = None  # the solver's own
    cpu_s: float | None = None  # processor time, with that of child processes
    smallest_peak: float | None = None  # of a known plan, without static bytes
    peak_bound: float | None = None  # proven, without static bytes
    memory_gib: float | None = None
    history: Sequence[tuple[float, float | None, float | None]] = ()  # reports: (seconds, overhead, bound)
    error: str = ""

    @property
    def first_s(self) -> float | None:
        """Return the seconds until the first plan was reported."""
        return next((seconds for seconds, overhead, _ in self.history if overhead is not None), None)

    def reached_s(self, gap: float) -> float | None:
        """Return the seconds until overhead and bound were within `gap` of each other."""
        for seconds, overhead, bound in self.history:
            if overhead is not None and bound is not None and overhead - bound <= gap:
                return seconds
        return None


def run_task(task: Task) -> Answer:
    """Run `task` and return its answer, which states the error where the process fails or is killed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_answer, args=(sender, task))
    process.start()
    sender.close()
    timeout_s = GRACE_FACTOR * task.seconds + GRACE_S
    try:
        if receiver.poll(timeout_s):
            return Answer(**receiver.recv())
        return Answer(error=f"killed after {timeout_s:.0f} s")
    except EOFError:
        process.join()
        return Answer(error=f"ended with code {process.exitcode}")
    finally:
        if process.is_alive():
            process.join(5)
        _kill(process)


def _kill(process: Any) -> None:
    if process.is_alive():
        os.killpg(process.pid, 9)  # the child leads its own process group
    process.join()


def _send_answer(sender: Connection, task: Task) -> None:
    os.setpgid(0, 0)
    try:
        answer = _solve(task)
    except Exception as error:
        answer = Answer(error=f"{type(error).__name__}: {error}")
    sender.send(asdict(answer))


def _solve(task: Task) -> Answer:
    import problems

    from remat_solvers.optimal.min_peak import minimise_peak
    from remat_solvers.processes.stopwatch import Stopwatch
    from remat_solvers.registry import create
    from remat_solvers.result import Limits, Progress
    from remat_solvers.schedule import baseline
    from remat_solvers.solving import solve
    from remat_solvers.units import parse_link

    problem = problems.load(task.problem)
    if task.link is not None:
        problem = replace(problem, link=parse_link(task.link))
    store_all = baseline(problem)
    constant = problem.static_bytes
    moving, step_ns = store_all.peak_bytes - constant, store_all.time_ns
    reports: list[Progress] = []
    begin = _cpu_s()

    def of_peak(peak_bytes: int) -> float:
        return 100 * (peak_bytes - constant) / max(1, moving)

    if task.share is None and task.budget_bytes is None:
        watch = Stopwatch(Limits(None))
        smallest = minimise_peak(problem, limits=Limits(task.seconds), on_progress=reports.append, seed=task.seed)
        return Answer(
            overhead=100 * (smallest.time_ns / step_ns - 1),
            seconds=watch.seconds,
            cpu_s=_cpu_s() - begin,
            smallest_peak=of_peak(smallest.peak_bytes),
            peak_bound=of_peak(smallest.peak_bound_bytes),
            memory_gib=_memory_gib(),
        )
    budget = task.budget_bytes or constant + int((task.share or 0) / 100 * moving)
    result = solve(
        problem,
        budget,
        solver=create("auto", **(task.options or {})),
        limits=Limits(task.seconds),
        on_progress=reports.append,
        seed=task.seed,
    )

    def over(time_ns: int | None) -> float | None:
        return None if time_ns is None else 100 * (time_ns / step_ns - 1)

    history = [(r.seconds, over(r.time_ns), over(r.bound_ns)) for r in reports]
    return Answer(
        overhead=over(result.time_ns),
        bound=over(result.bound_ns),
        order=result.order.value,
        gap=None if result.gap is None else 100 * result.gap,
        status=result.status.value,
        seconds=result.seconds,
        cpu_s=_cpu_s() - begin,
        smallest_peak=None if result.smallest_peak_bytes is None else of_peak(result.smallest_peak_bytes),
        peak_bound=of_peak(result.peak_bound_bytes),
        memory_gib=_memory_gib(),
        history=[*history, (result.seconds, over(result.time_ns), over(result.bound_ns))],
    )


def _cpu_s() -> float:
    return sum(os.times()[:4])


def _memory_gib() -> float:
    """Return the peak memory of this process plus the largest of its children's."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
