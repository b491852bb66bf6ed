"""remat_solvers: when to compute, keep, drop and move the values of a training step. Never imports torch.

    problem = remat_solvers.load_problem("problem.json")
    result = remat_solvers.solve(problem, budget_bytes=8 * 2**30)
    remat_solvers.save_plan("plan.json", result)

Importing the package is cheap: names are looked up when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remat_solvers.bounds import peak_bound_bytes, time_bound_ns
    from remat_solvers.certificates.check import check_certificate
    from remat_solvers.errors import (
        BudgetError,
        CertificateError,
        FormatError,
        InfeasibleError,
        InputError,
        PlanError,
        ProblemError,
        RematError,
    )
    from remat_solvers.formats import (
        PlanFile,
        load,
        load_certificate,
        load_plan,
        load_problem,
        load_sweep,
        save_certificate,
        save_plan,
        save_problem,
        save_sweep,
    )
    from remat_solvers.optimal.certify import certify
    from remat_solvers.pareto import Point, Sweep
    from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
    from remat_solvers.problem import Costs, Link, Op, Problem, Value
    from remat_solvers.registry import create, solver_names
    from remat_solvers.result import Certificate, Limits, Order, Outcome, Progress, Result, Status, Stopped
    from remat_solvers.solving import solve
    from remat_solvers.sweeping import sweep

__all__ = [
    "BudgetError",
    "Certificate",
    "CertificateError",
    "Compute",
    "Costs",
    "Fetch",
    "FormatError",
    "Free",
    "InfeasibleError",
    "InputError",
    "Limits",
    "Link",
    "Offload",
    "Op",
    "Order",
    "Outcome",
    "Plan",
    "PlanError",
    "PlanFile",
    "Point",
    "Problem",
    "ProblemError",
    "Progress",
    "RematError",
    "Result",
    "Status",
    "Stopped",
    "Sweep",
    "Value",
    "certify",
    "check_certificate",
    "create",
    "load",
    "load_certificate",
    "load_plan",
    "load_problem",
    "load_sweep",
    "peak_bound_bytes",
    "save_certificate",
    "save_plan",
    "save_problem",
    "save_sweep",
    "solve",
    "solver_names",
    "sweep",
    "time_bound_ns",
]

_HOMES = {
    "bounds": ("peak_bound_bytes", "time_bound_ns"),
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
    "pareto": ("Point", "Sweep"),
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
    "optimal.certify": ("certify",),
    "certificates.check": ("check_certificate",),
    "plan": ("Compute", "Fetch", "Free", "Offload", "Plan"),
    "problem": ("Costs", "Link", "Op", "Problem", "Value"),
    "registry": ("create", "solver_names"),
    "result": ("Certificate", "Limits", "Order", "Outcome", "Progress", "Result", "Status", "Stopped"),
    "solving": ("solve",),
    "sweeping": ("sweep",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
