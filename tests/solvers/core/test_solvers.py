"""Laws of every solver: a valid plan within the budget, or an honest status. Each solver has one line in SOLVERS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import time_bound_ns
from remat_solvers.comparing import compare
from remat_solvers.errors import BudgetError, InputError
from remat_solvers.generate import adversarial, chain, random_layered, training_graph
from remat_solvers.optimal.auto import Auto
from remat_solvers.optimal.warm_starts import METHODS
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.chen import Chen
from remat_solvers.registry import ENTRIES, Solver, create, entry, solver_names
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline, store_all
from remat_solvers.solving import FITS, solve
from tests.solvers.checks import check_result
from tests.solvers.makers import corpus_problem

SOLVERS = (
    ("store-all", {}),
    ("chen", {}),
    ("chen", {"strategy": "sqrt", "candidates": "articulation"}),
    ("chen", {"strategy": "recursive", "k": 2}),
    ("chen", {"strategy": "budget", "threshold_bytes": 30}),
    ("gruslys", {}),
    ("gruslys", {"strategy": "internal", "slots": 3}),
    ("revolve", {}),
    ("kusumoto", {"bins": 50}),
    ("kusumoto", {"exact": False, "strategy": "memory-centric", "keep_last": False}),
    ("rotor", {"slots": 60}),
    ("rockmate", {"slots": 60, "peaks": 2, "saves": 3}),
    ("rockmate", {"stages": 2, "granularities": 1, "exact_ops": 8, "peaks": 2, "saves": 3}),
    ("checkmate", {"exact_ops": 9, "coarse_ops": 5, "swap_tries": 20}),
    ("moccasin", {}),
    ("brute-force", {"max_ops": 10, "max_moving_ops": 4}),
    ("dtr", {}),
    ("dtr", {"heuristic": "h", "deallocate": "ignore"}),
    ("belady", {}),
    ("belady", {"weight": "none"}),
    ("selective", {}),
    ("segments", {}),
    ("segments", {"every": 1}),
    ("superneurons", {}),
    ("superneurons", {"strategy": "cost-aware", "threshold": "code"}),
    ("superneurons", {"strategy": "keep", "offload": "checkpoints", "cache": False}),
    ("modnn", {}),
    ("capuchin", {}),
    ("capuchin", {"most_swaps": 2, "collective": True}),
    ("vdnn", {}),
    ("vdnn", {"policy": "all"}),
    ("vdnn", {"policy": "conv"}),
    ("meng", {}),
    ("meng", {"threshold_bytes": 50}),
    ("tflms", {"lb": 2}),
    ("tflms", {"lb": 1, "strategy": "direct_order", "fuse_swapins": False}),
    ("layrub", {}),
    ("pofo", {"slots": 60, "cells": 8, "stages": 6}),
    ("swap-only", {"tries": 20}),
    ("auto", {}),
)
SHORT = Limits(work=5)  # slices of `auto`, which runs to its end in test_auto_laws.py and test_auto_fuzz.py
EVERY_SOLVER = pytest.mark.parametrize(
    ("name", "options"), SOLVERS, ids=lambda v: v if isinstance(v, str) else str(list(v))
)


@EVERY_SOLVER
@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), link=st.booleans(), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_on_random_problems(name: str, options: dict[str, object], n: int, seed: int, link: bool, share: float) -> None:
    for problem in (training_graph(n, seed, link=link), adversarial(seed)):
        unmodified = baseline(problem).peak_bytes
        floor = solve(problem, max(1, unmodified), solver="store-all").peak_bound_bytes
        for budget_bytes in {max(1, floor + int(share * (unmodified - floor))), max(1, floor - 1)}:
            check_result(problem, solve(problem, budget_bytes, solver=create(name, **options), limits=SHORT))


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("chain50", (0.8, 0.4)),
        ("gpt", (0.8, 0.4)),
        ("lstm", (0.4,)),
        ("r50", (0.9, 0.6, 0.4)),
        ("unet", (0.9, 0.8, 0.4)),
    ],
)
def test_chen_on_the_corpus(name: str, shares: tuple[float, ...]) -> None:
    """Chen's overhead is at most that of the study's search over evenly spaced articulation cuts; bounds are lower."""
    studied = {"unet": {0.9: 28.6, 0.8: 28.6}, "r50": {0.9: 27.8, 0.6: 27.8, 0.4: 27.8}, "gpt": {0.8: 19.1, 0.4: 19.1}}
    proven = {"unet": {0.8: 2.877}, "r50": {0.9: 1.14, 0.4: 12.99}, "gpt": {0.4: 15.67}, "lstm": {0.4: 17.7}}
    problem = corpus_problem(name)
    unmodified = baseline(problem)
    for share in shares:
        result = solve(problem, int(share * unmodified.peak_bytes), solver="chen")
        check_result(problem, result)
        assert result.time_ns is not None
        overhead = 100 * (result.time_ns / unmodified.time_ns - 1)
        assert proven.get(name, {}).get(share, 0) <= overhead <= studied.get(name, {}).get(share, 100)


def test_a_budget_that_store_all_meets_is_answered_with_store_all() -> None:
    problem = training_graph(8, 4)
    unmodified = baseline(problem)
    for name in solver_names():
        result = solve(problem, unmodified.peak_bytes, solver=name)
        assert result.plan == store_all(problem)
        assert (result.status, result.reason, result.gap) == (Status.OPTIMAL, FITS, 0)
        assert (result.order, result.bound_ns) == (Order.FREE, unmodified.time_ns)


def test_a_budget_below_the_floor_is_infeasible_and_names_the_bottleneck() -> None:
    problem = corpus_problem("gpt")
    result = solve(problem, int(0.2 * 3_251_930_112))
    assert result.status is Status.INFEASIBLE
    assert "256.00 MiB output of op125 (_log_softmax)" in result.reason


@pytest.mark.parametrize("name", [registered.name for registered in ENTRIES if registered.needs_backward])
def test_methods_that_need_a_backward_are_not_applicable_without_one(name: str) -> None:
    problem = replace(random_layered(60, 3), link=Link(1, 1))
    budget_bytes = baseline(problem).peak_bytes - 1
    result = solve(problem, budget_bytes, solver=name)
    assert result.status is Status.NOT_APPLICABLE
    assert "backward" in result.reason


def test_methods_that_need_a_link_are_not_applicable_without_one() -> None:
    results = [solve(chain(9), 8, solver=registered.name) for registered in ENTRIES if registered.family == "swap"]
    for result in results:
        if result.solver not in ("capuchin", "superneurons"):  # without a link, these recompute
            assert result.status is Status.NOT_APPLICABLE
            assert result.reason == f"{result.solver} needs a link to the host; there is none"
    assert sum(result.status is Status.NOT_APPLICABLE for result in results) == len(results) - 2


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, None, "0%", "much", "smallest", 2**63], ids=repr)
def test_the_error_for_an_unreadable_budget_lists_the_forms(budget: Any) -> None:
    with pytest.raises(BudgetError, match=r"bytes \(8000000000\), a size \(8GiB, 800MB\) or a share .* min"):
        solve(chain(3), budget)
    with pytest.raises(BudgetError, match=r"bytes \(8000000000\), a size \(8GiB, 800MB\) or a share"):
        compare(chain(3), budget, solvers=["chen"])


def test_all_forms_of_a_budget_have_the_same_answer() -> None:
    problem = chain(50)
    budget_bytes = baseline(problem).peak_bytes * 60 // 100
    expected = solve(problem, budget_bytes, solver="chen")
    for budget in ("60%", f"{budget_bytes}B", f"{budget_bytes / 1000}kB"):
        result = solve(problem, budget, solver="chen")
        assert (result.budget_bytes, result.plan) == (budget_bytes, expected.plan)
    assert compare(problem, "60%", solvers=["chen"]).budget_bytes == budget_bytes
    assert solve(problem, "8GiB").reason == "fits as it is"
    assert solve(problem, "min", solver="chen").budget_bytes < budget_bytes


def test_the_error_for_an_unknown_solver_or_option_suggests_a_known_one() -> None:
    with pytest.raises(InputError, match="did you mean chen"):
        solve(chain(3), 3, solver="chan")
    with pytest.raises(InputError, match="known are auto"):
        solve(chain(3), 3, solver="zzz")
    with pytest.raises(InputError, match=r"chen.*size"):
        create("chen", size=3)


def test_the_names_of_the_registry_are_those_of_the_solvers() -> None:
    assert len(set(solver_names())) == len(ENTRIES)
    for registered in ENTRIES:
        assert create(registered.name).name == registered.name == entry(registered.name).name


def test_every_registered_solver_is_in_the_table() -> None:
    assert {name for name, _ in SOLVERS} == set(solver_names())


def test_the_result_carries_the_solver_and_its_options() -> None:
    result = solve(chain(16), 9, solver=Chen(strategy="recursive", k=1), seed=3)
    assert (result.solver, result.version, result.seed) == ("chen", Chen.version, 3)
    assert result.options["strategy"] == "recursive"
    assert result.options["k"] == 1


@pytest.mark.parametrize("name", ["chen", "gruslys", "revolve", "kusumoto", "rotor", "rockmate", "auto"])
def test_ctrl_c_keeps_the_best_plan_so_far(name: str) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    result = solve(chain(50), 40, solver=name, on_progress=interrupt)
    assert result.stopped is Stopped.INTERRUPT
    assert result.plan is not None


def test_a_time_limit_is_kept_and_reported() -> None:
    problem = corpus_problem("lstm")
    result = solve(problem, 60_000_000, solver="chen", limits=Limits(seconds=0.05))
    assert result.stopped is Stopped.TIME
    assert result.status is Status.NOT_FOUND
    assert result.seconds < 2


def test_progress_reports_ever_faster_plans() -> None:
    reports: list[Progress] = []
    result = solve(chain(50), 40, solver="chen", on_progress=reports.append)
    times = [p.time_ns for p in reports if p.time_ns is not None]
    assert times == sorted(times, reverse=True)
    assert times[-1] == result.time_ns


def test_a_plan_without_recomputation_is_proven_optimal_by_auto() -> None:
    """`auto` knows that every op is computed at least once, so a plan that only reorders frees is optimal."""
    for seed in range(100):
        problem = training_graph(6, seed)
        budget_bytes = baseline(problem).peak_bytes - 1
        result = solve(problem, max(1, budget_bytes))
        if result.plan is not None:
            assert result.bound_ns is not None
            assert result.bound_ns >= time_bound_ns(problem)
            assert (result.status is Status.OPTIMAL) is (result.time_ns == result.bound_ns)


@pytest.mark.parametrize(("name", "share"), [("gpt", 0.6), ("unet", 0.4), ("chain50", 0.3), ("r50", 0.4)])
def test_auto_is_no_slower_than_any_of_its_warm_starts(name: str, share: float) -> None:
    problem = corpus_problem(name)
    budget_bytes = int(share * baseline(problem).peak_bytes)
    results = [solve(problem, budget_bytes, solver=method) for method in METHODS]
    for result in results:
        check_result(problem, result)
    times = [result.time_ns for result in results if result.time_ns is not None]
    result = solve(problem, budget_bytes, limits=Limits(5))
    assert result.time_ns is not None
    assert result.time_ns <= min(times) + Auto.within * result.store_all_time_ns


@dataclass(frozen=True)
class Cheat:
    """Returns the outcome that it is constructed with."""

    outcome: Outcome

    name: ClassVar[str] = "cheat"
    version: ClassVar[str] = "0"

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        return self.outcome


GOOD = Chen().solve(chain(9), 8, limits=Limits(), on_progress=None, seed=0)
assert GOOD.plan is not None


@pytest.mark.parametrize(
    "outcome",
    [
        replace(GOOD, plan=None),
        replace(GOOD, status=Status.NOT_FOUND),
        replace(GOOD, status=Status.OPTIMAL),
        replace(GOOD, status=Status.OPTIMAL, bound_ns=1),
        replace(GOOD, bound_ns=10**6, order=Order.FREE),
        replace(GOOD, plan=store_all(chain(9))),
        replace(GOOD, plan=Plan(GOOD.plan[1:])),
        replace(GOOD, plan=Plan([*GOOD.plan, Compute(99)])),
    ],
)
def test_a_wrong_outcome_is_an_assertion_error(outcome: Outcome) -> None:
    solver: Solver = Cheat(outcome)
    with pytest.raises(AssertionError, match="cheat"):
        solve(chain(9), 8, solver=solver)
    solve(chain(9), 8, solver=Cheat(GOOD))
