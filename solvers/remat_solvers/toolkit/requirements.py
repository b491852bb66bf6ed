"""Says which parts of a problem a method cannot do without, and that it does not apply where one is missing."""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.result import Outcome, Status

Requirement: TypeAlias = Literal["link to the host", "backward pass"]


def missing_requirement(problem: Problem, method: str, *requirements: Requirement) -> Outcome | None:
    """The outcome of `method` where the problem lacks one of its requirements; None where it has them all."""
    has = {"link to the host": problem.link is not None, "backward pass": bool(problem.backward_ops)}
    for requirement in requirements:
        if not has[requirement]:
            return Outcome(Status.NOT_APPLICABLE, reason=f"{method} needs a {requirement}; there is none")
    return None
