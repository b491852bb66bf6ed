"""Plans as they really run: autograd hands over all tangents when the backward call begins."""

from __future__ import annotations

from remat.execute.emit import boundary_of
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Problem

__all__ = ["tangents_first"]


def tangents_first(problem: Problem, plan: Plan) -> Plan:
    """`plan` with the tangents as the first action of the backward call, where they exist in reality."""
    tangents = next((i for i, op in enumerate(problem.ops) if op.target == "tangents" and not op.inputs), None)
    if tangents is None:
        return plan
    action = Compute(tangents)
    end = boundary_of(plan, [op.phase == "forward" for op in problem.ops])
    rest = [a for a in plan[end:] if a != action]
    return Plan((*plan[:end], action, *rest))
