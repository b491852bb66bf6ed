"""One export of each model of the table per process: several test files share it, and none changes it."""

from __future__ import annotations

import dataclasses
import functools

import remat
from remat.capture.costs.assign import add_costs
from remat.capture.exported import Exported
from tests.remat.models.table import Case


@functools.cache
def exported(case: Case) -> Exported:
    """Return the model's captured training step with roofline costs."""
    model, args, kwargs = case.make()
    with case.precision():
        return remat.export(model.train(), args, kwargs, costs="roofline")


def measured(case: Case) -> Exported:
    """Return the same captured step with measured costs, which are `remat.export`'s default."""
    captured = exported(case)
    return dataclasses.replace(captured, problem=add_costs(captured.joint, captured.lowered, "measure"))
