"""The methods that need a model's graph, which a problem file does not hold: they answer for a MODEL only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remat_solvers.errors import InputError
from remat_solvers.registry import Entry, Solver, entry

if TYPE_CHECKING:
    from remat.capture.exported import Exported

__all__ = ["MODEL_ENTRIES", "bind", "check_name"]

TORCH_BUDGET = Entry(
    name="torch-budget",
    path="remat.model_solvers.torch_budget:TorchBudget",
    family="recompute",
    summary="What torch.compile's partitioner chooses at its activation_memory_budgets; for a MODEL only.",
    needs_backward=True,
    slow=True,
)
MODEL_ENTRIES = (TORCH_BUDGET,)


def check_name(name: str, *, has_model: bool) -> None:
    """Raise InputError where there is no method of that name, or none without a model."""
    if name not in (e.name for e in MODEL_ENTRIES):
        entry(name)
    elif not has_model:
        raise InputError(
            f"{name} plans on the graph of a model, which a problem file does not hold: give the MODEL, such as "
            "train.py:make_model, or another solver."
        )


def bind(name: str, exported: Exported) -> str | Solver:
    """The method of that name on `exported` where it needs the model's graph; else `name`, which any problem has."""
    if name == TORCH_BUDGET.name:
        from remat.model_solvers.torch_budget import TorchBudget

        return TorchBudget(exported)
    return name
