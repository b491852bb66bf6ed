"""The one-line entry points: solve, export, apply, load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import remat_solvers
from remat.capture.costs.roofline import Hardware
from remat.capture.exported import Differentiate, Exported, check_call, export
from remat.execute.canonical import tangents_first
from remat.execute.module import OnChange, Planned, RematModule, plan_call
from remat.execute.offload.link_speed import measure_link
from remat.execute.offload.tiers import HostTier, Tier
from remat.execute.optimizer_memory import reserve_of
from remat.model_solvers.registry import bind
from remat_solvers.errors import ApplyError, InfeasibleError, InputError
from remat_solvers.formats import PlanFile, load, load_plan
from remat_solvers.formats.plan_match import check_match
from remat_solvers.plan import Offload, Plan
from remat_solvers.problem import MAX_INT, Link, Problem
from remat_solvers.registry import Solver
from remat_solvers.result import Limits, OnProgress, Result
from remat_solvers.schedule import baseline
from remat_solvers.units import format_bytes, parse_link, read_budget
from remat_solvers.validate import validate

__all__ = ["apply", "export", "load", "solve"]

ON_CHANGE = ("error", "replan", "original")


@dataclass(frozen=True)
class _Request:
    """How a call is planned; kept by the module to plan other calls the same way. Calling it plans one call."""

    budget: int | str | None  # None: only plans given from outside are applied
    solver: str | Solver
    costs: str | Hardware
    link: Link | str | None  # "auto": measured
    reserve_bytes: int
    limits: Limits
    on_progress: OnProgress | None
    seed: int
    unroll_rnn: bool
    differentiate: Differentiate
    tier: Tier

    def __call__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], planned: Planned | None
    ) -> Planned:
        if planned is not None:
            exported = _with_link(self._export(model, args, kwargs), planned.plan)
            _check_fits(exported.problem, planned.plan, planned.problem.fingerprint)
            return replace(plan_call(exported, planned.plan, planned.result, self.tier), problem=planned.problem)
        if self.budget is None:
            raise InputError("on_change='replan' needs a budget: use remat.solve instead of remat.apply")
        exported = self._export(model, args, kwargs)
        link = measure_link(exported.device, self.tier) if isinstance(self.link, str) else self.link
        problem = replace(exported.problem, link=link, reserve_bytes=self.reserve_bytes)
        exported = replace(exported, problem=problem)
        peak = baseline(problem).peak_bytes
        result = remat_solvers.solve(
            problem,
            read_budget(self.budget, peak),
            solver=bind(self.solver, exported) if isinstance(self.solver, str) else self.solver,
            limits=self.limits,
            on_progress=self.on_progress,
            seed=self.seed,
        )
        if result.plan is None:
            raise InfeasibleError(_no_plan(result), result)
        plan = tangents_first(problem, result.plan)
        return plan_call(exported, plan, replace(result, plan=plan), self.tier)

    def _export(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Exported:
        return export(
            model,
            args,
            kwargs,
            costs=self.costs,
            unroll_rnn=self.unroll_rnn,
            differentiate=self.differentiate,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "on_progress": None}  # a callback belongs to the process that gave it


def solve(
    model: nn.Module,
    budget: int | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    solver: str | Solver = "auto",
    costs: str | Hardware = "measure",
    link: Link | str | None = None,
    optimizer: Any = None,
    accumulate: bool = False,
    reserve_bytes: int = 0,
    limits: Limits = Limits(seconds=60),  # noqa: B008  (frozen)
    on_progress: OnProgress | None = None,
    on_change: OnChange = "error",
    seed: int = 0,
    unroll_rnn: bool = False,
    differentiate: Differentiate = "loss",
    tier: Tier = HostTier(),  # noqa: B008  (frozen)
) -> RematModule:
    """A module that trains as `model` does, with the same gradients, within `budget` bytes of memory.

    Args:
        budget: bytes as an int, "8GiB", "800MB", or "60%" of the peak of the unmodified step; constants
            (parameters, buffers, inputs) and the reserve included. "min": the smallest peak that is found.
        args, kwargs: an example of the call to plan for; its tensors' contents do not matter.
        solver: a name from the registry (`remat solvers`), or a solver object with its options.
        costs: "measure", "roofline", "roofline:NAME" or a `Hardware`; see `export`.
        link: the way to the tier for offloading: a `Link`, a rate such as "25GB/s", "auto" (measured once per machine);
            None: recompute only.
        optimizer: a class or an instance whose state is counted in the reserve; `accumulate=True` counts resident
            gradients too.
        reserve_bytes: bytes to count as always in use, beside those of `optimizer`.
        on_change: what a training call of another shape, dtype, device, training mode or autocast state gets:
            "error", "replan" (planned once per kind of call) or "original" (runs unplanned).
        unroll_rnn, differentiate: see `export`.
        tier: where offloaded values go: `HostTier()` or `DiskTier(folder)`.

    Raises:
        InfeasibleError: no plan within the budget; carries the `Result`.
        ExportError: the model cannot be captured.
        BudgetError: the budget does not parse.
    """
    _check_arguments(model, args, reserve_bytes, limits)
    if on_change not in ON_CHANGE:
        raise InputError(f"on_change must be one of {', '.join(ON_CHANGE)}, not {on_change!r}")
    read_budget(budget, 10**15)  # before minutes of work
    if isinstance(link, str) and link != "auto":
        link = parse_link(link)
    if isinstance(model, RematModule):
        model = model.original
    request = _Request(
        budget=budget,
        solver=solver,
        costs=costs,
        link=link,
        reserve_bytes=reserve_bytes + reserve_of(model, optimizer, accumulate=accumulate),
        limits=limits,
        on_progress=on_progress,
        seed=seed,
        unroll_rnn=unroll_rnn,
        differentiate=differentiate,
        tier=tier,
    )
    planned = request(model, args, kwargs or {}, None)
    return RematModule(model, (planned,), on_change, request)


def apply(
    exported: Exported,
    plan: Plan | PlanFile | str | os.PathLike[str],
    *,
    tier: Tier = HostTier(),  # noqa: B008  (frozen)
) -> RematModule:
    """The exported model as a module that executes `plan`: a plan, a loaded plan file, or its path.

    tier: where values that the plan offloads go, `HostTier()` or `DiskTier(folder)`.

    Raises InputError where the plan is for another graph (says what differs), ApplyError where it breaks a rule.
    """
    if not isinstance(exported, Exported):
        raise InputError(f"apply takes what remat.export returns, not {type(exported).__name__}")
    if isinstance(plan, (str, os.PathLike)):
        plan = load_plan(plan)
    if not isinstance(plan, (PlanFile, tuple, list)):
        raise InputError(f"a plan is a Plan, a loaded plan file or a path, not {type(plan).__name__}")
    fingerprint = plan.problem if isinstance(plan, PlanFile) else exported.problem.fingerprint
    actions = plan.plan if isinstance(plan, PlanFile) else Plan(plan)
    exported = _with_link(exported, actions)
    _check_fits(exported.problem, actions, fingerprint)
    request = _Request(
        budget=None,
        solver="auto",
        costs="roofline",
        link=None,
        reserve_bytes=exported.problem.reserve_bytes,
        limits=Limits(),
        on_progress=None,
        seed=0,
        unroll_rnn=exported.unroll_rnn,
        differentiate=exported.differentiate,
        tier=tier,
    )
    planned = plan_call(exported, tangents_first(exported.problem, actions), None, tier)
    return RematModule(exported.model, (planned,), "error", request)


def _with_link(exported: Exported, plan: Plan) -> Exported:
    """`exported`, with some link where `plan` moves values: the machine's own is used, and the rules are the same."""
    problem = exported.problem
    if problem.link is not None or not any(isinstance(action, Offload) for action in plan):
        return exported
    return replace(exported, problem=replace(problem, link=Link(MAX_INT, MAX_INT)))


def _check_fits(problem: Problem, plan: Plan, fingerprint: str) -> None:
    """InputError where `plan` was made for another graph, ApplyError where it is not valid on this one."""
    check_match(problem, plan, fingerprint)
    violations = validate(problem, plan)
    if violations:
        raise ApplyError(f"the plan breaks {len(violations)} rules on this graph, first: {violations[0]}")


def _check_arguments(model: object, args: object, reserve_bytes: object, limits: object) -> None:
    """Raise InputError for what would only fail deep inside."""
    check_call(model, args)
    if isinstance(reserve_bytes, bool) or not isinstance(reserve_bytes, int) or reserve_bytes < 0:
        raise InputError(f"reserve_bytes is a number of bytes from 0, not {reserve_bytes!r}")
    if not isinstance(limits, Limits):
        raise InputError(f"limits is a remat.Limits, such as Limits(seconds=60), not {limits!r}")


def _no_plan(result: Result) -> str:
    smallest = ""
    if result.smallest_peak_bytes is not None:
        smallest = f" The smallest peak this method reaches is {format_bytes(result.smallest_peak_bytes)}."
    return (
        f"no plan within {format_bytes(result.budget_bytes)}: {result.status.sentence} {result.reason}.{smallest} "
        f"The proven floor of any plan is {format_bytes(result.peak_bound_bytes)}; "
        "raise the budget, or shrink the batch."
    )
