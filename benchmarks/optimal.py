"""Compares `auto` with its targets and with the best known results: plans, bounds, gaps, seconds.

    scripts/bench optimal                               every row; two to three hours at the limits of the table
    scripts/bench optimal --row corpus,tight            some of them
    scripts/bench optimal --row corpus --problem unet   of these some problems
    scripts/bench optimal --seconds 5                   another limit for all
    scripts/bench optimal --ablation                    each technique switched off: the cost in gap and seconds
    scripts/bench optimal --dump results.jsonl          adds each answer to a file as it comes

Every task runs in its own process. Budgets are shares of the store-all peak without static bytes; overheads, bounds and
gaps are per cent of the store-all time. `reached` is the time at which the target's gap was reached. Seconds are wall
clock and mean little on a machine that is busy otherwise: the load is printed, and processor seconds beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isolated import Answer, Task, run_task
from optimal_targets import CASES, ROWS, Case
from rich.console import Console
from rich.table import Table

EXECUTED = "executed"  # the row that executes models, and so needs torch
ABLATION_CASES = (  # cases whose gaps are not closed at once
    ("unet", 30),
    ("r50", 30),
    ("r50", 20),
    ("gptm96", 30),
    ("rl250", 80),
)
ABLATION_S, ABLATION_SEEDS = 10.0, 2
ABLATIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no search": {"search": False},
    "no windows": {"windows": False},
    "no program": {"program": False},
    "no interval cuts": {"cuts": False},
    "no lazy boundaries": {"lazy": False},
    "no published plans as starts": {"methods": False},
    "no lagrangian": {"lagrangian": False},
    "one core": {"subprocess": False},
    "given order": {"order": "given"},
}
CLOSE = 0.1  # per cent: a gap that the ablation counts as closed
EXACT = 1e-6  # rounding error allowed where two percentages are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=_names, help=f"of {', '.join((*ROWS, EXECUTED))}; with commas; default: all")
    parser.add_argument("--problem", type=_names, help="names of problems or models, with commas; default: all")
    parser.add_argument("--seconds", type=float, help="limit of each task; default: that of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablation", action="store_true", help="techniques switched off, in place of the targets")
    parser.add_argument("--dump", type=Path, help="a file of JSON lines to add to")
    options = parser.parse_args()
    unknown = set(options.row or ()) - {*ROWS, EXECUTED}
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join((*ROWS, EXECUTED))}")
    console = Console(width=170)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; seed {options.seed}")
    if options.ablation:
        console.print(ablation(options))
        return
    cases = [case for case in CASES if _wanted(options, case.row, case.problem)]
    if cases:
        table, met = targets(options, cases)
        console.print(table)
        console.print(f"{met} of {len(cases)} met")
    if options.row is None or EXECUTED in options.row:
        import optimal_executed

        console.print(optimal_executed.table(options.problem, options.seconds or optimal_executed.SECONDS))


def targets(options: argparse.Namespace, cases: list[Case]) -> tuple[Table, int]:
    """Return a table with a row per case, and the number of cases that meet their targets."""
    table = Table("row", "problem", "budget", box=None)
    for name in ("overhead", "bound", "gap", "known", "seconds", "CPU s", "first", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("target", "met", "note"):
        table.add_column(name)
    met = 0
    for case in cases:
        task = Task(
            problem=case.problem,
            seconds=options.seconds or case.seconds,
            share=case.share,
            budget_bytes=case.slots,
            seed=options.seed,
            options=case.options,
            link=case.link,
        )
        answer = run_task(task)
        missed = list(_missed(case, answer))
        met += not missed
        row = (case.row, case.problem, _budget(case), *_figures(case, answer), str(case.target))
        table.add_row(*row, f"no: {', '.join(missed)}" if missed else "yes", case.note)
        _report(options.dump, {"row": case.row, **asdict(task), **asdict(answer), "missed": missed}, *row, *missed)
    return table, met


def _missed(case: Case, answer: Answer) -> Iterator[str]:
    """Yield the parts of the target that are not met."""
    target = case.target
    if answer.error:
        yield answer.error
        return
    if target.overhead is not None and not _at_most(answer.overhead, target.overhead):
        yield "overhead"
    if target.gap is not None and not _at_most(answer.reached_s(target.gap + EXACT), case.seconds):
        yield "gap"
    if target.first_s is not None and not _at_most(answer.first_s, target.first_s):
        yield "first"
    if target.peak is not None and not _at_most(answer.smallest_peak, target.peak):
        yield "peak"
    if target.memory_gib is not None and not _at_most(answer.memory_gib, target.memory_gib):
        yield "memory"


def _at_most(figure: float | None, maximum: float) -> bool:
    return figure is not None and figure <= maximum + EXACT


def _figures(case: Case, answer: Answer) -> Iterator[str]:
    """Yield the figures of a row; where the task is the smallest peak, the first three are about peaks."""
    if case.target.peak is not None:
        yield from (_per_cent(answer.smallest_peak), _per_cent(answer.peak_bound))
        peaks = answer.smallest_peak, answer.peak_bound
        yield "" if None in peaks else _per_cent(peaks[0] - peaks[1])
    else:
        found = answer.status if answer.overhead is None else _per_cent(answer.overhead)
        yield from (found, _per_cent(answer.bound), _per_cent(answer.gap))
    yield (
        " .. ".join("?" if known is None else f"{known:.2f}" for known in case.known)
        if case.known != (None, None)
        else ""
    )
    yield from (_seconds(answer.seconds), _seconds(answer.cpu_s), _seconds(answer.first_s))
    yield _seconds(None if case.target.gap is None else answer.reached_s(case.target.gap + EXACT))


def ablation(options: argparse.Namespace) -> Table:
    """Return a table of mean gaps, overheads, and times to a closed gap, with each technique switched off."""
    cases = [(name, share) for name, share in ABLATION_CASES if not options.problem or name in options.problem]
    seconds = options.seconds or ABLATION_S
    title = f"gap (overhead; seconds to a gap of {CLOSE} %) after {seconds:g} s, means of {ABLATION_SEEDS} seeds"
    table = Table("without", title=title, box=None)
    for name, share in cases:
        table.add_column(f"{name} @ {share} %", justify="right")
    for technique, auto_options in ABLATIONS.items():
        cells = []
        for name, share in cases:
            answers = []
            for seed in range(options.seed, options.seed + ABLATION_SEEDS):
                task = Task(name, seconds, share=share, seed=seed, options=auto_options)
                answers.append(run_task(task))
                _report(
                    options.dump, {"row": technique, **asdict(task), **asdict(answers[-1])}, technique, name, str(share)
                )
            cells.append(_mean(answers))
        table.add_row(technique, *cells)
    return table


def _mean(answers: list[Answer]) -> str:
    """Return the mean gap, overhead and seconds of several answers, or the first error."""
    for answer in answers:
        if answer.error or answer.gap is None:
            return answer.error or answer.status
    gap, overhead = (statistics.fmean(getattr(a, name) for a in answers) for name in ("gap", "overhead"))
    closed = [seconds for a in answers if (seconds := a.reached_s(CLOSE)) is not None]
    time_to_close = f"; {statistics.fmean(closed):.1f} s" if len(closed) == len(answers) else ""
    return f"{_per_cent(gap)} ({_per_cent(overhead)}{time_to_close})"


def _report(dump: Path | None, record: dict[str, Any], *row: str) -> None:
    """Print a line on stderr at once, and append the whole record to the file."""
    print(*row, sep="  ", file=sys.stderr, flush=True)
    if dump is not None:
        with dump.open("a") as file:
            print(json.dumps(record), file=file)


def _wanted(options: argparse.Namespace, row: str, problem: str) -> bool:
    return (not options.row or row in options.row) and (not options.problem or problem in options.problem)


def _budget(case: Case) -> str:
    if case.slots is not None:
        return f"{case.slots} slots"
    return "smallest" if case.share is None else f"{case.share:g} %"


def _per_cent(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3f}" if abs(figure) < 1 else f"{figure:.2f}"


def _seconds(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f}"


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
