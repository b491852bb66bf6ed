"""Checks that another checkout of this project finds the same plans, action by action, as proof of a refactoring.

    scripts/bench same_plans collect new.jsonl --problems DIR             answers of this checkout
    scripts/bench same_plans collect old.jsonl --problems DIR --checkout ../other
    scripts/bench same_plans compare old.jsonl new.jsonl                  exit code 1 where an answer differs

Every registered method solves every problem of DIR (JSON files), with and without a link, at two budgets
between the floor and the peak of store-all. `auto` has a limit of work, which is exact on every machine; the other
methods run to their end. A method that does not end within `--seconds` is cut, and does not run on larger problems
of that kind; tasks that either side cut are counted and not compared. Each method runs in a process of its own with one
thread. A file of answers may be continued: tasks that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

WORK = 6  # slices of `auto`
BUDGETS = (0.65, 0.3)  # of the way from the floor to the peak of store-all
KEYS = ("status", "order", "time_ns", "peak_bytes", "bound_ns", "smallest_peak_bytes", "actions")
TIMED = (
    "limit of their own",
    "cut short",
    "share of the time limit",
)  # in the reason of a method whose parts have limits of time
ROOT = Path(__file__).parents[1]

Answer = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    collect = commands.add_parser("collect")
    collect.add_argument("answers", type=Path, help="the file of JSON lines to write or continue")
    collect.add_argument("--problems", type=Path, required=True, help="a folder of problems as JSON")
    collect.add_argument("--checkout", type=Path, default=ROOT, help="the checkout that answers; default: this one")
    collect.add_argument("--solver", help="names, with commas; default: all registered")
    collect.add_argument("--seconds", type=float, default=60.0, help="after which a method is cut")
    collect.add_argument("--most-ops", type=int, default=10**6, help="leave larger problems out")
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    worker = commands.add_parser("answer")  # one method, in a process of its own
    worker.add_argument("solver")
    worker.add_argument("seconds", type=float)
    worker.add_argument("most_ops", type=int)
    worker.add_argument("problems", type=Path)
    worker.add_argument("answers", type=Path)
    options = parser.parse_args()
    if options.command == "collect":
        _collect(options)
    elif options.command == "answer":
        _answer_all(options.solver, options.seconds, options.most_ops, options.problems, options.answers)
    else:
        sys.exit(_compare(_read(options.before), _read(options.after)))


def _collect(options: argparse.Namespace) -> None:
    """Run every method in its own process, with the sources of the checkout."""
    sources = f"{options.checkout.resolve() / 'solvers'}"
    environment = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    list_names = "import remat_solvers; print(*remat_solvers.solver_names())"
    listed = subprocess.run([sys.executable, "-c", list_names], env=environment, capture_output=True, text=True)
    for name in options.solver.split(",") if options.solver else listed.stdout.split():
        arguments = [name, str(options.seconds), str(options.most_ops), str(options.problems), str(options.answers)]
        print(f"{name} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, __file__, "answer", *arguments], env=environment, check=True)


def _answer_all(solver: str, seconds: float, most_ops: int, folder: Path, path: Path) -> None:
    """Append the answers of one method to `path`, smaller problems first."""
    from remat_solvers import Limits, Link, codec, peak_bound_bytes, solve

    known = {(a["solver"], a["problem"], a["link"], a["budget"]) for a in _read(path)}
    problems = sorted((codec.load_problem(file) for file in folder.glob("*.json")), key=lambda p: (len(p.ops), p.name))
    limits = Limits(seconds=None, work=WORK) if solver == "auto" else Limits(seconds)
    cut: set[bool] = set()  # with or without a link
    with path.open("a") as answers:
        for problem in [p for p in problems if len(p.ops) <= most_ops]:
            step_ns = max(1, sum(op.time_ns for op in problem.ops))
            moved_bytes = sum(value.bytes for value in problem.values if value.kind != "constant")
            rate = max(1, moved_bytes * 10**9 // step_ns)  # a copy of all values takes as long as the step
            for linked in (False, True):
                task = replace(problem, link=Link(rate, rate) if linked else None)
                floor, peak = peak_bound_bytes(task), solve(task, 2**62, solver="store-all").peak_bytes
                assert peak is not None
                for share in BUDGETS:
                    budget = floor + int(share * (peak - floor))
                    key = (solver, problem.name, linked, budget)
                    if key in known or budget < 1:
                        continue
                    answer: Answer = dict(zip(("solver", "problem", "link", "budget"), key, strict=True))
                    answer["ops"] = len(problem.ops)
                    if linked in cut:
                        answer["cut"] = True
                    else:
                        answer |= _answer(solver, task, budget, limits)
                        if answer["cut"]:
                            cut.add(linked)
                    answers.write(json.dumps(answer) + "\n")
                    answers.flush()


def _answer(solver: str, problem: Any, budget: int, limits: Any) -> Answer:
    """Return the result as plain data; an error of the method is an answer too."""
    from remat_solvers import solve

    try:
        result = solve(problem, budget, solver=solver, limits=limits)
    except Exception as error:
        return {**dict.fromkeys(KEYS), "cut": False, "status": f"raised {type(error).__name__}"}
    known = {name: getattr(result, name) for name in KEYS if name != "actions"}
    actions = None if result.plan is None else [_action_record(action) for action in result.plan]
    timed = result.stopped == "time" or any(phrase in result.reason for phrase in TIMED)
    return {**known, "cut": timed and limits.work is None, "actions": actions}


def _action_record(action: Any) -> list[Any]:
    """Return the kind and the index of an action."""
    index = action.op if hasattr(action, "op") else action.value
    return [type(action).__name__, index]


def _read(path: Path) -> list[Answer]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _compare(before: list[Answer], after: list[Answer]) -> int:
    """Print the number of equal answers per method, and return the exit code: 1 if one differs."""

    def by_key(answers: list[Answer]) -> dict[tuple[Any, ...], Answer]:
        return {(a["solver"], a["problem"], a["link"], a["budget"]): a for a in answers}

    old, new = by_key(before), by_key(after)
    counts: Counter[tuple[str, str]] = Counter()
    for key in sorted(old.keys() & new.keys()):
        first, second = old[key], new[key]
        if first["cut"] or second["cut"]:
            word = "cut"
        else:
            different = [name for name in KEYS if first[name] != second[name]]
            word = "different" if different else "the same plan" if first["actions"] else "the same, without a plan"
            if different:
                print(f"{key}: {', '.join(different)}")
        counts[key[0], word] += 1
    words = ("the same plan", "the same, without a plan", "different", "cut")
    print(f"{'':14}" + "".join(f"{word:>26}" for word in words))
    for solver in dict.fromkeys(key[0] for key in old):
        print(f"{solver:14}" + "".join(f"{counts[solver, word]:26}" for word in words))
    totals = [sum(n for (_, kind), n in counts.items() if kind == word) for word in words]
    print(f"{'all':14}" + "".join(f"{total:26}" for total in totals))
    print(f"tasks of one side only: {len(old.keys() ^ new.keys())}")
    return 1 if totals[2] or not totals[0] else 0


if __name__ == "__main__":
    main()
