"""Lists the solvers that need the graph of a model, which a problem file does not hold: they take a MODEL only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remat_solvers.errors import InputError
from remat_solvers.registry import Entry, Solver, entry

if TYPE_CHECKING:
    from remat.capture.exported import Exported

TORCH_BUDGET = Entry(
    name="torch-budget",
    path="remat.model_solvers.torch_budget:TorchBudget",
    family="recompute",
    summary="The choices of torch.compile's partitioner at its activation_memory_budgets; for a MODEL only.",
    needs_backward=True,
    slow=True,
)
MODEL_ENTRIES = (TORCH_BUDGET,)


def check_name(name: str, *, has_model: bool) -> None:
    """Raise InputError where no solver has that name, or where it needs a model and there is none."""
    if name not in (e.name for e in MODEL_ENTRIES):
        entry(name)
    elif not has_model:
        raise InputError(
            f"{name} plans on the graph of a model, which a problem file does not hold: give the MODEL, such as "
            "train.py:make_model, or another solver."
        )


def bind(name: str, exported: Exported) -> str | Solver:
    """The solver of that name, bound to `exported` where it needs the model's graph; else the name itself."""
    if name == TORCH_BUDGET.name:
        from remat.model_solvers.torch_budget import TorchBudget

        return TorchBudget(exported)
    return name
