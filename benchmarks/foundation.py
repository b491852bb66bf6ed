"""Compares predicted and measured peaks, bits and times on every model of the table.

For each model: the number of ops, the export seconds (with costs in the cache), the time of the store-all plan over
that of eager (median of alternating runs in one process), its peak over that of eager. Then for three plans of Chen:
the peak as a share of the store-all peak, the error of the prediction, and whether the step is bit-equal to store-all.

    scripts/bench foundation [NAME ...]
    scripts/bench foundation --large     the same on models whose ops are long enough to compare times

One thread, so that the workspaces of convolutions are the same in every run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import remat
from remat.capture.exported import Exported
from remat.capture.trees import flatten
from remat.verification import TOLERANCE, TOLERANCE_BYTES, compare_steps, run_step, with_leaves
from remat_solvers.recompute.chen import STRATEGIES, Chen
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.zoo import huggingface, resnet, unet
from tests.remat.models.table import CASES, Case

LARGE = (
    Case("gpt2 12 x 768", partial(huggingface.gpt2, layers=12, width=768, heads=12, length=256, vocabulary=8192)),
    Case("bert 6 x 512", partial(huggingface.bert, layers=6, width=512, heads=8, length=256, batch=4)),
    Case("llama 4 x 512", partial(huggingface.llama, layers=4, width=512, heads=8, length=256, batch=4)),
    Case("resnet50 224", partial(resnet.resnet50, size=224, batch=8)),
    Case("unet 128", partial(unet.unet, size=128, batch=4)),
)
PAIRS = 9
WARM_UPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; default: all")
    parser.add_argument("--large", action="store_true", help="models whose median op takes over 100 us")
    options = parser.parse_args()
    names, cases = options.names, LARGE if options.large else CASES
    torch.set_num_threads(1)
    columns = ("model", "ops", "median op", "export", "time", "peak", "= eager", "plans: peak, error, bits")
    table = Table(*columns, title=f"torch {torch.__version__}, 1 thread", box=None)
    missed = 0
    for case in cases:
        if not names or case.name in names:
            row, ok = measure(case)
            missed += not ok
            table.add_row(*row)
            print(*row, sep="  ", file=sys.stderr, flush=True)
    Console(width=160).print(table)
    print(f"{missed} models differ from the predicted peak or the bits")


def measure(case: Case) -> tuple[list[str], bool]:
    """Return a row of the table, and whether peaks and bits are as predicted."""
    model, args, kwargs = case.make()
    model.train()
    with case.precision():
        remat.export(model, args, kwargs)
        begin = time.perf_counter()
        exported = remat.export(model, args, kwargs)
        seconds = time.perf_counter() - begin
    problem = exported.problem
    unmodified = store_all(problem)
    module = remat.apply(exported, unmodified)
    reference, eager = run_step(module, args, kwargs, exported), run_step(model, args, kwargs, exported)
    all_peak = simulate(problem, unmodified).peak_bytes
    errors = [_error(reference.peak_bytes + problem.constant_bytes, all_peak)]
    plans, equal = [], True
    for strategy in STRATEGIES:
        form = next(iter(Chen(strategy=strategy, candidates="crossing", keep_last=True).forms(problem)))
        plan = plan_from_sequence(problem, form.sequence(problem))
        step = run_step(remat.apply(exported, plan), args, kwargs, exported)
        peak = simulate(problem, plan).peak_bytes
        errors.append(_error(step.peak_bytes + problem.constant_bytes, peak))
        equal_bits = compare_steps(step, reference).equal
        equal &= equal_bits
        plans.append(f"{peak / all_peak:.2f} {errors[-1][0]:+.2%} {'=' if equal_bits else 'DIFFER'}")
    times = sorted(op.time_ns for op in problem.ops)
    row = [
        case.name,
        str(len(problem.ops)),
        f"{times[len(times) // 2] / 1e3:.0f} us",
        f"{seconds:.1f} s",
        f"{time_ratio(exported, model, module, args, kwargs):.3f}",
        f"{(reference.peak_bytes + problem.constant_bytes) / (eager.peak_bytes + problem.constant_bytes):.3f}",
        "yes" if compare_steps(reference, eager).equal else "no",
        ", ".join(plans),
    ]
    return row, equal and all(ok for _, ok in errors)


def _error(measured: int, predicted: int) -> tuple[float, bool]:
    return measured / predicted - 1, abs(measured - predicted) <= max(TOLERANCE_BYTES, TOLERANCE * predicted)


def time_ratio(exported: Exported, model: torch.nn.Module, module: torch.nn.Module, args: Any, kwargs: Any) -> float:
    """Return the median over alternating runs of (our store-all step / eager step)."""

    def clock(run: Callable[..., Any]) -> float:
        for parameter in model.parameters():
            parameter.grad = None
        begin = time.perf_counter()
        with exported.autocast():
            output = run(*args, **kwargs)
        tensors = [t for t in flatten(output)[0] if isinstance(t, torch.Tensor)]
        losses = exported.differentiated(tensors)
        torch.autograd.backward(losses, [torch.ones_like(t) for t in losses], retain_graph=False)
        return time.perf_counter() - begin

    args, kwargs, _ = with_leaves(args, kwargs)
    for _ in range(WARM_UPS):
        clock(model), clock(module)
    pairs = [(clock(model), clock(module)) for _ in range(PAIRS)]
    return statistics.median(ours / eager for eager, ours in pairs)


if __name__ == "__main__":
    main()
