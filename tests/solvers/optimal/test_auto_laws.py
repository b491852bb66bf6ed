"""Laws of `auto` as a whole: on budgets, seeds, warm starts, progress reports and interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import random_layered, training_graph
from remat_solvers.optimal.auto import Auto
from remat_solvers.optimal.incumbents import Incumbents
from remat_solvers.optimal.warm_starts import METHODS
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.checkmate import Checkmate
from remat_solvers.registry import create
from remat_solvers.result import Limits, Order, Progress, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from tests.paths import CORPUS, child_environment
from tests.solvers.makers import budget_above_floor, corpus_problem

UNTIL_THE_END = Limits(None)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the distance from the floor to the store-all peak
SLACK_S = 2.0  # a machine under load is slow


@cache
def budgets(problem: Problem) -> list[int]:
    return [budget_above_floor(problem, share) for share in SHARES]


def problems() -> list[Problem]:
    return [training_graph(6, 1), training_graph(9, 5), random_layered(12, 8), random_layered(14, 9)]


@pytest.mark.parametrize("problem", problems(), ids=lambda p: p.name)
def test_more_memory_is_never_worse(problem: Problem) -> None:
    """No bound is above the time of a plan in less memory; proven optima fall with the budget."""
    results = [solve(problem, budget_bytes, limits=UNTIL_THE_END) for budget_bytes in budgets(problem)]
    proven = 0
    for smaller, larger in combinations(results, 2):
        if smaller.plan is not None and larger.bound_ns is not None:
            assert smaller.time_ns is not None
            assert larger.bound_ns <= smaller.time_ns or larger.order is not smaller.order
        if smaller.status is larger.status is Status.OPTIMAL and smaller.order is larger.order:
            assert larger.time_ns is not None
            assert smaller.time_ns is not None
            assert larger.time_ns <= smaller.time_ns
            proven += 1
        if larger.status is Status.INFEASIBLE:
            assert smaller.status is not Status.OPTIMAL
            assert smaller.plan is None
    assert proven


@pytest.mark.parametrize("problem", problems(), ids=lambda p: p.name)
def test_the_same_seed_gives_the_same_plan(problem: Problem) -> None:
    for budget_bytes in budgets(problem)[1:4]:
        first, second = (solve(problem, budget_bytes, limits=UNTIL_THE_END, seed=3) for _ in range(2))
        assert first.plan == second.plan
        assert (first.status, first.bound_ns, first.order) == (second.status, second.bound_ns, second.order)


def test_checkmate_is_never_faster_in_the_given_order() -> None:
    """No bound for that order or for every order is above Checkmate's plan. Checkmate is exact on these problems,
    except that it recomputes an op at most once between two first computations."""
    compared = 0
    for seed in range(12):
        problem = training_graph(5, seed) if seed % 2 else random_layered(11, seed)
        budget_bytes = budgets(problem)[2]
        checkmate = Checkmate().solve(problem, budget_bytes, limits=UNTIL_THE_END, on_progress=None, seed=0)
        if checkmate.plan is None:
            continue
        time_ns = simulate(problem, checkmate.plan).time_ns
        result = solve(problem, budget_bytes, limits=UNTIL_THE_END)
        assert result.time_ns is not None
        assert result.bound_ns is not None
        assert result.bound_ns <= time_ns
        assert result.time_ns <= time_ns
        compared += result.time_ns == time_ns
    assert compared > 3


@pytest.mark.parametrize("name", ["chain50", "unet", "gpt"])
def test_progress_leads_to_a_plan_no_worse_than_any_warm_start(name: str) -> None:
    """The budget is the peak of one warm start. Reported times fall, bounds rise, and the result agrees with them."""
    problem = corpus_problem(name)
    floor, unmodified = peak_bound_bytes(problem), baseline(problem).peak_bytes
    belady_result = solve(problem, (floor + unmodified) // 2, solver="belady", limits=Limits(1))
    assert belady_result.peak_bytes is not None
    reports: list[Progress] = []
    result = solve(problem, belady_result.peak_bytes, limits=Limits(4), on_progress=reports.append)
    assert result.time_ns is not None
    for method in METHODS:
        other = solve(problem, belady_result.peak_bytes, solver=method, limits=Limits(1))
        assert other.time_ns is None or result.time_ns <= other.time_ns + Auto.within * result.store_all_time_ns
    times = [report.time_ns for report in reports if report.time_ns is not None]
    assert times == sorted(times, reverse=True)
    for order in Order:
        bounds = [report.bound_ns for report in reports if report.bound_ns is not None and report.order is order]
        assert bounds == sorted(bounds)
    assert [report.seconds for report in reports] == sorted(report.seconds for report in reports)
    assert times[-1] <= result.time_ns
    assert result.bound_ns is not None
    assert result.bound_ns <= result.time_ns


def test_a_plan_that_reorders_is_reported_with_a_bound_for_every_order() -> None:
    """A plan that keeps the order is as good, and a bound for such plans lies between the two."""
    ops = tuple(Op(f"op{i}", "forward", (), (i,), 1000 + i) for i in range(2))
    problem = Problem("two ops", ops, tuple(Value("", 1, "activation") for _ in ops), (0, 1))
    reports: list[Progress] = []
    incumbents = Incumbents(problem, 9, 1.0, Stopwatch(UNTIL_THE_END), reports.append)
    incumbents.offer_sequence((1, 0), "another order")
    incumbents.offer_sequence((0, 1, 0), "the given order")
    incumbents.raise_bound(2500, Order.GIVEN, "the given order")
    assert [(p.time_ns, p.bound_ns, p.order) for p in reports] == [(2001, 2001, Order.FREE)] * 2
    outcome = incumbents.outcome()
    assert (outcome.plan, outcome.bound_ns, outcome.order) == (
        plan_from_sequence(problem, (0, 1, 0)),
        2500,
        Order.GIVEN,
    )


@pytest.mark.parametrize("name", ["gpt", "r50", "lstm"])
def test_a_short_limit_is_kept(name: str) -> None:
    problem = corpus_problem(name)
    solve(problem, budgets(problem)[2], limits=Limits(0.01))  # fills caches and imports
    result = solve(problem, budgets(problem)[2], limits=Limits(0.2))
    assert result.stopped is Stopped.TIME
    assert result.seconds < 0.2 + SLACK_S
    assert result.status in (Status.FEASIBLE, Status.NOT_FOUND)


INTERRUPTED = """
    import os, signal, sys
    from remat_solvers.formats import load_problem
    from remat_solvers.optimal.warm_starts import METHODS
    from remat_solvers.registry import create
    from remat_solvers.result import Limits
    from remat_solvers.solving import solve
    from remat_solvers.validate import validate

    for name in METHODS:  # a handled Ctrl-C in the exec of a dataclass would still set the exit code
        create(name)

    def report(progress):
        if progress.time_ns is not None:
            print("a plan", flush=True)

    problem = load_problem(sys.argv[1])
    result = solve(problem, int(sys.argv[2]), limits=Limits(60), on_progress=report)
    assert result.plan is not None and not validate(problem, result.plan, int(sys.argv[2]))
    assert result.bound_ns is not None and result.bound_ns <= result.time_ns
    print(result.stopped.value, flush=True)
"""


def test_ctrl_c_returns_the_best_plan() -> None:
    """The signal comes after the first plan, on a graph whose proof takes longer. Child processes end, too."""
    problem = corpus_problem("r50")
    budget_bytes = budgets(problem)[1]
    script = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(CORPUS / "r50.json"), str(budget_bytes)]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, text=True, env=child_environment(), start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a plan\n"
        os.killpg(process.pid, signal.SIGINT)  # a terminal also sends it to the children
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.splitlines()[-1] == "interrupt"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_ctrl_c_in_a_method_that_returns_its_plan_ends_auto_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of the method is kept, and no other part starts."""
    problem = corpus_problem("r50")
    budget_bytes = budgets(problem)[1]
    known = create("belady").solve(problem, budget_bytes, limits=UNTIL_THE_END, on_progress=None, seed=0)
    assert known.plan is not None
    interrupted = replace(known, stopped=Stopped.INTERRUPT)
    monkeypatch.setattr("remat_solvers.optimal.portfolio.warm_starts", lambda *_: iter([("belady", interrupted)]))
    started: list[object] = []
    monkeypatch.setattr(
        "remat_solvers.optimal.portfolio.lagrangian_steps", lambda *_, **__: iter(started.append(None) or ())
    )
    result = solve(problem, budget_bytes, solver=Auto(search=False), limits=Limits(20))
    assert (result.stopped, result.plan, started) == (Stopped.INTERRUPT, known.plan, [])


def test_ctrl_c_before_the_first_plan_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("remat_solvers.optimal.portfolio.SequenceSearch", interrupted)
    result = solve(corpus_problem("unet"), budgets(corpus_problem("unet"))[2])
    assert (result.status, result.stopped) == (Status.NOT_FOUND, Stopped.INTERRUPT)
