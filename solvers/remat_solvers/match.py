"""Does a plan belong to a problem? Where it does not: what differs."""

from __future__ import annotations

from remat_solvers.codec import PlanFile
from remat_solvers.errors import InputError
from remat_solvers.plan import Compute
from remat_solvers.problem import Problem
from remat_solvers.validate import validate

__all__ = ["check_match"]

DIGITS = 12


def check_match(problem: Problem, made: PlanFile) -> None:
    """Raise InputError, saying what differs, unless `made` was made for the graph of `problem`.

    Times, workspaces, the link and the reserve may differ: the plan is replayed on those of `problem`.
    """
    if made.problem == problem.fingerprint:
        return
    planned = f"the plan was made for graph {made.problem[:DIGITS]}, this is {problem.fingerprint[:DIGITS]}"
    raise InputError(f"{planned} ('{problem.name}'): {_difference(problem, made)}. Solve again for this graph.")


def _difference(problem: Problem, made: PlanFile) -> str:
    ops = {action.op for action in made.plan if isinstance(action, Compute)}
    if len(ops) != len(problem.ops):
        return f"the plan computes {len(ops)} different ops, the graph has {len(problem.ops)}"
    violations = validate(problem, made.plan)
    if violations:
        return f"as many ops, but they are connected differently: {str(violations[0]).rstrip('.')}"
    return "the same wiring as far as the plan shows, but other sizes or other ops, such as another batch or dtype"
