"""`remat.solve` and `remat.apply`: budgets, options, reserve, files, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import remat
import remat_solvers
from remat_solvers.formats import save_plan
from remat_solvers.plan import Plan
from remat_solvers.result import Outcome
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import simulate
from tests.remat.modules import (
    CASE,
    WIDTH,
    batch,
    differences,
    layers,
    recomputations,
    run_and_record,
    solved,
    training_loss,
)

ARGS = (batch(rows=1024),)


def store_all_peak() -> int:
    problem = remat.export(layers(), ARGS, costs="roofline").problem
    return baseline(problem).peak_bytes


# Budgets


@pytest.mark.parametrize("budget", ["8GiB", "800MB", 10**12, "100%", "250 %"])
def test_a_budget_above_store_all_fits_as_it_is(budget: int | str) -> None:
    net = solved(layers(), ARGS, budget)
    assert net.result.status is remat.Status.OPTIMAL
    assert net.result.reason == "fits as it is"
    assert recomputations(net.plan) == 0
    assert net.result.peak_bytes == net.result.store_all_peak_bytes == store_all_peak()


def test_forms_of_one_budget_give_one_plan() -> None:
    peak = store_all_peak()
    budget = int(0.7 * peak)
    by_bytes, by_share, by_size = (solved(layers(), ARGS, b) for b in (budget, "70%", f"{budget / 1000}kB"))
    assert by_share.result.budget_bytes == peak * 7 // 10
    assert by_bytes.plan == by_share.plan == by_size.plan
    assert recomputations(by_bytes.plan) > 0
    assert by_bytes.result.peak_bytes <= budget
    assert differences(run_and_record(by_bytes, ARGS), run_and_record(layers(), ARGS)) == []


@pytest.mark.parametrize("budget", ["", "much", "-1", 0, -5, "0%", "60MB%", "1e", None, 1.5, True])
def test_a_budget_that_does_not_parse_is_refused_before_any_work(budget: Any) -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Any) -> Any:
            raise AssertionError

    with pytest.raises(remat.BudgetError, match="budget"):
        remat.solve(Untouchable(), budget, (batch(),))


def test_a_budget_below_any_plan_carries_the_result() -> None:
    with pytest.raises(remat.InfeasibleError, match=r"no plan within 1000 B.*Proven") as error:
        solved(layers(), ARGS, 1000)
    result = error.value.result
    assert (result.status, result.plan, result.budget_bytes) == (remat.Status.INFEASIBLE, None, 1000)
    assert 1000 < result.peak_bound_bytes <= result.store_all_peak_bytes
    assert "raise the budget" in str(error.value)


def test_a_budget_a_method_does_not_reach() -> None:
    with pytest.raises(remat.InfeasibleError) as error:
        solved(layers(), ARGS, "90%", solver="store-all")
    result = error.value.result
    assert result.status is remat.Status.NOT_FOUND
    assert result.smallest_peak_bytes == store_all_peak()


# Options


class Lazy:
    """A solver object that a caller could define."""

    name: ClassVar[str] = "lazy"
    version: ClassVar[str] = "1"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def solve(self, problem: Any, budget_bytes: int, **options: Any) -> Outcome:
        self.calls.append((budget_bytes, options["limits"].seconds, options["seed"], options["on_progress"]))
        return Outcome(remat.Status.NOT_FOUND, reason="too lazy")


def test_a_solver_object_gets_the_options_of_solve() -> None:
    lazy = Lazy()
    with pytest.raises(remat.InfeasibleError, match="too lazy"):
        solved(layers(), ARGS, "70%", solver=lazy, limits=remat.Limits(seconds=3), seed=5, on_progress=print)
    assert lazy.calls == [(store_all_peak() * 7 // 10, 3, 5, print)]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(remat.InputError, match="nonesuch"):
        solved(layers(), ARGS, "70%", solver="nonesuch")
    with pytest.raises(remat.InputError, match="nonesuch"):
        solved(layers(), ARGS, "70%", costs="roofline:nonesuch")
    with pytest.raises(remat.InputError, match="link"):
        solved(layers(), ARGS, "70%", link="fast")


def test_costs_are_recorded() -> None:
    assert solved(layers(), ARGS, "100%", costs="roofline:h100").problem.costs.source == "roofline:h100"
    measured = solved(layers(), ARGS, "100%", costs="measure").problem
    assert (measured.costs.source, measured.costs.workspace, measured.costs.threads) == ("measure", True, 1)
    assert len(measured.costs.spread_ns) == len(measured.ops)
    assert sum(op.time_ns for op in measured.ops) > 0


def test_a_link_is_part_of_the_problem() -> None:
    link = remat.Link(10**9, 10**9, 1000, None)
    assert solved(layers(), ARGS, "100%", link=link).problem.link == link


# Reserve


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the state of an optimizer that has run a step."""
    held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in held)


def parameter_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first], "amsgrad": True}, {"params": others, "lr": 0.5}], lr=1e-4)


INSTANCES = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters()),
    "adamw": lambda model: torch.optim.AdamW(model.parameters()),
    "adamw amsgrad": lambda model: torch.optim.AdamW(model.parameters(), amsgrad=True),
    "adamw groups": grouped,
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters()),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), centered=True),
    "nadam": lambda model: torch.optim.NAdam(model.parameters()),
}


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("stepped", [False, True], ids=["new", "stepped"])
def test_the_reserve_of_an_instance_is_its_state_after_a_step(name: str, stepped: bool) -> None:
    model = layers()
    model[0].requires_grad_(False)
    optimizer = INSTANCES[name](model)
    if stepped:
        training_loss(model(batch())).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = [p.clone() for p in model.parameters()]
    state = len(optimizer.state)
    net = solved(model, ARGS, "100%", optimizer=optimizer)
    assert len(optimizer.state) == state
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    training_loss(net(*ARGS)).backward()
    optimizer.step()
    assert net.problem.reserve_bytes == state_bytes(optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.NAdam])
def test_the_reserve_of_a_class_is_its_state_after_a_step(kind: type[torch.optim.Optimizer]) -> None:
    net = solved(layers(), ARGS, "100%", optimizer=kind)
    optimizer = kind(net.parameters(), lr=0.1)  # type: ignore[call-arg]
    training_loss(net(*ARGS)).backward()
    optimizer.step()
    assert net.problem.reserve_bytes == state_bytes(optimizer)


def test_the_reserve_of_adamw_in_closed_form() -> None:
    model = layers()
    steps = 4 * len(list(model.parameters()))
    assert (
        solved(model, ARGS, "100%", optimizer=torch.optim.AdamW).problem.reserve_bytes
        == 2 * parameter_bytes(model) + steps
    )


def test_a_scheduled_optimizer_is_not_stepped() -> None:
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters())
    calls: list[Any] = []
    optimizer.register_step_post_hook(lambda *args: calls.append(args))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net = solved(model, ARGS, "100%", optimizer=optimizer)
    assert calls == []
    assert not optimizer.state
    assert net.problem.reserve_bytes > 2 * parameter_bytes(model)
    assert not getattr(optimizer, "_opt_called", False)


def test_accumulation_optimizer_and_reserve_bytes_add_up() -> None:
    model = layers()
    gradients = parameter_bytes(model)
    adamw = solved(model, ARGS, "100%", optimizer=torch.optim.AdamW).problem.reserve_bytes
    plain = solved(model, ARGS, "100%")
    assert solved(model, ARGS, "100%", accumulate=True).problem.reserve_bytes == gradients
    net = solved(model, ARGS, "100%", accumulate=True, optimizer=torch.optim.AdamW, reserve_bytes=1000)
    assert net.problem.reserve_bytes == gradients + adamw + 1000
    assert net.result.peak_bytes == plain.result.peak_bytes + gradients + adamw + 1000


def test_the_reserve_counts_against_the_budget() -> None:
    peak = store_all_peak()
    assert recomputations(solved(layers(), ARGS, peak).plan) == 0
    net = solved(layers(), ARGS, peak, reserve_bytes=peak // 4)
    assert recomputations(net.plan) > 0
    assert net.result.peak_bytes <= peak


def test_an_object_that_is_no_optimizer_is_refused() -> None:
    with pytest.raises(remat.InputError, match=r"must be a torch.optim.Optimizer or a class of it, not 'adamw'"):
        solved(layers(), ARGS, "100%", optimizer="adamw")
    with pytest.raises(remat.InputError, match=r"LBFGS.*reserve_bytes"):
        solved(layers(), ARGS, "100%", optimizer=torch.optim.LBFGS)


# Files


def test_export_solve_save_load_apply(tmp_path: Path) -> None:
    exported = remat.export(layers(), ARGS, costs="roofline")
    exported.save(tmp_path / "problem.json")
    problem = remat.load(tmp_path / "problem.json")
    assert problem == exported.problem
    result = remat_solvers.solve(problem, baseline(problem).peak_bytes * 7 // 10)
    save_plan(tmp_path / "plan.json", result)
    loaded = remat.load(tmp_path / "plan.json")
    assert loaded.plan == result.plan
    expected = run_and_record(layers(), ARGS)
    for plan in (tmp_path / "plan.json", str(tmp_path / "plan.json"), loaded, result.plan):
        net = remat.apply(remat.export(layers(), ARGS, costs="roofline"), plan)
        assert recomputations(net.plan) == recomputations(result.plan) > 0
        assert net.result is None
        assert differences(run_and_record(net, ARGS), expected) == []


def test_a_plan_for_another_graph_is_refused_with_the_difference(tmp_path: Path) -> None:
    exported = remat.export(layers(), ARGS, costs="roofline")
    others = {
        "the plan computes .* different ops, the graph has": (nn.Sequential(layers(), nn.Linear(WIDTH, 2)), ARGS),
        "other sizes or other ops": (layers(), (batch(rows=9),)),
    }
    for message, (model, args) in others.items():
        problem = remat.export(model, args, costs="roofline").problem
        result = remat_solvers.solve(problem, 2**40)
        save_plan(tmp_path / "plan.json", result)
        with pytest.raises(remat.InputError, match=f"the plan was made for graph .*{message}"):
            remat.apply(exported, tmp_path / "plan.json")
    with pytest.raises(remat.InputError):
        remat.verify(layers(), tmp_path / "plan.json", ARGS)


def test_a_plan_that_breaks_a_rule_is_not_applied() -> None:
    exported = remat.export(layers(), ARGS, costs="roofline")
    with pytest.raises(remat.ApplyError, match=r"breaks .* rules on this graph, first: "):
        remat.apply(exported, Plan(store_all(exported.problem)[:-3]))


# Reports


def test_the_report_is_for_people() -> None:
    net = solved(layers(), ARGS, "70%")
    report = net.report()
    for text in ("Sequential: ", "budget ", "auto", "peak ", "time ", "store-all", "roofline:cpu", "workspace"):
        assert text in report
    assert f"{recomputations(net.plan)} recomputations" in report
    assert net.result.problem == net.problem.fingerprint
    assert simulate(net.problem, net.plan).peak_bytes == net.result.peak_bytes
    assert "planned calls: 1" in repr(net)


def test_verification_of_a_solved_plan() -> None:
    exported = remat.export(layers(), ARGS)
    peak = baseline(exported.problem).peak_bytes
    plan = remat_solvers.solve(exported.problem, peak * 3 // 4).plan
    found = remat.verify(layers(), plan, ARGS)
    assert found.ok
    assert found.to_eager.equal
    assert found.peak_as_predicted
    assert abs(found.measured_peak_bytes - found.predicted_peak_bytes) <= 0.01 * found.predicted_peak_bytes
    assert found.measured_peak_bytes < found.eager_peak_bytes
    assert str(found).count("bit-equal to store-all") == 4


def test_verification_under_no_grad_is_of_a_training_step() -> None:
    model, args, kwargs = CASE["gpt2"].make()
    exported = remat.export(model, args, kwargs, costs="roofline")
    with torch.no_grad():
        assert remat.verify(model, store_all(exported.problem), args, kwargs).gradients_equal
