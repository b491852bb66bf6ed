"""Plans when to compute, keep, drop and move the values of a training step. Never imports torch.

    problem = remat_solvers.load_problem("problem.json")
    result = remat_solvers.solve(problem, "60%")  # or "8GiB", "800MB", bytes, or "min"
    remat_solvers.save_plan("plan.json", result)

Importing the package is cheap: names are looked up when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remat_solvers.bounds import peak_bound_bytes as peak_bound_bytes
    from remat_solvers.bounds import time_bound_ns as time_bound_ns
    from remat_solvers.certificates.check import check_certificate as check_certificate
    from remat_solvers.errors import BudgetError as BudgetError
    from remat_solvers.errors import CertificateError as CertificateError
    from remat_solvers.errors import FormatError as FormatError
    from remat_solvers.errors import InfeasibleError as InfeasibleError
    from remat_solvers.errors import InputError as InputError
    from remat_solvers.errors import PlanError as PlanError
    from remat_solvers.errors import ProblemError as ProblemError
    from remat_solvers.errors import RematError as RematError
    from remat_solvers.formats import PlanFile as PlanFile
    from remat_solvers.formats import load as load
    from remat_solvers.formats import load_certificate as load_certificate
    from remat_solvers.formats import load_plan as load_plan
    from remat_solvers.formats import load_problem as load_problem
    from remat_solvers.formats import load_sweep as load_sweep
    from remat_solvers.formats import save_certificate as save_certificate
    from remat_solvers.formats import save_plan as save_plan
    from remat_solvers.formats import save_problem as save_problem
    from remat_solvers.formats import save_sweep as save_sweep
    from remat_solvers.optimal.certify import certify as certify
    from remat_solvers.pareto import Point as Point
    from remat_solvers.pareto import Sweep as Sweep
    from remat_solvers.plan import Compute as Compute
    from remat_solvers.plan import Fetch as Fetch
    from remat_solvers.plan import Free as Free
    from remat_solvers.plan import Offload as Offload
    from remat_solvers.plan import Plan as Plan
    from remat_solvers.problem import Costs as Costs
    from remat_solvers.problem import Link as Link
    from remat_solvers.problem import Op as Op
    from remat_solvers.problem import Problem as Problem
    from remat_solvers.problem import Value as Value
    from remat_solvers.registry import create as create
    from remat_solvers.registry import solver_names as solver_names
    from remat_solvers.result import Certificate as Certificate
    from remat_solvers.result import Limits as Limits
    from remat_solvers.result import Order as Order
    from remat_solvers.result import Outcome as Outcome
    from remat_solvers.result import Progress as Progress
    from remat_solvers.result import Result as Result
    from remat_solvers.result import Status as Status
    from remat_solvers.result import Stopped as Stopped
    from remat_solvers.solving import solve as solve
    from remat_solvers.sweeping import sweep as sweep

_HOMES = {
    "bounds": ("peak_bound_bytes", "time_bound_ns"),
    "certificates.check": ("check_certificate",),
    "errors": (
        "BudgetError",
        "CertificateError",
        "FormatError",
        "InfeasibleError",
        "InputError",
        "PlanError",
        "ProblemError",
        "RematError",
    ),
    "formats": (
        "PlanFile",
        "load",
        "load_certificate",
        "load_plan",
        "load_problem",
        "load_sweep",
        "save_certificate",
        "save_plan",
        "save_problem",
        "save_sweep",
    ),
    "optimal.certify": ("certify",),
    "pareto": ("Point", "Sweep"),
    "plan": ("Compute", "Fetch", "Free", "Offload", "Plan"),
    "problem": ("Costs", "Link", "Op", "Problem", "Value"),
    "registry": ("create", "solver_names"),
    "result": ("Certificate", "Limits", "Order", "Outcome", "Progress", "Result", "Status", "Stopped"),
    "solving": ("solve",),
    "sweeping": ("sweep",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # type checkers read the imports above


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
