"""What a method cannot do without."""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.result import Outcome, Status

__all__ = ["lacking"]

Need: TypeAlias = Literal["link to the host", "backward pass"]


def lacking(problem: Problem, method: str, *needs: Need) -> Outcome | None:
    """That `method` does not apply, where the problem lacks one of its needs; None where it has them all."""
    there = {"link to the host": problem.link is not None, "backward pass": bool(problem.backward_ops)}
    for need in needs:
        if not there[need]:
            return Outcome(Status.NOT_APPLICABLE, reason=f"{method} needs a {need}; there is none")
    return None
