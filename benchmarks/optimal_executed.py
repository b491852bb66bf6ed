"""Executes plans of `auto`: the measured peak beside the budget, and the measured time beside the prediction.

The models are those of the zoo at sizes whose steps take long enough to be compared. Costs are measured on the present
machine, on one thread. Times are ratios of the planned step over the store-all step: the median of alternating steps,
beside the predicted ratio. If the machine is busy while costs are measured, the plans are solved with wrong costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from foundation import time_ratio
from rich.table import Table

import remat
from remat.verification import run_step
from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline, plan_with_tangents_first, store_all
from remat_solvers.solving import solve
from remat_solvers.units import format_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.zoo import encoder, huggingface, recurrent, resnet, unet
from tests.remat.models.table import Case

__all__ = ["SECONDS", "table"]

MODELS = (
    Case("gpt2", partial(huggingface.gpt2, layers=6, width=384, heads=6, length=128, batch=4, vocabulary=4096)),
    Case("encoder", partial(encoder.encoder, length=128, width=256, layers=4, batch=8)),
    Case("resnet18", partial(resnet.resnet18, size=96, width=16, batch=32, classes=10)),
    Case("unet", partial(unet.unet, size=96, batch=4)),
    Case("gru-cell", partial(recurrent.gru_cell, steps=40, width=256, batch=128, vocabulary=100)),
)
SHARES = (0.75, 0.5, 0.25)  # of the way from the proven floor to the store-all peak
SECONDS = 10.0
TOLERANCE = 0.1  # of the predicted ratio of times


def table(names: Sequence[str] | None, seconds: float) -> Table:
    """Return a table with a row per model and budget."""
    torch.set_num_threads(1)
    rows = Table("model", "ops", "budget", title="executed on a CPU, one thread", title_justify="left", box=None)
    for name in ("measured peak", "of budget", "predicted time", "measured time", "error", "gap", "met"):
        rows.add_column(name, justify="right", no_wrap=True)
    for case in MODELS:
        if names is None or case.name in names:
            for row in _rows(case, seconds):
                print(*row, sep="  ", file=sys.stderr, flush=True)
                rows.add_row(*row)
    return rows


def _rows(case: Case, seconds: float) -> list[tuple[str, ...]]:
    model, args, kwargs = case.make()
    exported = remat.export(model.train(), args, kwargs)
    problem = exported.problem
    unmodified = remat.apply(exported, store_all(problem))
    store_all_peak = baseline(problem).peak_bytes
    rows: list[tuple[str, ...]] = []
    floor = peak_bound_bytes(problem)
    for share in SHARES:
        budget = floor + int(share * (store_all_peak - floor))
        head = (case.name, str(len(problem.ops)), f"{format_bytes(budget)}, {budget / store_all_peak:.0%}")
        result = solve(problem, budget, limits=Limits(seconds))
        if result.plan is None or result.time_ns is None:
            rows.append((*head, "", "", "", "", "", "", f"no plan: {result.status}"))
            continue
        planned = remat.apply(exported, plan_with_tangents_first(problem, result.plan))
        peak = run_step(planned, args, kwargs, exported).peak_bytes + problem.constant_bytes
        predicted = result.time_ns / result.store_all_time_ns
        measured = time_ratio(exported, unmodified, planned, args, kwargs)
        error = measured / predicted - 1
        missed = [*(["peak"] if peak > budget else []), *(["time"] if abs(error) > TOLERANCE else [])]
        rows.append(
            (
                *head,
                format_bytes(peak),
                f"{peak / budget:.1%}",
                f"{predicted:.3f}",
                f"{measured:.3f}",
                f"{error:+.1%}",
                "" if result.gap is None else f"{result.gap:.2%}",
                f"no: {', '.join(missed)}" if missed else "yes",
            )
        )
    return rows
