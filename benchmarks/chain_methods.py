"""gruslys, revolve, rotor and kusumoto: their speed, and their overhead on the small real problems of the tests.

    scripts/bench chain_methods               kernels and the corpus
    scripts/bench chain_methods --steps 1000  an exported LSTM of so many steps: the claim of Gruslys et al. is 95 % of
                                              the memory saved for about a third more time (capture takes minutes)

Peers, as their authors report them or as found: the released Kusumoto code needs over 40 s for the exact family of
GoogLeNet; rotor in ColossalAI is C.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from remat_solvers.codec import load_problem
from remat_solvers.generate import random_layered
from remat_solvers.problem import Problem
from remat_solvers.recompute import gruslys, revolve, rotor
from remat_solvers.recompute.kusumoto_program import Program
from remat_solvers.recompute.lower_sets import ancestor_sets, forward_graph
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve

CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
METHODS = ("gruslys", "revolve", "kusumoto", "rotor")
BUDGETS = (0.9, 0.7, 0.5, 0.3)
REPEATS = 3
WIDTH, BATCH = 128, 256  # of the recurrent network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="export an LSTM of so many steps instead")
    steps = parser.parse_args().steps
    if steps is not None:
        claim(steps)
        return
    kernels()
    table = Table("model", "method", *(f"{budget:.0%}" for budget in BUDGETS), title="overhead, seconds", box=None)
    for name in ("unet", "r50", "gpt", "lstm", "chain50"):
        for method in METHODS:
            table.add_row(name, method, *overheads(load_problem(CORPUS / f"{name}.json"), method))
    Console(width=160).print(table)


def kernels() -> None:
    graph = forward_graph(random_layered(500, 1))

    def approximate() -> object:
        program = Program(graph, ancestor_sets(graph))
        limit = program.least_limit() * 6 // 5
        return program.sequence(program.table(limit), limit, "time-centric")

    cases: dict[str, Callable[[], object]] = {
        "gruslys (1000, 50), hidden": lambda: gruslys.forward_steps(1000, 50),
        "gruslys (1000, 50), mixed, 5": lambda: gruslys.forward_steps(1000, 50, "mixed", 5),
        "revolve (1000, 10)": lambda: revolve.forward_steps(1000, 10),
        "rotor, 100 segments, 500 slots": lambda: rotor.table(uniform_chain(100, 500)),
        "kusumoto, approximate, 500 nodes": approximate,
    }
    for name, run in cases.items():
        seconds = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        print(f"{name:34} {min(seconds):.3f} s")


def uniform_chain(count: int, slots: int) -> rotor.Slots:
    """Stages of time 1, states of 1 slot, saved sets of 2."""
    advance = np.maximum(0, np.arange(count + 1)[None, :] - np.arange(count)[:, None]).astype(float)
    both = np.full((1, count, count), 2.0)
    return rotor.Slots(
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
    )


def overheads(problem: Problem, method: str) -> list[str]:
    """Per budget: time over store-all's less 1, or the smallest peak reached, and the solver's seconds."""
    unmodified = simulate(problem, store_all(problem))
    cells = []
    for budget in BUDGETS:
        result = solve(problem, int(budget * unmodified.peak_bytes), solver=method)
        if result.time_ns is not None:
            cells.append(f"{result.time_ns / unmodified.time_ns - 1:.1%}, {result.seconds:.1f} s")
        else:
            reached = (result.smallest_peak_bytes or 0) / unmodified.peak_bytes
            cells.append(f"{result.status}, reaches {reached:.0%}, {result.seconds:.1f} s")
    return cells


def claim(steps: int) -> None:
    """Memory counted as the paper does: what the network's activations take, parameters and their gradients aside."""
    import torch

    import remat

    class LastState(torch.nn.Module):
        """A sequence (batch, steps, width) through one LSTM cell; the loss is read from the last hidden state."""

        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.LSTMCell(WIDTH, WIDTH)

        def forward(self, sequence: torch.Tensor) -> torch.Tensor:
            state = (torch.zeros(len(sequence), WIDTH), torch.zeros(len(sequence), WIDTH))
            for step in sequence.unbind(1):
                state = self.cell(step, state)
            return state[0].square().mean()

    begin = time.perf_counter()
    problem = remat.export(LastState(), (torch.zeros(BATCH, steps, WIDTH),), costs="roofline:cpu").problem
    print(f"{steps} steps, {len(problem.ops)} ops, exported in {time.perf_counter() - begin:.0f} s")
    unmodified = simulate(problem, store_all(problem))
    floor = problem.constant_bytes + sum(problem.values[v].bytes for v in problem.results)
    for saved in (0.5, 0.8, 0.9, 0.95):
        budget_bytes = floor + int((1 - saved) * (unmodified.peak_bytes - floor))
        for method in METHODS:
            result = solve(problem, budget_bytes, solver=method)
            told = "no plan" if result.time_ns is None else f"{result.time_ns / unmodified.time_ns - 1:+.1%} time"
            print(
                f"{saved:.0%} of the activations' memory saved: {method:9} {told}, {result.seconds:.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
