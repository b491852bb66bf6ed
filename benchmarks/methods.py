"""Runs every method on every model of the table, at four budgets: its answers, and its time beyond the limit.

    scripts/bench methods                                       everything; hours
    scripts/bench methods --method chen,rotor --model gpt2,vit --seconds 10
    scripts/bench methods --dump results.jsonl                  appends each answer to the file; tasks whose answers
                                                                it already has are not run again

Costs are estimated by roofline. For each method: the number of answers of each status, then the median and the worst
overhead of its plans over store-all, and the most seconds that an answer took beyond the limit: wall clock, and
processor time (with child processes), which does not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from remat_solvers.result import Status
from tests.remat.models.matrix import METHODS, Budget, budgets, exported, solve_case
from tests.remat.models.table import CASES, Case

Answer = dict[str, Any]
FAILED = "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_names, help="names of the table, with commas; default: all")
    parser.add_argument("--method", type=_names, help="names of `remat solvers`, with commas; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of each task")
    parser.add_argument("--dump", type=Path, help="a file of JSON lines to add to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    answers = _load(options.dump)
    known = {(a["model"], a["method"], a["budget"], a["limit"]) for a in answers}
    for case in CASES:
        if options.model and case.name not in options.model:
            continue
        for budget in budgets(exported(case).problem):
            for entry in METHODS:
                key = (case.name, entry.name, budget.name, options.seconds)
                if (options.method and entry.name not in options.method) or key in known:
                    continue
                answers.append(answer(case, entry.name, budget, options.seconds))
                _save(options.dump, answers[-1])
    selected = [
        a
        for a in answers
        if (not options.method or a["method"] in options.method) and (not options.model or a["model"] in options.model)
    ]
    Console(width=160).print(table(selected))


def answer(case: Case, method: str, budget: Budget, limit: float) -> Answer:
    """Run one task and return its answer; an exception is an answer too."""
    record: Answer = {"model": case.name, "method": method, "budget": budget.name, "limit": limit}
    begin, cpu_begin = time.perf_counter(), sum(os.times()[:4])
    try:
        result = solve_case(case, method, budget, limit)
    except Exception as error:
        record |= {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}
    else:
        record |= {
            "status": result.status.value,
            "stopped": result.stopped.value,
            "overhead": None if result.time_ns is None else result.time_ns / result.store_all_time_ns - 1,
            "gap": result.gap,
            "peak_bytes": result.peak_bytes,
            "budget_bytes": budget.bytes,
            "smallest_peak_bytes": result.smallest_peak_bytes,
            "reason": result.reason,
        }
    return record | {"seconds": time.perf_counter() - begin, "cpu_seconds": sum(os.times()[:4]) - cpu_begin}


def table(answers: list[Answer]) -> Table:
    """Return a table with a row per method."""
    statuses = [*(status.value for status in Status), FAILED]
    rows = Table(box=None)
    for name in (
        "method",
        *statuses,
        "no reason",
        "median overhead",
        "worst",
        "median seconds",
        "over limit",
        "in CPU s",
    ):
        rows.add_column(name, justify="left" if name == "method" else "right")
    for entry in METHODS:
        own = [a for a in answers if a["method"] == entry.name]
        if not own:
            continue
        count = Counter(a["status"] for a in own)
        without_reason = sum(a["overhead"] is None and not a["reason"] for a in own if a["status"] != FAILED)
        overheads = [a["overhead"] for a in own if a.get("overhead") is not None]
        rows.add_row(
            entry.name,
            *(str(count[status]) for status in statuses),
            str(without_reason),
            f"{statistics.median(overheads):+.1%}" if overheads else "",
            f"{max(overheads):+.1%}" if overheads else "",
            f"{statistics.median(a['seconds'] for a in own):.2f}",
            *(f"{max(max(0.0, a[clock] - a['limit']) for a in own):.1f}" for clock in ("seconds", "cpu_seconds")),
        )
    return rows


def _names(text: str) -> list[str]:
    return text.split(",")


def _load(dump: Path | None) -> list[Answer]:
    if dump is None or not dump.exists():
        return []
    return [json.loads(line) for line in dump.read_text().splitlines()]


def _save(dump: Path | None, record: Answer) -> None:
    """Append a line at once, so that a run that was stopped can be continued."""
    if dump is not None:
        with dump.open("a") as file:
            print(json.dumps(record), file=file)


if __name__ == "__main__":
    main()
