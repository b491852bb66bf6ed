"""torch's partitioner as a method: its choices become valid plans, with dropout too."""

from __future__ import annotations

import functools
import signal
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
import torch

import remat
import remat_solvers
from remat.capture.exported import Exported
from remat.model_solvers.deadline import DeadlineError, deadline
from remat.model_solvers.torch_budget import STEPS, TorchBudget
from remat.verification import compare_steps, run_step
from remat_solvers.plan import Compute, Plan
from remat_solvers.result import Limits, Progress, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate
from tests.remat.models.table import CASES


@functools.cache
def export(name: str) -> Exported:
    model, args, kwargs = next(case for case in CASES if case.name == name).make()
    return remat.export(model.train(), args, kwargs, costs="roofline")


def plans(exported: Exported) -> dict[float, Plan]:
    sequences = TorchBudget(exported).sequences(exported.capture_again())
    return {setting: plan_from_sequence(exported.problem, ops) for setting, ops in sequences}


@pytest.mark.parametrize("name", ["gpt2", "batch-norm", "dropout", "lstm", "returns-logits"])
def test_every_setting_is_a_valid_plan_that_runs(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs, costs="roofline")
    reference = run_step(remat.apply(exported, store_all(exported.problem)), args, kwargs, exported)
    by_setting = plans(exported)
    assert by_setting.keys() >= {1.0, 0.0}
    for setting, plan in by_setting.items():
        assert validate(exported.problem, plan) == []
        if setting in (1.0, 0.5, 0.0):
            assert compare_steps(run_step(remat.apply(exported, plan), args, kwargs, exported), reference).equal


@pytest.mark.parametrize("name", ["attention-dropout", "drop-path", "lora"])
def test_settings_left_out_are_those_that_change_nothing(name: str) -> None:
    method = TorchBudget(export(name))
    captured = method.exported.capture_again()
    expected = {tuple(method.sequence_at(captured, step / STEPS)) for step in range(STEPS + 1)}
    assert {tuple(ops) for _, ops in method.sequences(captured)} == expected


def test_recompute_all_recomputes_the_forward() -> None:
    """At 0 torch saves inputs only: every forward op the backward depends on runs twice."""
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh()) for _ in range(4)))
    exported = remat.export(model, (torch.randn(4, 16, requires_grad=True),), costs="roofline")
    plan = plans(exported)[0.0]
    times = [sum(action == Compute(op) for action in plan) for op in exported.problem.forward_ops]
    assert times == [2] * 8


def test_it_finds_the_fastest_setting_that_fits() -> None:
    exported = export("attention-dropout")
    problem, method = exported.problem, TorchBudget(exported)
    timelines = [simulate(problem, plan) for plan in plans(exported).values()]
    peaks = sorted({line.peak_bytes for line in timelines})
    assert len(peaks) > 2
    for budget_bytes in peaks[:2]:
        result = remat_solvers.solve(problem, budget_bytes, solver=method, limits=Limits(None))
        assert result.status is Status.FEASIBLE
        assert result.time_ns == min(line.time_ns for line in timelines if line.peak_bytes <= budget_bytes)
    infeasible = remat_solvers.solve(problem, peaks[0] - 1, solver=method, limits=Limits(None))
    assert (infeasible.status, infeasible.smallest_peak_bytes) == (Status.NOT_FOUND, peaks[0])


def test_by_its_name_for_a_model() -> None:
    case = next(case for case in CASES if case.name == "lstm")
    model, args, kwargs = case.make()
    net = remat.solve(model.train(), "90%", args, kwargs, solver="torch-budget", costs="roofline")
    assert net.result is not None
    assert net.result.solver == "torch-budget"
    assert net.result.peak_bytes is not None
    assert net.result.peak_bytes <= net.result.budget_bytes


def test_the_time_limit_holds_inside_the_partitioner() -> None:
    """The limit is far less than one setting takes; the partitioner is usable after the interrupt."""
    exported = export("gpt2")
    budget_bytes = int(0.9 * baseline(exported.problem).peak_bytes)
    result = remat_solvers.solve(
        exported.problem, budget_bytes, solver=TorchBudget(exported), limits=Limits(seconds=0.05)
    )
    assert (result.status, result.stopped) == (Status.NOT_FOUND, Stopped.TIME)
    assert "time limit" in result.reason
    assert plans(export("lora"))


def test_the_time_limit_holds_between_settings_in_another_thread() -> None:
    exported = export("attention-dropout")
    results = []

    def work() -> None:
        smallest = min(simulate(exported.problem, plan).peak_bytes for plan in plans(exported).values())
        results.append(TorchBudget(exported).solve(exported.problem, smallest, **arguments))

    arguments: dict[str, Any] = {"limits": Limits(seconds=1e-9), "on_progress": None, "seed": 0}
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (outcome,) = results
    assert (outcome.status, outcome.stopped) == (Status.NOT_FOUND, Stopped.TIME)
    assert outcome.smallest_peak_bytes is not None


def test_ctrl_c_keeps_the_best_plan_so_far() -> None:
    exported = export("gpt2")

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    budget_bytes = int(0.9 * baseline(exported.problem).peak_bytes)
    result = remat_solvers.solve(exported.problem, budget_bytes, solver=TorchBudget(exported), on_progress=interrupt)
    assert result.plan is not None
    assert result.stopped is Stopped.INTERRUPT


THIS_MODULE = (sys.modules[__name__],)


def test_a_deadline_interrupts_and_restores_the_timer() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(DeadlineError), deadline(0.01, THIS_MODULE):
        time.sleep(60)
    with deadline(60, THIS_MODULE), deadline(None, THIS_MODULE):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_deadline_leaves_other_modules_alone() -> None:
    """An error in a finalizer would be lost, and one in a context manager's exit would leave its work unfinished."""
    begin = time.perf_counter()
    with deadline(0.01, (textwrap,)):
        time.sleep(0.05)
    assert time.perf_counter() - begin >= 0.05


def test_a_deadline_in_another_thread_does_nothing() -> None:
    ended = []

    def work() -> None:
        with deadline(0.001, THIS_MODULE):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended
