"""Tests the claim of Gruslys et al. (NIPS 2016): for 1,000 steps, 95 % less memory costs about a third more time.

    scripts/bench bptt                         an exported LSTM of 1,000 steps (capture takes minutes)
    scripts/bench bptt --cell GRUCell --steps 200
    scripts/bench bptt --save problem.json     save the exported problem; --load reads it instead of an export

The network reads characters: an embedding, one cell, and the loss from the last hidden state. Costs are estimated by
roofline.

Memory is counted as in the paper: the activations of the network, without parameters and their gradients. The forward
work of the plan is in units of that of the store-all step. Beside it is the forward work of the paper's dynamic program
with as many internal states as that share of the steps (1,000 steps, 50 slots: 1.95). The paper's third holds where the
backward takes twice the time of the forward (.95 / 3); the first line states the ratio here.
"""

from __future__ import annotations

import argparse
import time

import torch

import remat
from remat_solvers.formats import load_problem, save_problem
from remat_solvers.problem import Problem
from remat_solvers.recompute.gruslys import forward_steps
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve

WIDTH, BATCH, CHARACTERS = 128, 256, 256
SAVED = (0.5, 0.8, 0.9, 0.95)
METHODS = ("gruslys", "revolve", "rotor")


class LastState(torch.nn.Module):
    """Characters (batch, steps) through one recurrent cell; the loss is read from the last hidden state."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(CHARACTERS, WIDTH)
        self.cell = getattr(torch.nn, cell)(WIDTH, WIDTH)
        self.two_states = cell == "LSTMCell"

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(len(text), WIDTH)
        cell = torch.zeros(len(text), WIDTH)
        for characters in text.unbind(1):
            step = self.embedding(characters)
            if self.two_states:
                hidden, cell = self.cell(step, (hidden, cell))
            else:
                hidden = self.cell(step, hidden)
        return hidden.square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=("LSTMCell", "GRUCell", "RNNCell"), default="LSTMCell")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--method", choices=METHODS, action="append", help="default: gruslys")
    parser.add_argument("--save", help="write the exported problem to this file")
    parser.add_argument(
        "--load", help="read the problem from this file; --steps and --cell must be those it was exported with"
    )
    options = parser.parse_args()
    if options.load:
        problem = load_problem(options.load)
    else:
        begin = time.perf_counter()
        text = torch.zeros(BATCH, options.steps, dtype=torch.int64)
        problem = remat.export(LastState(options.cell), (text,), costs="roofline:cpu").problem
        print(f"exported in {time.perf_counter() - begin:.0f} s")
    if options.save:
        save_problem(options.save, problem)
    print(f"{options.cell}, {options.steps} steps, {len(problem.ops)} ops")
    claim(problem, options.steps, options.method or ["gruslys"])


def claim(problem: Problem, steps: int, methods: list[str]) -> None:
    forward_ns = sum(problem.ops[op].time_ns for op in problem.forward_ops)
    backward_ns = sum(problem.ops[op].time_ns for op in problem.backward_ops)
    print(f"backward takes {backward_ns / forward_ns:.2f} times the forward")
    store_all_line = baseline(problem)
    floor = problem.constant_bytes + sum(problem.values[v].bytes for v in problem.results)
    for saved in SAVED:
        budget_bytes = floor + int((1 - saved) * (store_all_line.peak_bytes - floor))
        slots = max(1, round((1 - saved) * steps))
        paper = forward_steps(steps, slots, "internal") / steps
        for method in methods:
            result = solve(problem, budget_bytes, solver=method)
            summary = "no plan"
            if result.time_ns is not None:
                extra_ns = result.time_ns - store_all_line.time_ns
                summary = f"{extra_ns / store_all_line.time_ns:+.1%} time, forward work {1 + extra_ns / forward_ns:.3f}"
            print(
                f"{saved:.0%} saved: {method:9} {summary} (the paper's program: {paper:.3f}), {result.seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
