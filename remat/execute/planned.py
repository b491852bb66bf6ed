"""A planned call: what a module has to know to recognise a kind of call and to run its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from remat.capture.call import Signature
from remat.capture.exported import Differentiate, Exported, export
from remat.capture.model_settings import ModelSettings
from remat.execute.offload.tiers import Tier
from remat.execute.program import Program
from remat_solvers.errors import ApplyError
from remat_solvers.formats.plan_match import check_match
from remat_solvers.plan import Plan
from remat_solvers.problem import MAX_INT, Link, Problem
from remat_solvers.result import Result
from remat_solvers.validate import validate


@dataclass(frozen=True)
class Planned:
    """One planned kind of call. It is stored without its program, which `recaptured` builds again."""

    signature: Signature  # the calls that the plan is for
    settings: ModelSettings  # the attributes of the model that the plan is for
    problem: Problem
    plan: Plan
    result: Result | None  # None: the plan came from the caller
    program: Program | None  # None: not captured since unpickling
    tier: Tier  # the destination of offloaded values
    unroll_rnn: bool  # as it was exported
    differentiate: Differentiate  # as it was exported

    def recaptured(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Planned:
        """The same plan with a program, from a new capture of the call.

        Raises InputError where the graph of the model has changed, and what `export` raises.
        """
        costs = "roofline:cpu"  # a plan that is settled needs no times: an estimate that any device has
        exported = with_link_for(
            export(model, args, kwargs, costs=costs, unroll_rnn=self.unroll_rnn, differentiate=self.differentiate),
            self.plan,
        )
        check_plan(exported.problem, self.plan, self.problem.fingerprint)
        return replace(plan_call(exported, self.plan, self.result, self.tier), problem=self.problem)


Planner: TypeAlias = Callable[[nn.Module, Sequence[Any], Mapping[str, Any]], Planned]
"""Plans another kind of call of a model: `planner(model, args, kwargs)`."""


def plan_call(exported: Exported, plan: Plan, result: Result | None, tier: Tier) -> Planned:
    """A planned call that is ready to run `plan` of the exported step."""
    return Planned(
        signature=exported.signature,
        settings=exported.settings,
        problem=exported.problem,
        plan=plan,
        result=result,
        program=Program(exported, plan, tier=tier),
        tier=tier,
        unroll_rnn=exported.unroll_rnn,
        differentiate=exported.differentiate,
    )


def with_link_for(exported: Exported, plan: Plan) -> Exported:
    """`exported` with a link where `plan` needs one and the problem states none.

    The rules on copies are the same for every link, and a run uses the link of the machine; so any rate does.
    """
    problem = exported.problem
    if problem.link is not None or not plan.moves:
        return exported
    return replace(exported, problem=replace(problem, link=Link(MAX_INT, MAX_INT)))


def check_plan(problem: Problem, plan: Plan, fingerprint: str) -> None:
    """Raise InputError where the plan is for a problem of another fingerprint, ApplyError where it breaks a rule."""
    check_match(problem, plan, fingerprint)
    violations = validate(problem, plan)
    if violations:
        raise ApplyError(f"the plan breaks {len(violations)} rules on this graph, first: {violations[0]}")
