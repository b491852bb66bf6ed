"""Trains a GPT-2 within a third of its memory by offloading to host memory or disk: bits, peak, time, overlap.

    scripts/bench offload                  both tiers, 5 alternating steps each after two warm-up steps
    scripts/bench offload --share 0.25     another budget, as a share of the store-all peak
    scripts/bench offload --solver NAME    another method than swap-only
    scripts/bench offload --tier disk      one of them

Costs and links are measured again at each run. Overlap is the share of copy time for which compute does not wait.
Planned: 1 - waits / copies in the replay. Measured: 1 - (time that the computing thread waits for copies) / (time that
the worker threads copy). Torch runs on one thread, so that the copies have a core.

Costs are those of warm memory, and so the C library is configured to keep freed memory (docs/execution.md); otherwise
every step, above all the store-all step, spends about as much time again on page faults. The ratio of the times of the
planned step and the store-all step, both in the same loop, is compared with that of their replays. Where bits differ,
the peak is above the budget, or the ratio is off by more than 15 %, the exit status is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import remat
from remat.execute.offload import threads
from remat.execute.offload.link_speed import measure_link
from remat.execute.offload.tiers import Bytes, DiskTier, HostTier, Slab, Tier
from remat.verification import compare_steps, run_step
from remat_solvers.plan import Fetch, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.solving import solve

NEVER_TRIM, NEVER_MAP = (-1, -1), (-4, 0)  # options of mallopt: M_TRIM_THRESHOLD, M_MMAP_MAX
WARM_UP = 2  # steps
MAX_ERROR = 0.15
LAYERS, WIDTH, HEADS, BATCH, LENGTH, VOCABULARY = 6, 256, 4, 32, 256, 1000


@dataclass
class TimedTier(Tier):
    """A tier that records how long its copies take."""

    tier: Tier
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.tier.name

    def slab(self, size_bytes: int) -> Slab:
        return TimedSlab(self.tier.slab(size_bytes), self.seconds)


@dataclass
class TimedSlab(Slab):
    slab: Slab
    seconds: list[float]

    def write(self, offset: int, source: Bytes) -> None:
        begin = time.perf_counter()
        self.slab.write(offset, source)
        self.seconds.append(time.perf_counter() - begin)

    def read(self, offset: int, target: Bytes) -> None:
        begin = time.perf_counter()
        self.slab.read(offset, target)
        self.seconds.append(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--solver", default="swap-only")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--tier", choices=["host", "disk"], action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remat-bench-") as folder:
        os.environ["REMAT_CACHE_DIR"] = folder
        sys.exit(not compare_tiers(options))


def compare_tiers(options: argparse.Namespace) -> bool:
    """Print the table, and return whether all rows are as planned."""
    libc = ctypes.CDLL(None)
    for option, value in (NEVER_TRIM, NEVER_MAP):
        libc.mallopt(option, value)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = gpt2()
    exported = remat.export(model, (), batch)
    results = sum(exported.problem.values[v].bytes for v in exported.problem.results)
    unmodified = baseline(exported.problem)
    fixed = (exported.problem.constant_bytes + results) / unmodified.peak_bytes
    print(f"store-all peak {unmodified.peak_bytes / 2**20:.1f} MiB; constants and results are {fixed:.1%} of it")
    columns = (
        "tier",
        "bits",
        "peak",
        "budget",
        "moved",
        "store-all",
        "step",
        "predicted",
        "ratio",
        "predicted",
        "off by",
        "overlap",
        "planned",
    )
    table = Table(*columns, box=None)
    tiers = [tier for tier in (HostTier(), DiskTier(options.scratch)) if tier.name in (options.tier or [tier.name])]
    rows = [row(exported, model, batch, tier, options) for tier in tiers]
    for row_cells, _ in rows:
        table.add_row(*row_cells)
    Console(width=160).print(table)
    return all(as_planned for _, as_planned in rows)


def gpt2() -> tuple[Any, dict[str, torch.Tensor]]:
    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=HEADS,
        n_positions=LENGTH,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        loss_type="ForCausalLM",
    )
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    return GPT2LMHeadModel(config).train(), {"input_ids": tokens, "labels": tokens}


def row(exported: Any, model: Any, batch: Any, tier: Tier, options: argparse.Namespace) -> tuple[list[str], bool]:
    """Return the cells of the row, and whether bits, peak and time are as planned."""
    link = measure_link(torch.device("cpu"), tier)
    problem = replace(exported.problem, link=link)
    exported = replace(exported, problem=problem)
    unmodified = baseline(problem)
    budget_bytes = int(options.share * unmodified.peak_bytes)
    result = solve(problem, budget_bytes, solver=options.solver, limits=Limits(60))
    if result.plan is None:
        return [tier.name, f"{result.status}: {result.reason}"], False
    line = simulate(problem, result.plan)
    timed = TimedTier(tier)
    unmodified_net, planned = remat.apply(exported, store_all(problem)), remat.apply(exported, result.plan, tier=timed)
    reference, step = run_step(unmodified_net, (), batch, exported), run_step(planned, (), batch, exported)
    equal = compare_steps(step, reference).equal
    peak = step.peak_bytes + problem.constant_bytes
    times: dict[Any, list[float]] = {unmodified_net: [], planned: []}
    overlaps = []
    with waits() as waited:
        for _ in range(WARM_UP + options.steps):
            for net, seconds in times.items():
                timed.seconds.clear()
                waited.clear()
                begin = time.perf_counter()
                net(**batch).loss.backward()
                seconds.append(time.perf_counter() - begin)
                model.zero_grad()
            overlaps.append(1 - sum(waited) / sum(timed.seconds))
    base_s, plan_s = (statistics.median(seconds[WARM_UP:]) for seconds in times.values())
    cells = [f"{peak / 2**20:.1f}", f"{budget_bytes / 2**20:.1f} MiB", f"{line.host_bytes / 2**20:.0f} MiB"]
    ratio, planned_ratio = plan_s / base_s, line.time_ns / unmodified.time_ns
    error = ratio / planned_ratio - 1
    cells += [f"{base_s:.2f} s", f"{plan_s:.2f} s", f"{line.time_ns / 1e9:.2f} s"]
    cells += [f"{ratio:.2f}", f"{planned_ratio:.2f}", f"{error:+.1%}"]
    predicted = 1 - line.wait_ns / copying_ns(problem, result.plan)
    cells += [f"{statistics.median(overlaps[WARM_UP:]):.1%}", f"{predicted:.1%}"]
    as_planned = equal and peak <= budget_bytes and abs(error) <= MAX_ERROR
    return [tier.name, "equal" if equal else "DIFFER", *cells], as_planned


@contextmanager
def waits() -> Iterator[list[float]]:
    """Record the seconds for which the computing thread waits for copies."""
    waited: list[float] = []
    wait = threads.ThreadSession._wait

    def timed(session: Any, value: int, copy: Any) -> None:
        begin = time.perf_counter()
        wait(session, value, copy)
        waited.append(time.perf_counter() - begin)

    with mock.patch.object(threads.ThreadSession, "_wait", timed):
        yield waited


def copying_ns(problem: Problem, plan: Plan) -> int:
    """Return the time of all copies, in ns."""
    link = problem.link
    assert link is not None
    rates = {Offload: link.to_host_bytes_per_s, Fetch: link.to_device_bytes_per_s}
    moves = [(problem.values[a.value].bytes, rates[type(a)]) for a in plan if isinstance(a, (Offload, Fetch))]
    return sum(copy_ns(size, rate, link.latency_ns) for size, rate in moves)


if __name__ == "__main__":
    main()
