"""Tests of `auto` without its C++ extension: program and methods answer, and a message says that the search is missing.

The tests run in a child process in which the extension cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.paths import CORPUS, child_environment

WITHOUT = """
    import sys

    sys.modules["remat_solvers.optimal.native._search"] = sys.modules["remat_solvers.optimal.native._moving"] = None

    from dataclasses import replace
    from remat_solvers import Limits, Link, load_problem, solve, sweep
    from remat_solvers.optimal.local_search.annealing import NO_SEARCH
    from remat_solvers.result import Status

    problem = load_problem(sys.argv[1])
    base = problem.constant_bytes
    budget_bytes = base + int(0.6 * (solve(problem, 2**62).peak_bytes - base))

    result = solve(problem, budget_bytes, limits=Limits(10))
    assert result.gap is not None and result.gap < 0.001, result.gap
    assert result.reason == NO_SEARCH, result.reason

    linked = solve(replace(problem, link=Link(25 * 10**9, 25 * 10**9)), budget_bytes, limits=Limits(10))
    assert linked.plan is not None and linked.time_ns <= result.time_ns, linked.time_ns
    assert linked.reason == NO_SEARCH, linked.reason

    smallest = solve(problem, "min", limits=Limits(5))
    assert smallest.plan is not None and smallest.peak_bytes < 0.4 * smallest.store_all_peak_bytes, smallest.peak_bytes
    assert NO_SEARCH in smallest.reason, smallest.reason

    curve = sweep(problem, points=3, limits=Limits(10))
    assert len(curve.points) == 3, curve.points
    assert all(point.plan is not None for point in curve.points)
    times = [point.time_ns for point in curve.points]
    assert times == sorted(times, reverse=True)
    print("all of it")
"""


def test_without_the_extension() -> None:
    script = [sys.executable, "-c", textwrap.dedent(WITHOUT), str(CORPUS / "unet.json")]
    ran = subprocess.run(script, capture_output=True, text=True, env=child_environment(), timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "all of it\n", "")
