"""With a limit on work instead of seconds, a seed gives the same answer in every process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from remat_solvers.generate import random_chain
from remat_solvers.optimal.min_peak import minimise_peak
from remat_solvers.result import Limits, Stopped
from remat_solvers.solving import solve
from tests.paths import CORPUS, child_environment
from tests.solvers.makers import corpus_problem

BY_WORK = Limits(seconds=None, work=3)
CHILD_SCRIPT = """
    import sys
    from dataclasses import replace
    from hashlib import sha256

    from remat_solvers import Limits, Link, load_problem, solve, sweep
    from remat_solvers.plan import Plan

    case, path, seed = sys.argv[1:]
    problem, limits = load_problem(path), Limits(seconds=None, work=3)
    budget_bytes = problem.constant_bytes + int(0.4 * (solve(problem, 2**62).peak_bytes - problem.constant_bytes))

    def fingerprint(answer):
        fields = (tuple(answer.plan), answer.time_ns, answer.bound_ns, answer.order, answer.status, answer.budget_bytes)
        return sha256(repr(fields).encode()).hexdigest(), answer.time_ns

    if case == "sweep":
        print([fingerprint(point) for point in sweep(problem, points=3, limits=limits, seed=int(seed)).points])
    elif case == "link":
        linked = replace(problem, link=Link(10**10, 10**10))
        print(fingerprint(solve(linked, budget_bytes, limits=limits, seed=int(seed))))
    else:
        print(fingerprint(solve(problem, "min" if case == "min" else budget_bytes, limits=limits, seed=int(seed))))
"""


def answer_of_child(case: str, hash_seed: int, seed: int = 3) -> str:
    path = CORPUS / ("chain50.json" if case == "link" else "unet.json")
    environment = child_environment(PYTHONHASHSEED=str(hash_seed))
    script = [sys.executable, "-c", textwrap.dedent(CHILD_SCRIPT), case, str(path), str(seed)]
    return subprocess.run(script, stdout=subprocess.PIPE, text=True, env=environment, timeout=120, check=True).stdout


@pytest.mark.parametrize("case", ["budget", "link", "min", "sweep"])
def test_every_process_gives_the_same_answer(case: str) -> None:
    assert answer_of_child(case, hash_seed=1) == answer_of_child(case, hash_seed=2) != ""


def test_less_work_ends_earlier() -> None:
    problem = corpus_problem("unet")
    budget_bytes = problem.constant_bytes + int(0.3 * solve(problem, 2**62).store_all_peak_bytes)
    short, long = (solve(problem, budget_bytes, limits=Limits(None, work)) for work in (1, 6))
    assert short.stopped is long.stopped is Stopped.TIME
    assert long.time_ns is not None
    assert short.time_ns is None or short.time_ns >= long.time_ns
    assert short.seconds < long.seconds


def test_less_work_finds_a_larger_smallest_peak() -> None:
    problem = random_chain(30, 1)
    short, complete = (minimise_peak(problem, limits=Limits(None, work)) for work in (1, None))
    assert (short.stopped, complete.stopped) == (Stopped.TIME, Stopped.COMPLETE)
    assert short.peak_bytes > complete.peak_bytes
    assert solve(problem, "min", limits=BY_WORK).stopped is Stopped.TIME
