"""remat: train a PyTorch model within a memory budget.

    net = remat.solve(model, "8GiB", args=(x, y))
    net(x, y).backward()

The module has the same call, the same state_dict and the same gradients. Values that do not fit are recomputed or
offloaded, at the least cost that a solver finds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remat.api import apply as apply
    from remat.api import load as load
    from remat.api import solve as solve
    from remat.batching.sub_batch_size import solve_in_parts as solve_in_parts
    from remat.batching.sub_batches import SubBatches as SubBatches
    from remat.capture.exported import export as export
    from remat.execute.offload.tiers import DiskTier as DiskTier
    from remat.execute.offload.tiers import HostTier as HostTier
    from remat.options import Parts as Parts
    from remat.options import StepOptions as StepOptions
    from remat.verification import verify as verify
    from remat_solvers.errors import ApplyError as ApplyError
    from remat_solvers.errors import BudgetError as BudgetError
    from remat_solvers.errors import ChangedError as ChangedError
    from remat_solvers.errors import ExportError as ExportError
    from remat_solvers.errors import FormatError as FormatError
    from remat_solvers.errors import InfeasibleError as InfeasibleError
    from remat_solvers.errors import InputError as InputError
    from remat_solvers.errors import OffloadError as OffloadError
    from remat_solvers.errors import PlanError as PlanError
    from remat_solvers.errors import ProblemError as ProblemError
    from remat_solvers.errors import RematError as RematError
    from remat_solvers.problem import Link as Link
    from remat_solvers.result import Limits as Limits
    from remat_solvers.result import Result as Result
    from remat_solvers.result import Status as Status

_HOMES = {
    "remat.api": ("apply", "load", "solve"),
    "remat.batching.sub_batch_size": ("solve_in_parts",),
    "remat.batching.sub_batches": ("SubBatches",),
    "remat.capture.exported": ("export",),
    "remat.execute.offload.tiers": ("DiskTier", "HostTier"),
    "remat.options": ("Parts", "StepOptions"),
    "remat.verification": ("verify",),
    "remat_solvers.errors": (
        "ApplyError",
        "BudgetError",
        "ChangedError",
        "ExportError",
        "FormatError",
        "InfeasibleError",
        "InputError",
        "OffloadError",
        "PlanError",
        "ProblemError",
        "RematError",
    ),
    "remat_solvers.problem": ("Link",),
    "remat_solvers.result": ("Limits", "Result", "Status"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # type checkers read the imports above


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
