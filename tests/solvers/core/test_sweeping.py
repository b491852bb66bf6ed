"""Tests of the curve of time against peak: it is monotone for every solver, uses all that is known, can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers import formats
from remat_solvers.bounds import bottleneck, peak_bound
from remat_solvers.errors import BudgetError, FormatError, InputError
from remat_solvers.generate import adversarial, chain, training_graph
from remat_solvers.optimal.min_peak import minimise_peak
from remat_solvers.pareto import Point, Sweep
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.brute_force.solver import best_sequence
from remat_solvers.recompute.gruslys import Gruslys
from remat_solvers.result import Limits, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import simulate
from remat_solvers.sweeping import sweep
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem

CHAIN = chain(50)
STEP_NS = 150
# Extra forward computations of 50 uniform layers (store-all keeps 51 bytes) by number of slots: Gruslys' optimum, from
# the table of known answers of an earlier study.
EXTRA = {6: 95, 8: 65, 12: 39, 20: 31}


def check(problem: Problem, curve: Sweep) -> None:
    """Checks every law that a sweep keeps for any solver."""
    unmodified = baseline(problem)
    assert (curve.store_all_peak_bytes, curve.store_all_time_ns) == (unmodified.peak_bytes, unmodified.time_ns)
    for point in curve.points:
        if point.plan is None:
            assert point.status not in (Status.OPTIMAL, Status.FEASIBLE)
            assert point.reason
            continue
        assert validate(problem, point.plan, point.budget_bytes) == []
        timeline = simulate(problem, point.plan)
        assert (timeline.peak_bytes, timeline.time_ns) == (point.peak_bytes, point.time_ns)
        assert curve.smallest_peak_bytes <= timeline.peak_bytes
        assert curve.peak_bound_bytes <= timeline.peak_bytes
        if point.bound_ns is not None:
            assert point.bound_ns <= timeline.time_ns
            assert (point.status is Status.OPTIMAL) == (point.bound_ns == timeline.time_ns)
    for below, above in pairwise(curve.points):
        assert below.budget_bytes < above.budget_bytes
        if below.time_ns is not None:
            assert above.time_ns is not None
            assert above.time_ns <= below.time_ns
        if below.order is above.order and above.bound_ns is not None:
            assert below.bound_ns is not None
            assert below.bound_ns >= above.bound_ns


@given(n=st.integers(1, 5), seed=st.integers(0, 10**6), points=st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_the_laws_hold_for_a_heuristic(n: int, seed: int, points: int) -> None:
    for problem in (training_graph(n, seed), adversarial(seed)):
        curve = sweep(problem, points=points, solver="dtr", limits=Limits(None))
        check(problem, curve)
        assert 1 <= len(curve.points) <= points
        assert curve.points[-1].budget_bytes == max(1, curve.store_all_peak_bytes)


@pytest.mark.parametrize("name", ["chain50", "unet"])
def test_the_laws_hold_for_auto_on_the_corpus(name: str) -> None:
    problem = corpus_problem(name)
    curve = sweep(problem, points=6, limits=Limits(2.0))
    check(problem, curve)
    assert curve.points[-1].overhead == 0


@pytest.mark.parametrize("seed", range(12))
def test_every_point_of_an_exact_method_is_on_the_exact_curve(seed: int) -> None:
    problem = training_graph(3, seed)
    top, floor = baseline(problem).peak_bytes, peak_bound(problem).bytes
    budgets = sorted({max(1, floor + (top - floor) * i // 4) for i in range(5)})
    curve = sweep(problem, budgets=budgets, solver="brute-force", limits=Limits(None))
    check(problem, curve)
    assert [p.budget_bytes for p in curve.points] == budgets
    for point in curve.points:
        best = best_sequence(problem, point.budget_bytes)
        assert point.time_ns == (None if best is None else sum(problem.ops[op].time_ns for op in best))


def test_a_uniform_chain() -> None:
    curve = sweep(CHAIN, budgets=tuple(EXTRA), solver="gruslys")
    assert {p.budget_bytes: (p.time_ns or 0) - STEP_NS for p in curve.points} == EXTRA


def test_chosen_points_cover_the_curve_and_are_denser_where_it_bends() -> None:
    curve = sweep(CHAIN, points=9, solver="gruslys")
    check(CHAIN, curve)
    budgets = [p.budget_bytes for p in curve.points]
    assert len(budgets) == 9
    assert (budgets[0], budgets[-1]) == (3, 51)  # every backward op needs three values
    widths = [after - before for before, after in pairwise(budgets)]
    assert min(widths[:2]) < max(widths[-2:])


def test_budgets_below_the_floor_are_infeasible_with_the_reason_of_the_floor() -> None:
    curve = sweep(CHAIN, budgets=(2, 1, 12), solver="gruslys")
    check(CHAIN, curve)
    assert [p.status for p in curve.points] == [Status.INFEASIBLE, Status.INFEASIBLE, Status.FEASIBLE]
    assert curve.points[1].reason == f"Every plan needs {bottleneck(CHAIN)}"
    assert curve.points[0].reason == curve.points[1].reason
    assert curve.points[0].seconds == 0


# ---------------------------------------------------------------- combining the outcomes of solvers


@dataclass(frozen=True)
class Scripted:
    """Returns prepared outcomes by budget, and records its calls."""

    outcomes: dict[int, Outcome]
    starts: tuple[Plan, ...] = ()
    calls: list[tuple[int, tuple[Plan, ...]]] = field(default_factory=list)
    name: ClassVar[str] = "scripted"
    version: ClassVar[str] = "1"

    def solve(self, problem: Problem, budget_bytes: int, **options: Any) -> Outcome:
        self.calls.append((budget_bytes, self.starts))
        return self.outcomes[budget_bytes]

    def solve_min_peak(self, problem: Problem, **options: Any) -> Outcome:
        return minimise_peak(problem, **options).outcome


def plan_of(budget: int) -> Plan:
    plan = Gruslys().solve(CHAIN, budget, limits=Limits(None), on_progress=None, seed=0).plan
    assert plan is not None
    return plan


def found(budget: int, bound_ns: int | None = None, order: Order = Order.GIVEN) -> Outcome:
    return Outcome(Status.FEASIBLE, plan_of(budget), bound_ns=bound_ns, order=order)


NOT_FOUND = Outcome(Status.NOT_FOUND, reason="prepared")


def by_budget(curve: Sweep) -> dict[int, Point]:
    check(CHAIN, curve)
    return {point.budget_bytes: point for point in curve.points}


def test_a_plan_is_also_used_at_larger_budgets() -> None:
    solver = Scripted({40: NOT_FOUND, 30: found(8), 20: found(20)})
    points = by_budget(sweep(CHAIN, budgets=(40, 30, 20), solver=solver))
    assert [points[b].time_ns for b in (40, 30, 20)] == [STEP_NS + 31] * 3
    assert points[40].status is Status.FEASIBLE


def test_a_plan_is_also_used_at_smaller_budgets_above_its_peak() -> None:
    solver = Scripted({40: found(12), 20: NOT_FOUND, 10: NOT_FOUND})
    points = by_budget(sweep(CHAIN, budgets=(40, 20, 10), solver=solver))
    assert [points[b].time_ns for b in (40, 20, 10)] == [STEP_NS + 39, STEP_NS + 39, None]
    assert points[10].status is Status.NOT_FOUND


def test_a_bound_also_holds_at_smaller_budgets() -> None:
    solver = Scripted({20: found(20, STEP_NS + 31), 12: found(12, STEP_NS + 7), 8: found(8)})
    points = by_budget(sweep(CHAIN, budgets=(20, 12, 8), solver=solver))
    assert [points[b].bound_ns for b in (20, 12, 8)] == [STEP_NS + 31] * 3
    assert [points[b].order for b in (20, 12, 8)] == [Order.GIVEN] * 3
    assert points[20].status is Status.OPTIMAL
    assert points[8].gap == (65 - 31) / STEP_NS


def test_the_solver_is_not_called_where_plan_and_bound_for_every_order_meet() -> None:
    solver = Scripted({30: found(20, STEP_NS + 31, Order.FREE)})
    points = by_budget(sweep(CHAIN, budgets=(30, 25), solver=solver))
    assert [budget for budget, _ in solver.calls] == [30]
    assert (points[25].status, points[25].seconds) == (Status.OPTIMAL, 0)


def test_the_solver_is_called_where_they_meet_for_the_given_order_only() -> None:
    solver = Scripted({30: found(20, STEP_NS + 31), 25: found(20)})
    points = by_budget(sweep(CHAIN, budgets=(30, 25), solver=solver))
    assert [budget for budget, _ in solver.calls] == [30, 25]
    assert points[25].status is Status.OPTIMAL


def test_a_bound_for_the_given_order_does_not_apply_to_a_plan_in_another_order() -> None:
    """Two large values are each reduced to a small one; computed one after the other, they need not be resident
    together."""
    sizes = (10, 10, 1, 1)
    reads: tuple[tuple[int, ...], ...] = ((), (), (0,), (1,))
    problem = Problem(
        name="two",
        ops=tuple(Op(f"op{i}", "forward", read, (i,), time_ns=1) for i, read in enumerate(reads)),
        values=tuple(Value(f"v{i}", size, "activation") for i, size in enumerate(sizes)),
        results=(2, 3),
    )
    # In the given order, op 0 is computed twice.
    reordered = Plan((Compute(0), Compute(2), Free(0), Compute(1), Compute(3), Free(1)))
    solver = Scripted({15: Outcome(Status.FEASIBLE, reordered, bound_ns=6, order=Order.GIVEN)})
    (point,) = sweep(problem, budgets=(15,), solver=solver).points
    assert (point.time_ns, point.bound_ns, point.order, point.gap) == (4, None, None, None)


def test_contradicting_claims_are_assertion_errors() -> None:
    bound = Scripted({20: found(20), 30: found(12, STEP_NS + 39)})
    with pytest.raises(AssertionError, match="scripted: a bound of 189 ns above a plan's 181 ns"):
        sweep(CHAIN, budgets=(20, 30), solver=bound)
    floor = Scripted({30: NOT_FOUND, 20: found(8), 12: Outcome(Status.INFEASIBLE)})
    with pytest.raises(AssertionError, match="scripted: infeasible at 12 bytes, where there is a plan"):
        sweep(CHAIN, budgets=(30, 20, 12), solver=floor)


def test_the_solver_starts_from_the_plans_on_both_sides_and_from_the_smallest() -> None:
    outcomes = {b: found(b) for b in range(3, 51)} | {51: Outcome(Status.FEASIBLE, store_all(CHAIN))}
    solver = Scripted(outcomes, starts=(plan_of(5),))
    curve = sweep(CHAIN, points=7, solver=solver, limits=Limits(5))
    budgets = [budget for budget, _ in solver.calls]
    assert sorted([*budgets, 51]) == [point.budget_bytes for point in curve.points]
    for i, (budget, starts) in enumerate(solver.calls):
        known = [51, *budgets[:i]]
        below, above = [b for b in known if b < budget], [b for b in known if b > budget]
        nearest = [outcomes[b].plan for b in (*sorted(below)[-1:], min(above))]
        assert starts[:-1] == (plan_of(5), *nearest)
        assert simulate(CHAIN, starts[-1]).peak_bytes == budgets[2] == 3  # of a range in three steps the last


def test_a_plain_class_with_an_attribute_of_that_name_is_not_warm_started() -> None:
    class Plain:
        name: ClassVar[str] = "plain"
        version: ClassVar[str] = "1"
        starts = 3

        def solve(self, *_: object, **__: object) -> Outcome:
            return Outcome(Status.NOT_FOUND)

    curve = sweep(CHAIN, budgets=["60%"], solver=Plain())
    assert [point.status for point in curve.points] == [Status.NOT_FOUND]


# ---------------------------------------------------------------- limits


@dataclass(frozen=True)
class Interrupted:
    """Gruslys' method with Ctrl-C at one budget."""

    at: int
    returns_plan: bool
    name: ClassVar[str] = "interrupted"
    version: ClassVar[str] = "1"

    def solve(self, problem: Problem, budget_bytes: int, **options: Any) -> Outcome:
        if budget_bytes == self.at and not self.returns_plan:
            raise KeyboardInterrupt
        outcome = Gruslys().solve(problem, budget_bytes, **options)
        return replace(outcome, stopped=Stopped.INTERRUPT) if budget_bytes == self.at else outcome


@pytest.mark.parametrize("returns_plan", [False, True])
def test_ctrl_c_returns_the_points_so_far(returns_plan: bool) -> None:
    curve = sweep(CHAIN, budgets=(8, 20, 12), solver=Interrupted(12, returns_plan))
    points = by_budget(curve)
    assert curve.stopped is Stopped.INTERRUPT
    assert points[20].time_ns == STEP_NS + 31
    assert points[12].time_ns == (STEP_NS + 39 if returns_plan else None)
    assert (points[8].status, points[8].stopped) == (Status.NOT_FOUND, Stopped.INTERRUPT)
    assert points[8].reason == "the sweep ended before its turn"


def test_the_limit_is_for_the_whole_sweep_and_the_rest_is_shared() -> None:
    shares = []

    @dataclass(frozen=True)
    class Quick:
        name: ClassVar[str] = "quick"
        version: ClassVar[str] = "1"

        def solve(self, problem: Problem, budget_bytes: int, *, limits: Limits, **options: Any) -> Outcome:
            shares.append(limits.seconds)
            return found(budget_bytes)

    sweep(CHAIN, budgets=(10, 20, 30), solver=Quick(), limits=Limits(60))
    assert shares == pytest.approx([20, 30, 60], rel=0.05)
    curve = sweep(CHAIN, points=5, solver="gruslys", limits=Limits(1e-9))
    check(CHAIN, curve)
    assert curve.stopped is Stopped.TIME


def test_points_and_progress_are_reported_in_order() -> None:
    reported: list[Point] = []
    seconds: list[float] = []
    report: Callable[[Progress], None] = lambda progress: seconds.append(progress.seconds)  # noqa: E731
    curve = sweep(CHAIN, budgets=("90%", "60%", 12), solver="auto", on_point=reported.append, on_progress=report)
    assert [p.budget_bytes for p in reported] == [45, 30, 12]
    assert [p.budget_bytes for p in curve.points] == [12, 30, 45]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= curve.seconds


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"points": 1}, InputError, "at least 2"),
        ({"points": True}, InputError, "at least 2"),
        ({"budgets": ()}, InputError, "one or more"),
        ({"budgets": "60%"}, InputError, "sequence"),
        ({"budgets": ("lots",)}, BudgetError, "lots"),
        ({"solver": "chne"}, InputError, "did you mean chen"),
    ],
)
def test_invalid_arguments(options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        sweep(CHAIN, **options)


# ---------------------------------------------------------------- reading and saving a curve


def test_the_fastest_within_a_budget() -> None:
    curve = sweep(CHAIN, budgets=(6, 12, 20), solver="gruslys")
    assert curve.within(19).time_ns == STEP_NS + 39
    assert curve.within(10**9).time_ns == STEP_NS + 31
    with pytest.raises(InputError, match="at most 5 bytes"):
        curve.within(5)


def test_curves_survive_the_round_trip_and_each_point_gives_a_plan_file(tmp_path: Path) -> None:
    curve = sweep(CHAIN, budgets=(1, 12, 20), solver="gruslys")
    formats.save_sweep(tmp_path / "curve.json", curve)
    assert formats.load_sweep(tmp_path / "curve.json") == curve
    assert formats.encode_sweep(curve) == (tmp_path / "curve.json").read_bytes()
    formats.save_plan(tmp_path / "plan.json", curve.result(curve.within(12)))
    loaded = formats.load_plan(tmp_path / "plan.json")
    assert (loaded.time_ns, loaded.plan) == (STEP_NS + 39, curve.points[1].plan)
    with pytest.raises(FormatError, match="holds a sweep, not a plan"):
        formats.load_plan(tmp_path / "curve.json")
    with pytest.raises(FormatError, match="holds a plan, not a sweep"):
        formats.load_sweep(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("corrupt", "place"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(problem="0"), "problem"),
        (lambda d: d.pop("seed"), "seed"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: d.update(seconds="1"), "seconds"),
        (lambda d: d.update(stopped="never"), "stopped"),
        (lambda d: d.update(points={}), "points"),
        (lambda d: d["points"].append(3), r"points\[3\]"),
        (lambda d: d["points"][1].pop("gap"), r"points\[1\]"),
        (lambda d: d["points"][1].update(time_ns=1.5), r"points\[1\]\.time_ns"),
        (lambda d: d["points"][1].update(plan=[]), r"points\[1\]"),
        (lambda d: d["points"][2].update(actions=[["free", -1]]), r"points\[2\]\.actions\[0\]"),
    ],
)
def test_corrupted_files_are_refused(corrupt: Callable[[dict[str, Any]], Any], place: str) -> None:
    document = json.loads(formats.encode_sweep(sweep(CHAIN, budgets=(1, 12, 20), solver="gruslys")))
    corrupt(document)
    with pytest.raises(FormatError, match=place):
        formats.decode(json.dumps(document).encode())
