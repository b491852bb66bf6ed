"""A real GPT-2 trains from host memory or from disk within a third of its memory: bits, peak, time, overlap.

    scripts/bench offload                  both tiers, 3 alternating steps each after one to warm up
    scripts/bench offload --share 0.25     another budget, as a share of the store-all peak
    scripts/bench offload --solver NAME    another method than swap-only

Overlap is the part of the copies' time that compute does not wait for. Predicted: 1 - waits / copies in the replay.
Measured: 1 - (step by the plan - step by the store-all plan) / time the worker threads spent copying. Torch runs on one
thread, so that the copies have a core; all times are medians within this run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import remat
from remat.execute.offload.measure import measure_link
from remat.execute.offload.tiers import Bytes, DiskTier, HostTier, Slab, Tier
from remat.verification import compare_steps, run_step
from remat_solvers.plan import Compute, Fetch, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Limits
from remat_solvers.schedule import store_all
from remat_solvers.simulate import copy_ns, simulate
from remat_solvers.solving import solve

LAYERS, WIDTH, HEADS, BATCH, LENGTH, VOCABULARY = 6, 256, 4, 32, 256, 1000


@dataclass
class TimedTier(Tier):
    """A tier that knows how long its copies took."""

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

    def write(self, place: int, source: Bytes) -> None:
        begin = time.perf_counter()
        self.slab.write(place, source)
        self.seconds.append(time.perf_counter() - begin)

    def read(self, place: int, into: Bytes) -> None:
        begin = time.perf_counter()
        self.slab.read(place, into)
        self.seconds.append(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--solver", default="swap-only")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--scratch", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = gpt2()
    exported = remat.export(model, (), batch)
    results = sum(exported.problem.values[v].bytes for v in exported.problem.results)
    unmodified = simulate(exported.problem, store_all(exported.problem))
    fixed = (exported.problem.constant_bytes + results) / unmodified.peak_bytes
    print(f"store-all peak {unmodified.peak_bytes / 2**20:.1f} MiB; constants and results are {fixed:.1%} of it")
    columns = (
        "tier",
        "bits",
        "peak",
        "budget",
        "moved",
        "step / store-all",
        "predicted",
        "off by",
        "overlap",
        "predicted",
    )
    table = Table(*columns, box=None)
    for tier in (HostTier(), DiskTier(asked.scratch)):
        table.add_row(*row(exported, model, batch, tier, asked))
    Console(width=140).print(table)


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


def row(exported: Any, model: Any, batch: Any, tier: Tier, asked: argparse.Namespace) -> list[str]:
    link = measure_link(torch.device("cpu"), tier)
    problem = replace(exported.problem, link=link)
    exported = replace(exported, problem=problem)
    unmodified = simulate(problem, store_all(problem))
    budget_bytes = int(asked.share * unmodified.peak_bytes)
    result = solve(problem, budget_bytes, solver=asked.solver, limits=Limits(60))
    if result.plan is None:
        return [tier.name, f"{result.status}: {result.reason}"]
    line = simulate(problem, result.plan)
    timed = TimedTier(tier)
    kept, planned = remat.apply(exported, store_all(problem)), remat.apply(exported, result.plan, tier=timed)
    reference, step = run_step(kept, (), batch, exported), run_step(planned, (), batch, exported)
    equal = compare_steps(step, reference).equal
    peak = step.peak_bytes + problem.constant_bytes
    times: dict[Any, list[float]] = {kept: [], planned: []}
    copies = []
    for _ in range(asked.steps + 1):
        for net, seconds in times.items():
            timed.seconds.clear()
            begin = time.perf_counter()
            net(**batch).loss.backward()
            seconds.append(time.perf_counter() - begin)
            model.zero_grad()
        copies.append(sum(timed.seconds))
    base_s, plan_s = (statistics.median(seconds[1:]) for seconds in times.values())
    predicted, measured = line.time_ns / unmodified.time_ns, plan_s / base_s
    overlap = 1 - (plan_s - base_s * work_of(problem, result.plan) / unmodified.time_ns) / statistics.median(copies[1:])
    told = [f"{peak / 2**20:.1f}", f"{budget_bytes / 2**20:.1f} MiB", f"{line.host_bytes / 2**20:.0f} MiB"]
    told += [f"{measured:.3f}", f"{predicted:.3f}", f"{measured / predicted - 1:+.1%}"]
    return [
        tier.name,
        "equal" if equal else "DIFFER",
        *told,
        f"{overlap:.1%}",
        f"{1 - line.wait_ns / copying_ns(problem, result.plan):.1%}",
    ]


def work_of(problem: Problem, plan: Plan) -> int:
    """Time of the ops that run, in ns."""
    return sum(problem.ops[action.op].time_ns for action in plan if isinstance(action, Compute))


def copying_ns(problem: Problem, plan: Plan) -> int:
    """Time of all copies, in ns."""
    link = problem.link
    assert link is not None
    rates = {Offload: link.to_host_bytes_per_s, Fetch: link.to_device_bytes_per_s}
    moves = [(problem.values[a.value].bytes, rates[type(a)]) for a in plan if isinstance(a, (Offload, Fetch))]
    return sum(copy_ns(size, rate, link.latency_ns) for size, rate in moves)


if __name__ == "__main__":
    main()
