"""Checks whether a problem has the parts that a method requires, such as a backward pass or a link to the host."""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.result import Outcome, Status

Requirement: TypeAlias = Literal["link to the host", "backward pass"]


def missing_requirement(problem: Problem, method: str, *requirements: Requirement) -> Outcome | None:
    """The outcome of `method` for a problem that lacks one of its requirements; None if the problem has them all."""
    has = {"link to the host": problem.link is not None, "backward pass": bool(problem.backward_ops)}
    for requirement in requirements:
        if not has[requirement]:
            return Outcome(Status.NOT_APPLICABLE, reason=f"{method} needs a {requirement}; there is none")
    return None
