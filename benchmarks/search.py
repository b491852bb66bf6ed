"""Measures `auto`'s local search, and the plans that it finds alone: `scripts/bench search [PROBLEM...]`.

Targets: at least 100,000 moves/s at 400 ops and 10,000 at 4,400, on one core. A budget is the static bytes plus a share
of the other bytes of the store-all peak; for a uniform chain (`chain`N), a number of values. `first` is the time to the
first plan within the budget. Seconds are processor time; figures are medians over the seeds.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "solvers"))
from problems import load

from remat_solvers import generate
from remat_solvers.bounds import time_bound_ns
from remat_solvers.optimal.local_search.annealing import SequenceSearch
from remat_solvers.problem import Problem
from remat_solvers.schedule import baseline

SECONDS = 10.0
SEEDS = range(5)
SLICE_MOVES = 2000
CASES: tuple[tuple[str, float, bool], ...] = (  # problem, budget, whether first computations may move
    ("unet", 0.4, False),
    ("r50", 0.4, False),
    ("r50", 0.2, False),
    ("gpt", 0.4, False),
    ("gptm", 0.4, False),
    ("gpt48", 0.2, False),
    ("gptm96", 0.4, False),
    ("lstm", 0.4, False),
    ("rl250", 0.9, True),
    ("rl250", 0.8, True),
    ("rl1000", 0.8, True),
    ("chain100", 8, False),
    ("chain500", 16, False),
    ("chain1000", 32, False),
)


def problem_of(name: str) -> Problem:
    """Return a problem of problems.py, or a uniform chain of any length."""
    length = name.removeprefix("chain")
    return generate.chain(int(length)) if length != name and length.isdigit() else load(name)


def budget_of(problem: Problem, share: float) -> int:
    """Return the budget in bytes; a share above 1 is a number of bytes."""
    base = problem.static_bytes
    return base + int(share if share > 1 else share * (baseline(problem).peak_bytes - base))


def one_run(problem: Problem, budget_bytes: int, free_order: bool, seed: int) -> tuple[float, float, float]:
    """Return moves per second, seconds to the first plan, and the overhead in % at the end; NaN without a plan."""
    start = time.process_time()
    search = SequenceSearch(problem, budget_bytes, free_order=free_order, seed=seed)
    first = float("nan")
    moves = 0
    while (seconds := time.process_time() - start) < SECONDS:
        slice_moves = search.run(moves=SLICE_MOVES)
        moves += slice_moves
        if first != first and search.best is not None:
            first = time.process_time() - start
        if slice_moves == 0:
            break
    best = search.best
    overhead = float("nan") if best is None else 100 * (best.time_ns / time_bound_ns(problem) - 1)
    return moves / seconds, first, overhead


def main() -> None:
    """Print one line per case."""
    names = sys.argv[1:]
    for name, share, free_order in CASES:
        if names and name not in names:
            continue
        problem = problem_of(name)
        budget_bytes = budget_of(problem, share)
        runs = [one_run(problem, budget_bytes, free_order, seed) for seed in SEEDS]
        speed, first, overhead = (statistics.median(figures) for figures in zip(*runs, strict=True))
        budget = f"{share:.0%}" if share <= 1 else f"{share} values"
        print(
            f"{name:9} {len(problem.ops):6,} ops  {budget:>9} {'free ' if free_order else 'given'}  "
            f"{speed:11,.0f} moves/s  first {first:5.2f} s  overhead {overhead:7.3f} %  "
            f"best {min(run[2] for run in runs):7.3f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
