"""Problems, plans, sweeps and certificates as JSON: versioned, deterministic byte for byte.

A file is written whole or not at all, and read with every key and type checked. docs/plan-format.md lists the keys.
"""

from remat_solvers.formats.certificate import certificate_to_dict, encode_certificate
from remat_solvers.formats.files import (
    decode,
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
from remat_solvers.formats.plan import PlanFile, encode_plan, result_to_dict
from remat_solvers.formats.problem import encode_problem
from remat_solvers.formats.sweep import encode_sweep, sweep_to_dict

__all__ = [
    "PlanFile",
    "certificate_to_dict",
    "decode",
    "encode_certificate",
    "encode_plan",
    "encode_problem",
    "encode_sweep",
    "load",
    "load_certificate",
    "load_plan",
    "load_problem",
    "load_sweep",
    "result_to_dict",
    "save_certificate",
    "save_plan",
    "save_problem",
    "save_sweep",
    "sweep_to_dict",
]
