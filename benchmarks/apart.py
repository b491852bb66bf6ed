"""A question to `auto` in a process of its own: what it answered, when it knew what, and the memory that took.

Its processes end with it, so that what hangs costs one answer and not the table.
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

__all__ = ["Answer", "Asked", "ask"]

GRACE = 2.0  # times the limit, and
GRACE_S = 90.0  # loading and starting included: after that it is killed


@dataclass(frozen=True)
class Asked:
    """A problem of problems.py, a budget and options of auto."""

    problem: str
    seconds: float
    share: float | None = None  # budget in per cent of the store-all peak, constants apart
    budget_bytes: int | None = None  # the same in bytes; None, and no share: the smallest peak is looked for
    seed: int = 0
    options: Mapping[str, Any] | None = None
    link: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came of it. Overheads, bounds and gaps in per cent of the store-all time, peaks of the store-all peak."""

    overhead: float | None = None
    bound: float | None = None
    order: str = ""  # the plans that the bound is about
    gap: float | None = None
    status: str = ""
    seconds: float | None = None  # the solver's own
    cpu_s: float | None = None  # processor time, that of its children included
    smallest_peak: float | None = None  # known to be reachable, constants apart
    peak_bound: float | None = None  # proven
    memory_gib: float | None = None
    history: Sequence[tuple[float, float | None, float | None]] = ()  # seconds, overhead, bound: as reported
    error: str = ""

    @property
    def first_s(self) -> float | None:
        """When the first plan was reported; without reports, when it was answered."""
        return next((seconds for seconds, overhead, _ in self.history if overhead is not None), None)

    def reached_s(self, gap: float) -> float | None:
        """When plan and bound were first within `gap` of each other."""
        for seconds, overhead, bound in self.history:
            if overhead is not None and bound is not None and overhead - bound <= gap:
                return seconds
        return None


def ask(asked: Asked) -> Answer:
    """The answer, or why there is none."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, asked))
    process.start()
    sender.close()
    patience = GRACE * asked.seconds + GRACE_S
    try:
        if receiver.poll(patience):
            return Answer(**receiver.recv())
        return Answer(error=f"killed after {patience:.0f} s")
    except EOFError:
        process.join()
        return Answer(error=f"ended with code {process.exitcode}")
    finally:
        if process.is_alive():
            process.join(5)
        _kill(process)


def _kill(process: Any) -> None:
    if process.is_alive():
        os.killpg(process.pid, 9)  # the child leads a group of its own
    process.join()


def _answer(sender: Connection, asked: Asked) -> None:
    os.setpgid(0, 0)
    try:
        answer = _solve(asked)
    except Exception as error:
        answer = Answer(error=f"{type(error).__name__}: {error}")
    sender.send(asdict(answer))


def _solve(asked: Asked) -> Answer:
    import problems

    from remat_solvers.optimal.min_peak import minimise_peak
    from remat_solvers.processes.stopwatch import Stopwatch
    from remat_solvers.registry import create
    from remat_solvers.result import Limits, Progress
    from remat_solvers.schedule import baseline
    from remat_solvers.solving import solve
    from remat_solvers.units import parse_link

    problem = problems.load(asked.problem)
    if asked.link is not None:
        problem = replace(problem, link=parse_link(asked.link))
    unmodified = baseline(problem)
    constant = problem.static_bytes
    moving, step_ns = unmodified.peak_bytes - constant, unmodified.time_ns
    reports: list[Progress] = []
    begin = _cpu_s()

    def of_peak(peak_bytes: int) -> float:
        return 100 * (peak_bytes - constant) / max(1, moving)

    if asked.share is None and asked.budget_bytes is None:
        watch = Stopwatch(Limits(None))
        least = minimise_peak(problem, limits=Limits(asked.seconds), on_progress=reports.append, seed=asked.seed)
        return Answer(
            overhead=100 * (least.time_ns / step_ns - 1),
            seconds=watch.seconds,
            cpu_s=_cpu_s() - begin,
            smallest_peak=of_peak(least.peak_bytes),
            peak_bound=of_peak(least.peak_bound_bytes),
            memory_gib=_memory_gib(),
        )
    budget = asked.budget_bytes or constant + int((asked.share or 0) / 100 * moving)
    result = solve(
        problem,
        budget,
        solver=create("auto", **(asked.options or {})),
        limits=Limits(asked.seconds),
        on_progress=reports.append,
        seed=asked.seed,
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
    """The most this process held, and the most that any of its children did."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
