"""Tests of the program's driver in a child process: bounds rise to the plan, incumbents count, no process remains."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from remat_solvers.generate import chain
from remat_solvers.optimal.program.driver import ProgramTask
from remat_solvers.optimal.program.refinement import RefinementStep
from remat_solvers.optimal.program.worker import ProcessWorker
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from tests.paths import child_environment
from tests.solvers.makers import corpus_problem

PATIENCE_S = 60.0  # on a busy machine


def wait_for(worker: ProcessWorker, enough: Callable[[RefinementStep], bool]) -> list[RefinementStep]:
    """All steps up to the first that satisfies `enough`."""
    steps: list[RefinementStep] = []
    deadline = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < deadline:
        for step in worker.poll():
            steps.append(step)
            if enough(step):
                return steps
        assert worker.busy or steps
        time.sleep(0.01)
    pytest.fail(f"not in {PATIENCE_S} s; last: {steps[-1:]}")


def gpt_at_80() -> tuple[Problem, int]:
    problem = corpus_problem("gpt")
    floor = problem.static_bytes
    return problem, floor + int(0.8 * (baseline(problem).peak_bytes - floor))


@pytest.mark.parametrize("order", Order)
def test_bounds_rise_to_the_plan(order: Order) -> None:
    """GPT-2 at 80 % has 1.538 % overhead in the study, for both orders."""
    problem, budget = gpt_at_80()
    with ProcessWorker(ProgramTask(problem, budget, order)) as worker:
        steps = wait_for(worker, lambda step: step.done)
    bounds = [step.bound_ns for step in steps]
    assert bounds == sorted(bounds)
    total_ns = sum(op.time_ns for op in problem.ops)
    assert 1.48 <= 100 * (bounds[-1] / total_ns - 1) <= 1.5385
    last = steps[-1]
    assert last.sequence is not None
    timeline = simulate(problem, plan_from_sequence(problem, last.sequence))
    assert (timeline.time_ns, timeline.peak_bytes) == (last.time_ns, last.peak_bytes)
    assert timeline.peak_bytes <= budget
    assert not worker.busy


def test_an_incumbent_only_has_to_be_proven() -> None:
    """With the best plan as the incumbent, only the proof remains."""
    problem, budget = gpt_at_80()
    with ProcessWorker(ProgramTask(problem, budget)) as worker:
        found = wait_for(worker, lambda step: step.done)[-1]
    assert found.sequence is not None
    assert found.time_ns is not None
    with ProcessWorker(ProgramTask(problem, budget)) as worker:
        worker.set_incumbent(found.sequence, found.time_ns)
        last = wait_for(worker, lambda step: step.done)[-1]
        assert not worker.busy
    tolerance_ns = sum(op.time_ns for op in problem.ops) // 2000
    assert found.time_ns - tolerance_ns <= last.bound_ns <= found.time_ns


def test_infeasibility_is_reported() -> None:
    with ProcessWorker(ProgramTask(chain(6), 2)) as worker:
        assert wait_for(worker, lambda step: step.done)[-1].infeasible


def test_close_kills_a_busy_worker() -> None:
    problem = corpus_problem("lstm")
    worker = ProcessWorker(ProgramTask(problem, problem.constant_bytes + 10**8))
    process = worker.process
    assert process is not None
    started = time.perf_counter()
    worker.close()
    assert process.poll() is not None
    assert time.perf_counter() - started < 5
    worker.close()
    assert worker.poll() == []


def test_the_child_ends_with_its_parent() -> None:
    """The parent is `python -c` without a guarded main. It exits without closing the worker; the child must notice."""
    program = """
import os, sys
from remat_solvers.generate import chain
from remat_solvers.optimal.program.driver import ProgramTask
from remat_solvers.optimal.program.worker import ProcessWorker
worker = ProcessWorker(ProgramTask(chain(6), 3))
print(worker.process.pid, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=child_environment(), capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    deadline = time.perf_counter() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and b"run_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.perf_counter() < deadline
        time.sleep(0.05)
