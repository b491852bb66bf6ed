"""Checks whether a plan belongs to a problem, and describes the difference if it does not."""

from __future__ import annotations

from remat_solvers.errors import InputError
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Problem
from remat_solvers.validate import validate

DIGITS = 12


def check_match(problem: Problem, plan: Plan, fingerprint: str) -> None:
    """Raise InputError, which describes the difference, unless `plan` was made for the graph of `problem`.

    `fingerprint` is that of the problem the plan was made for. Times, workspaces, the link and the reserve may differ:
    a plan is replayed with those of `problem`.
    """
    if fingerprint == problem.fingerprint:
        return
    made = f"the plan was made for graph {fingerprint[:DIGITS]}, this is {problem.fingerprint[:DIGITS]}"
    differs = _difference(problem, plan)
    raise InputError(f"{made} ('{problem.name}'): {differs}. Solve again for this model, these inputs and this torch.")


def _difference(problem: Problem, plan: Plan) -> str:
    ops = {action.op for action in plan if isinstance(action, Compute)}
    if len(ops) != len(problem.ops):
        return f"the plan computes {len(ops)} different ops, the graph has {len(problem.ops)}"
    violations = validate(problem, plan)
    if violations:
        return f"as many ops, but they are connected differently: {str(violations[0]).rstrip('.')}"
    return "the same wiring as far as the plan shows, but other sizes or other ops, such as another batch or dtype"
