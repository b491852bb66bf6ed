"""Every method on every model of the table, at four budgets: what it answers, and how far it is over its limit.

    scripts/bench methods                                       everything; hours
    scripts/bench methods --method chen,rotor --model gpt2,vit --seconds 10
    scripts/bench methods --dump results.jsonl                  adds each answer to the file as it comes; what the file
                                                                has already is not asked again

Costs are roofline's. Per method: how often each status was answered, then of its plans the median and the worst time
over store-all's, and the most seconds that an answer took beyond the limit: by the clock, and of processor time (its
child processes included), which a busy machine leaves as it is.
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
from tests.remat.models.matrix import METHODS, Budget, ask, budgets, exported
from tests.remat.models.table import CASES, Case

Answer = dict[str, Any]
FAILED = "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_names, help="names of the table, with commas; default: all")
    parser.add_argument("--method", type=_names, help="names of `remat solvers`, with commas; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of each question")
    parser.add_argument("--dump", type=Path, help="a file of JSON lines to add to")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    answers = _load(asked.dump)
    known = {(a["model"], a["method"], a["budget"], a["limit"]) for a in answers}
    for case in CASES:
        if asked.model and case.name not in asked.model:
            continue
        for budget in budgets(exported(case).problem):
            for entry in METHODS:
                key = (case.name, entry.name, budget.name, asked.seconds)
                if (asked.method and entry.name not in asked.method) or key in known:
                    continue
                answers.append(answer(case, entry.name, budget, asked.seconds))
                _save(asked.dump, answers[-1])
    selected = [
        a
        for a in answers
        if (not asked.method or a["method"] in asked.method) and (not asked.model or a["model"] in asked.model)
    ]
    Console(width=160).print(table(selected))


def answer(case: Case, method: str, budget: Budget, limit: float) -> Answer:
    """One question and what came of it; an exception is an answer too."""
    told: Answer = {"model": case.name, "method": method, "budget": budget.name, "limit": limit}
    begin, cpu_begin = time.perf_counter(), sum(os.times()[:4])
    try:
        result = ask(case, method, budget, limit)
    except Exception as error:
        told |= {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}
    else:
        told |= {
            "status": result.status.value,
            "stopped": result.stopped.value,
            "overhead": None if result.time_ns is None else result.time_ns / result.store_all_time_ns - 1,
            "gap": result.gap,
            "peak_bytes": result.peak_bytes,
            "budget_bytes": budget.bytes,
            "smallest_peak_bytes": result.smallest_peak_bytes,
            "reason": result.reason,
        }
    return told | {"seconds": time.perf_counter() - begin, "cpu_seconds": sum(os.times()[:4]) - cpu_begin}


def table(answers: list[Answer]) -> Table:
    """A row per method."""
    statuses = [*(status.value for status in Status), FAILED]
    made = Table(box=None)
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
        made.add_column(name, justify="left" if name == "method" else "right")
    for entry in METHODS:
        own = [a for a in answers if a["method"] == entry.name]
        if not own:
            continue
        count = Counter(a["status"] for a in own)
        silent = sum(a["overhead"] is None and not a["reason"] for a in own if a["status"] != FAILED)
        overheads = [a["overhead"] for a in own if a.get("overhead") is not None]
        made.add_row(
            entry.name,
            *(str(count[status]) for status in statuses),
            str(silent),
            f"{statistics.median(overheads):+.1%}" if overheads else "",
            f"{max(overheads):+.1%}" if overheads else "",
            f"{statistics.median(a['seconds'] for a in own):.2f}",
            *(f"{max(max(0.0, a[clock] - a['limit']) for a in own):.1f}" for clock in ("seconds", "cpu_seconds")),
        )
    return made


def _names(text: str) -> list[str]:
    return text.split(",")


def _load(dump: Path | None) -> list[Answer]:
    if dump is None or not dump.exists():
        return []
    return [json.loads(line) for line in dump.read_text().splitlines()]


def _save(dump: Path | None, told: Answer) -> None:
    """A line at once, so that what was stopped goes on where it was."""
    if dump is not None:
        with dump.open("a") as file:
            print(json.dumps(told), file=file)


if __name__ == "__main__":
    main()
