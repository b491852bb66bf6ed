"""A limit of work in place of seconds: the same answer for a seed in every process, however busy the machine is."""

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
ASKED = """
    import sys
    from dataclasses import replace
    from hashlib import sha256

    from remat_solvers import Limits, Link, load_problem, solve, sweep
    from remat_solvers.plan import Plan

    what, path, seed = sys.argv[1:]
    problem, limits = load_problem(path), Limits(seconds=None, work=3)
    budget_bytes = problem.constant_bytes + int(0.4 * (solve(problem, 2**62).peak_bytes - problem.constant_bytes))

    def told(answer):
        said = (tuple(answer.plan), answer.time_ns, answer.bound_ns, answer.order, answer.status, answer.budget_bytes)
        return sha256(repr(said).encode()).hexdigest(), answer.time_ns

    if what == "sweep":
        print([told(point) for point in sweep(problem, points=3, limits=limits, seed=int(seed)).points])
    elif what == "link":
        linked = replace(problem, link=Link(10**10, 10**10))
        print(told(solve(linked, budget_bytes, limits=limits, seed=int(seed))))
    else:
        print(told(solve(problem, "min" if what == "min" else budget_bytes, limits=limits, seed=int(seed))))
"""


def asked(what: str, hash_seed: int, seed: int = 3) -> str:
    path = CORPUS / ("chain50.json" if what == "link" else "unet.json")
    environment = child_environment(PYTHONHASHSEED=str(hash_seed))
    script = [sys.executable, "-c", textwrap.dedent(ASKED), what, str(path), str(seed)]
    return subprocess.run(script, stdout=subprocess.PIPE, text=True, env=environment, timeout=120, check=True).stdout


@pytest.mark.parametrize("what", ["budget", "link", "min", "sweep"])
def test_the_same_in_every_process(what: str) -> None:
    assert asked(what, hash_seed=1) == asked(what, hash_seed=2) != ""


def test_less_work_ends_earlier() -> None:
    problem = corpus_problem("unet")
    budget_bytes = problem.constant_bytes + int(0.3 * solve(problem, 2**62).store_all_peak_bytes)
    little, more = (solve(problem, budget_bytes, limits=Limits(None, work)) for work in (1, 6))
    assert little.stopped is more.stopped is Stopped.TIME
    assert more.time_ns is not None
    assert little.time_ns is None or little.time_ns >= more.time_ns
    assert little.seconds < more.seconds


def test_the_smallest_peak_of_little_work() -> None:
    problem = random_chain(30, 1)
    little, more = (minimise_peak(problem, limits=Limits(None, work)) for work in (1, None))
    assert (little.stopped, more.stopped) == (Stopped.TIME, Stopped.COMPLETE)
    assert little.peak_bytes > more.peak_bytes
    assert solve(problem, "min", limits=BY_WORK).stopped is Stopped.TIME
