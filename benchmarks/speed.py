"""Measures our kernels and exact methods, beside published or measured times of their peers.

    scripts/bench speed                the kernels, each the best of three runs, with its target
    scripts/bench speed --exact 60     and checkmate and moccasin on random layered graphs, each with a limit of 60 s

Figures of peers are those of their authors, or were measured on a 2-core CPU. The machines differ, so they show orders
of magnitude only. The random layered graphs are ours (`generate.random_layered`), in the manner of Moccasin's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from remat_solvers.generate import random_layered
from remat_solvers.recompute import gruslys
from remat_solvers.recompute.kusumoto.lower_sets import ancestor_sets, forward_graph
from remat_solvers.recompute.kusumoto.program import LowerSetProgram
from remat_solvers.result import Limits
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from remat_solvers.toolkit.chains.binomial import binomial_schedule
from remat_solvers.toolkit.chains.persistent import DiscretisedChain, cost_table

REPEATS = 3
EXACT_METHODS = ("checkmate", "moccasin")
EXACT_OPS = (50, 100, 250)
EXACT_BUDGETS = (0.9, 0.8)

KUSUMOTO = "released code .02 to 8 s; all lower sets of GoogLeNet, 134 nodes: over 40 s (measured)"
SCHEDULES = "checkpoint_schedules 43.7 s to build (1000, 20) (measured)"
PAPERS = {
    ("moccasin", 100): "Moccasin's code: optimal at 90 % in 130 s, +2.3 % at 80 % in 164 s (measured)",
    ("moccasin", 250): "Moccasin's code: no solution in 240 s (measured)",
    ("checkmate", 100): "Checkmate on 73 nodes: 5.6 s with Gurobi (table of the Moccasin paper)",
    ("checkmate", 250): "Checkmate on 353 nodes: 485 s with Gurobi, Moccasin 69 s (the same table)",
}


@dataclass(frozen=True)
class Kernel:
    name: str
    run: Callable[[], object]
    target_s: float
    peer: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", type=float, metavar="SECONDS", help="limit of each exact solve; default: none runs")
    seconds = parser.parse_args().exact
    console = Console(width=160)
    table = Table("kernel", "seconds", "target", "peers", box=None)
    for kernel in kernels():
        table.add_row(kernel.name, f"{best_of(kernel.run):.3f}", f"< {kernel.target_s:g}", kernel.peer)
    console.print(table)
    if seconds is not None:
        console.print(exact(seconds))


def kernels() -> list[Kernel]:
    """Return one kernel per dynamic program. Kusumoto's is the approximate family at 1.2 times its smallest limit."""
    graph = forward_graph(random_layered(500, 1))
    uniform = uniform_chain(100, 500)

    def kusumoto() -> object:
        program = LowerSetProgram(graph, ancestor_sets(graph))
        limit = program.smallest_limit() * 6 // 5
        return program.sequence(program.table(limit), limit, "time-centric")

    return [
        Kernel("gruslys (1000, 50), hidden", lambda: gruslys.steps_table(1000, 50, "hidden"), 0.5, SCHEDULES),
        Kernel("gruslys (1000, 50), mixed, 5", lambda: gruslys.steps_table(1000, 50, "mixed", 5), 0.5, ""),
        Kernel("revolve (1000, 20), schedule", lambda: binomial_schedule(1000, 20), 1.0, SCHEDULES),
        Kernel("rotor, 100 segments, 500 slots", lambda: cost_table(uniform), 1.0, "rotor itself, in ColossalAI, is C"),
        Kernel("kusumoto, approximate, 500 nodes", kusumoto, 2.0, KUSUMOTO),
    ]


def best_of(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def uniform_chain(count: int, slots: int) -> DiscretisedChain:
    """Return a chain with stages of time 1, states of 1 slot, and one set of 2 slots to save per stage."""
    advance = np.maximum(0, np.arange(count + 1)[None, :] - np.arange(count)[:, None]).astype(float)
    both = np.full((1, count, count), 2.0)
    return DiscretisedChain(
        slots=slots,
        advance=advance,
        last_advance=advance,
        leaf_time=both,
        save_time=both,
        state=np.ones((count, count + 1), dtype=int),
        saved=np.full((1, count), 2),
        leaf_need=np.full((1, count), 3),
        save_need=np.full((1, count, count), 3),
        sweep_need=np.full((count, count, count + 1), 2),
        entry=np.tile(np.arange(count), (count, 1)),
    )


def exact(seconds: float) -> Table:
    """Return the times to the optimum in the given order, or the overhead and gap after `seconds`."""
    table = Table("ops", "budget", "method", "status", "time", "gap", "seconds", "peers", box=None)
    for ops in EXACT_OPS:
        problem = random_layered(ops, ops)
        unmodified = baseline(problem)
        for budget in EXACT_BUDGETS:
            for method in EXACT_METHODS:
                result = solve(
                    problem, int(budget * unmodified.peak_bytes), solver=method, limits=Limits(seconds=seconds)
                )
                overhead = "" if result.time_ns is None else f"{result.time_ns / unmodified.time_ns - 1:+.2%}"
                gap = "" if result.gap is None else f"{result.gap:.2%}"
                peer = PAPERS.get((method, ops), "")
                table.add_row(
                    str(ops), f"{budget:.0%}", method, str(result.status), overhead, gap, f"{result.seconds:.1f}", peer
                )
    return table


if __name__ == "__main__":
    main()
