"""Plan a 12-layer GPT-2 under a memory budget, train it, and print predicted beside measured figures.

The model is the transformers library's own, with random weights; nothing is downloaded. The same training
step runs three times, from the same weights, data and random numbers:

    eager       the original model
    store-all   the captured graph, with nothing recomputed
    planned     the captured graph, by the plan of `remat.solve` within the budget
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import remat
from remat.allocator import peak_while
from remat_solvers.result import Order
from remat_solvers.schedule import store_all
from remat_solvers.units import format_bytes, format_ns

SEED = 0
ROUNDS = 5  # timed steps of each net, alternating, so that other load on the machine affects all of them
Batch = dict[str, Tensor]


class Step(NamedTuple):
    """The results of one forward and backward."""

    loss: Tensor
    gradients: dict[str, Tensor]
    peak_bytes: int


def make_model(layers: int, width: int, length: int) -> nn.Module:
    """A GPT-2 with random weights and its default dropout of 0.1."""
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=8192,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers cannot tell from the class name, and would log a warning
    return model


def make_batch(size: int, length: int, seed: int) -> Batch:
    """A batch of random tokens, which are also the labels."""
    tokens = torch.randint(8192, (size, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens.clone()}


def run_step(net: nn.Module, batch: Batch, constant_bytes: int) -> Step:
    """Run and measure one forward and backward, without gradients in the model before or after."""
    net.zero_grad(set_to_none=True)
    torch.manual_seed(SEED)
    outputs: list[Any] = []

    def forward_and_backward() -> None:
        outputs.append(net(**batch))  # with the logits, which count as long as the caller holds them
        outputs[0].loss.backward()

    peak = peak_while(forward_and_backward, torch.device("cpu"))
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return Step(outputs[0].loss.detach(), gradients, peak + constant_bytes)


def same_bits(a: Step, b: Step) -> bool:
    """Whether loss and every gradient are equal bit for bit."""
    names = a.gradients.keys() == b.gradients.keys()
    return (
        names and torch.equal(a.loss, b.loss) and all(torch.equal(a.gradients[n], b.gradients[n]) for n in b.gradients)
    )


def time_steps(nets: Iterable[nn.Module], batch: Batch) -> list[float]:
    """Median seconds of a step of each net; the nets take turns."""
    nets = list(nets)
    seconds: list[list[float]] = [[] for _ in nets]
    for _ in range(ROUNDS):
        for net, taken in zip(nets, seconds, strict=True):
            net.zero_grad(set_to_none=True)
            start = time.perf_counter()
            net(**batch).loss.backward()
            taken.append(time.perf_counter() - start)
    for net in nets:
        net.zero_grad(set_to_none=True)
    return [statistics.median(taken) for taken in seconds]


def train(net: nn.Module, steps: int, size: int, length: int) -> list[float]:
    """The losses of `steps` AdamW steps. The same loop for every kind of net."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4)
    losses = []
    for step in range(steps):
        loss = net(**make_batch(size, length, step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Plan, measure, compare, train."""
    options = read_options()
    console = Console()
    torch.set_num_threads(1)  # kernels use scratch memory per thread, so one thread makes the figures comparable
    model = make_model(options.layers, options.width, options.length)
    batch = make_batch(options.batch, options.length, SEED)

    start = time.perf_counter()
    net = remat.solve(model, options.budget, kwargs=batch)
    console.print(f"GPT-2 of {options.layers} layers, budget {options.budget}: planned in {seconds_since(start)}\n")
    kept = remat.apply(remat.export(model, kwargs=batch), store_all(net.problem))

    constants = net.problem.constant_bytes
    eager, unmodified, planned = (run_step(n, batch, constants) for n in (model, kept, net))
    times = time_steps((model, kept, net), batch)
    console.print(table(net.result, (eager, unmodified, planned), times))
    console.print(f"\n{promise(net.result)}")
    to_store_all, to_eager = same_bits(planned, unmodified), same_bits(planned, eager)
    console.print(f"\nGradients bit-equal to store-all: {yes(to_store_all)}")
    console.print(f"Gradients bit-equal to eager:     {yes(to_eager)}")

    original = copy.deepcopy(model)
    ours = train(net, options.steps, options.batch, options.length)
    theirs = train(original, options.steps, options.batch, options.length)
    console.print(f"\nLosses of {options.steps} AdamW steps: {', '.join(f'{x:.4f}' for x in ours)}")
    weights = zip(model.parameters(), original.parameters(), strict=True)
    equal = ours == theirs and all(torch.equal(a, b) for a, b in weights)
    console.print(f"Losses and weights bit-equal to eager training: {yes(equal)}")
    sys.exit(0 if to_store_all and to_eager and equal else 1)


def table(result: Any, steps: tuple[Step, Step, Step], seconds: list[float]) -> Table:
    """Predicted and measured peak and time of eager, store-all and planned."""
    shown = Table("", "peak predicted", "peak measured", "step predicted", "step measured", box=None)
    predicted = (
        ("", ""),
        (format_bytes(result.store_all_peak_bytes), format_ns(result.store_all_time_ns)),
        (format_bytes(result.peak_bytes), format_ns(result.time_ns)),
    )
    for name, (peak, step_time), step, taken in zip(
        ("eager", "store-all", "planned"), predicted, steps, seconds, strict=True
    ):
        shown.add_row(name, peak, format_bytes(step.peak_bytes), step_time, format_ns(round(taken * 1e9)))
    return shown


def promise(result: Any) -> str:
    """The proven bound, in a sentence."""
    if result.bound_ns is None:
        return "No bound on the time of other plans was proven."
    plans = "no plan" if result.order is Order.FREE else "no plan that keeps the order of first computations"
    distance = f"{format_ns(result.bound_ns)}, {result.gap:.2%} of a store-all step below this one"
    return f"Proven: within the budget {plans} takes less than {distance}."


def read_options() -> argparse.Namespace:
    """The command line; the defaults take about a minute."""
    parser = argparse.ArgumentParser(description="Plan a GPT-2 under a memory budget and train it.")
    parser.add_argument("--budget", default="50%", help="8GiB, 800MB, bytes, or 50%% of the store-all peak")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="training steps")
    return parser.parse_args()


def seconds_since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


def yes(answer: bool) -> str:
    return "yes" if answer else "NO"


if __name__ == "__main__":
    main()
