"""remat: train a PyTorch model within a memory budget.

    net = remat.solve(model, "8GiB", args=(x, y))
    net(x, y).backward()

Same call, same state_dict, same gradients; what does not fit is recomputed or moved, as little as a solver finds
possible.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remat.api import apply, load, solve
    from remat.batching.sub_batch_size import solve_in_parts
    from remat.batching.sub_batches import SubBatches
    from remat.capture.exported import export
    from remat.execute.offload.tiers import DiskTier, HostTier
    from remat.verification import verify
    from remat_solvers.errors import (
        ApplyError,
        BudgetError,
        ChangedError,
        ExportError,
        FormatError,
        InfeasibleError,
        InputError,
        OffloadError,
        PlanError,
        ProblemError,
        RematError,
    )
    from remat_solvers.problem import Link
    from remat_solvers.result import Limits, Result, Status

__all__ = [
    "ApplyError",
    "BudgetError",
    "ChangedError",
    "DiskTier",
    "ExportError",
    "FormatError",
    "HostTier",
    "InfeasibleError",
    "InputError",
    "Limits",
    "Link",
    "OffloadError",
    "PlanError",
    "ProblemError",
    "RematError",
    "Result",
    "Status",
    "SubBatches",
    "apply",
    "export",
    "load",
    "solve",
    "solve_in_parts",
    "verify",
]

_HOMES = {
    "remat.api": ("apply", "export", "load", "solve"),
    "remat.execute.offload.tiers": ("DiskTier", "HostTier"),
    "remat.batching.sub_batch_size": ("solve_in_parts",),
    "remat.batching.sub_batches": ("SubBatches",),
    "remat.verification": ("verify",),
    "remat_solvers.problem": ("Link",),
    "remat_solvers.result": ("Limits", "Result", "Status"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'remat' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF.get(name, "remat_solvers.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
