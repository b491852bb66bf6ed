"""Compares recomputation, offloading, and both: the plans of each method for two GPTs under a budget, by exact replay.

    scripts/bench swap                                both models and the extreme links; about an hour
    scripts/bench swap --model gpt48 --share 40 --method checkmate --seconds 60

Costs are estimated by roofline for a GPU of 100 TFLOP/s and 1.5 TB/s, with 25 GB/s to the host and back. `gpt` is the
12-layer GPT of the corpus (d=768), `gpt48` has 48 layers (d=1600, 25 heads), both with batch 8, 1024 tokens, vocabulary
8192, in bf16 with fused attention. Budgets are shares of the store-all peak without static bytes.

Methods that only recompute get no link. `study` is an earlier study: recomputation alone was proven optimal, offloading
was in a model with fractional copies, which is optimistic. `goal` is the target of the joint plan.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import problems
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import remat_solvers
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.registry import ENTRIES, Solver, create
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate

MODELS = ("gpt", "gpt48")
SHARES = (60, 40, 20)
LINK = Link(25 * 10**9, 25 * 10**9)
EXTREMES = {"1 B/s": Link(1, 1), "1 EB/s": Link(10**18, 10**18)}
RECOMPUTING = ("rotor", "dtr", "belady")
MOVING = [e.name for e in ENTRIES if e.family == "swap" and e.supports_link]
STUDY = {  # per cent over store-all: recompute only, swap only, joint, and the goal for the joint plan
    ("gpt", 60): (7.23, 77.5, 1.92, None),
    ("gpt", 40): (15.67, 166.0, 8.99, 12.0),
    ("gpt48", 60): (2.24, 7.5, 0.26, None),
    ("gpt48", 40): (10.02, 27.8, 0.95, 4.0),
    ("gpt48", 20): (18.18, 62.4, 12.6, None),
}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_names, default=MODELS, help="gpt, gpt48, with commas; default: both")
    parser.add_argument("--share", type=_names, default=SHARES, help="per cent of the peak, with commas; default: all")
    parser.add_argument("--method", type=_names, help="names of `remat solvers`, with commas; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of each task")
    parser.add_argument("--no-extremes", action="store_true", help="leave out the links of 1 B/s and 1 EB/s")
    options = parser.parse_args()
    console = Console(width=130)
    for name in options.model:
        problem = problems.load(name)
        for share in map(int, options.share):
            if share == 20 and name == "gpt":
                continue  # below its largest working set
            console.print(table(name, problem, share, options.method, options.seconds, not options.no_extremes))


def table(name: str, problem: Problem, share: int, methods: list[str] | None, seconds: float, extremes: bool) -> Table:
    """Return a table with a row per method."""
    unmodified = baseline(problem)
    static_bytes = problem.static_bytes
    budget_bytes = static_bytes + (unmodified.peak_bytes - static_bytes) * share // 100
    recompute, swap, joint, goal = STUDY.get((name, share), (None,) * 4)
    rows = Table(
        title=f"{name} at {share} % of {(unmodified.peak_bytes - static_bytes) / GIB:.2f} GiB without static bytes, "
        f"which are {static_bytes / GIB:.2f} GiB; "
        f"store-all {unmodified.time_ns / 1e6:.1f} ms, {len(problem.ops)} ops",
        title_justify="left",
        box=None,
    )
    for column in ("method", "overhead", "of it waits", "moved GiB", "seconds", "study", "goal"):
        rows.add_column(column, justify="left" if column == "method" else "right")

    def row(label: str, solver: Solver, link: Link | None, study: float | None, goal: float | None = None) -> None:
        if methods is not None and solver.name not in methods:
            return
        linked = replace(problem, link=link)
        result = remat_solvers.solve(linked, budget_bytes, solver=solver, limits=Limits(seconds))
        cells = [result.status.value, "", ""]
        if result.plan is not None:
            line = simulate(linked, result.plan)
            extra = (line.time_ns - unmodified.time_ns, line.wait_ns)
            cells = [*(f"{100 * ns / unmodified.time_ns:.2f} %" for ns in extra), f"{line.host_bytes / GIB:.2f}"]
        study_cells = ["" if n is None else f"{n} %" for n in (study, goal)]
        rows.add_row(label, *cells, f"{result.seconds:.1f}", *study_cells)

    row("auto, recompute only", create("auto"), None, recompute)
    row("checkmate, recompute only", Checkmate(swap=False), None, recompute)
    for method in RECOMPUTING:
        row(method, create(method), None, recompute)
    for method in MOVING:
        row(method, create(method), LINK, swap if method == "swap-only" else None)
    row("checkmate, joint", Checkmate(), LINK, joint, goal)
    row("auto, joint", create("auto"), LINK, joint, goal)
    if extremes:
        for speed, link in EXTREMES.items():
            row(f"checkmate, joint, {speed}", Checkmate(), link, recompute if speed == "1 B/s" else 0.0)
    return rows


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
