"""The entry points that are one line in a training script: solve, export, apply, load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, get_args

from torch import nn

import remat_solvers
from remat.capture.exported import Exported, check_call, export
from remat.execute.module import OnChange, RematModule
from remat.execute.offload.link_speed import measure_link
from remat.execute.offload.tiers import HostTier, Tier
from remat.execute.optimizer_memory import reserve_of
from remat.execute.planned import Planned, check_plan, plan_call, with_link_for
from remat.model_solvers.registry import bind
from remat.options import StepKeywords, StepOptions, changed, takes_options
from remat_solvers.errors import InfeasibleError, InputError
from remat_solvers.formats import PlanFile, load, load_plan
from remat_solvers.plan import Plan
from remat_solvers.result import Limits, Result
from remat_solvers.schedule import plan_with_tangents_first
from remat_solvers.units import ANY_PEAK_BYTES, format_bytes, parse_link, read_budget

__all__ = ["apply", "export", "load", "solve"]


@takes_options(StepOptions)
def solve(
    model: nn.Module,
    budget: int | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: StepOptions = StepOptions(),  # noqa: B008  (frozen)
    **changes: Unpack[StepKeywords],
) -> RematModule:
    """Return a module that trains as `model` does, with the same gradients, within `budget` bytes of memory.

    Args:
        model: the module to train. Its parameters, buffers and submodules are shared, not copied.
        budget: bytes as an int, "8GiB", "800MB", or "60%" of the peak of the unmodified step; constants
            (parameters, buffers, inputs) and the reserve are included. "min": the smallest peak that is found.
        args, kwargs: an example of the call to plan for. The contents of its tensors do not matter.
        options: how the step is captured, planned and executed; `remat.StepOptions` documents every field.
        changes: single fields of `options`. `solver`, `limits`, `seed` and `on_progress` control the search; `costs`,
            `unroll_rnn` and `differentiate` control the capture; `link` and `tier` allow offloading; `optimizer`,
            `accumulate` and `reserve_bytes` count other memory that is always in use; `on_change` decides about
            training calls of another shape, dtype, device, training mode or autocast state.

    Raises:
        InfeasibleError: no plan was found within the budget; carries the `Result`.
        ExportError: the model cannot be captured.
        BudgetError: the budget cannot be read.
        InputError: another argument cannot be used.
    """
    options = changed(options, StepOptions, changes)
    _check_arguments(model, args, budget, options)
    if isinstance(model, RematModule):
        model = model.original
    link = options.link
    planner = _StepPlanner(
        budget,
        replace(
            options,
            link=parse_link(link) if isinstance(link, str) and link != "auto" else link,
            reserve_bytes=options.reserve_bytes + reserve_of(model, options.optimizer, accumulate=options.accumulate),
            optimizer=None,
            accumulate=False,
        ),
    )
    return RematModule(model, planner(model, args, kwargs or {}), options.on_change, planner)


def apply(
    exported: Exported,
    plan: Plan | PlanFile | str | os.PathLike[str],
    *,
    tier: Tier = HostTier(),  # noqa: B008  (frozen)
) -> RematModule:
    """Return the exported model as a module that executes `plan`.

    Args:
        exported: the result of `remat.export`.
        plan: a plan, a plan file that was loaded, or its path.
        tier: the destination of offloaded values, `HostTier()` or `DiskTier(folder)`.

    Raises:
        InputError: the plan is for another graph; the message names the difference.
        ApplyError: the plan breaks a rule.
    """
    if not isinstance(exported, Exported):
        raise InputError(f"apply takes what remat.export returns, not {type(exported).__name__}")
    if isinstance(plan, (str, os.PathLike)):
        plan = load_plan(plan)
    if not isinstance(plan, (PlanFile, tuple, list)):
        raise InputError(f"a plan is a Plan, a loaded plan file or a path, not {type(plan).__name__}")
    fingerprint = plan.problem if isinstance(plan, PlanFile) else exported.problem.fingerprint
    actions = plan.plan if isinstance(plan, PlanFile) else Plan(plan)
    exported = with_link_for(exported, actions)
    check_plan(exported.problem, actions, fingerprint)
    planned = plan_call(exported, plan_with_tangents_first(exported.problem, actions), None, tier)
    return RematModule(exported.model, planned)


@dataclass(frozen=True)
class _StepPlanner:
    """Plans one call of a model within a budget. The module keeps it, to plan calls of other kinds in the same way."""

    budget: int | str
    options: StepOptions  # reserve_bytes includes the state of the optimizer; a link is a Link, "auto" or None

    def __call__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Planned:
        options = self.options
        exported = export(
            model,
            args,
            kwargs,
            costs=options.costs,
            unroll_rnn=options.unroll_rnn,
            differentiate=options.differentiate,
        )
        link = measure_link(exported.device, options.tier) if isinstance(options.link, str) else options.link
        problem = replace(exported.problem, link=link, reserve_bytes=options.reserve_bytes)
        exported = replace(exported, problem=problem)
        result = remat_solvers.solve(
            problem,
            self.budget,
            solver=bind(options.solver, exported) if isinstance(options.solver, str) else options.solver,
            limits=options.limits,
            on_progress=options.on_progress,
            seed=options.seed,
        )
        if result.plan is None:
            raise InfeasibleError(_why_no_plan(result), result)
        plan = plan_with_tangents_first(problem, result.plan)
        return plan_call(exported, plan, replace(result, plan=plan), options.tier)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the callback, which belongs to the process that passed it."""
        return {**self.__dict__, "options": replace(self.options, on_progress=None)}


def _check_arguments(model: object, args: object, budget: int | str, options: StepOptions) -> None:
    """Raise InputError, before minutes of work, for arguments that would only fail at the end of them."""
    check_call(model, args)
    reserve_bytes, limits, on_change = options.reserve_bytes, options.limits, options.on_change
    if isinstance(reserve_bytes, bool) or not isinstance(reserve_bytes, int) or reserve_bytes < 0:
        raise InputError(f"reserve_bytes is a number of bytes from 0, not {reserve_bytes!r}")
    if not isinstance(limits, Limits):
        raise InputError(f"limits is a remat.Limits, such as Limits(seconds=60), not {limits!r}")
    if on_change not in get_args(OnChange):
        raise InputError(f"on_change must be one of {', '.join(get_args(OnChange))}, not {on_change!r}")
    read_budget(budget, ANY_PEAK_BYTES)


def _why_no_plan(result: Result) -> str:
    smallest = ""
    if result.smallest_peak_bytes is not None and "smallest peak found" not in result.reason:
        smallest = f" The smallest peak this method reaches is {format_bytes(result.smallest_peak_bytes)}."
    return (
        f"no plan within {format_bytes(result.budget_bytes)}: {result.status.sentence} {result.reason}.{smallest} "
        f"The proven floor of any plan is {format_bytes(result.peak_bound_bytes)}; "
        "raise the budget, or shrink the batch."
    )
