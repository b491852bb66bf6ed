"""Problems and budgets that tests of several solvers share."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.formats import load_problem
from remat_solvers.generate import adversarial, training_graph
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.schedule import baseline
from tests.paths import CORPUS


@functools.cache
def corpus_problem(name: str) -> Problem:
    """The problem of the corpus with this name; problems are immutable, so all tests of a process share one."""
    return load_problem(CORPUS / f"{name}.json")


def unit_chain(layers: int) -> Problem:
    """The chain of the figures in the Checkmate paper: b_i reads b_(i+1), f_i and f_(i-1); sizes and times are 1."""
    ops = [Op(f"f{i}", "forward", (i - 1,) if i else (), (i,), 1) for i in range(layers)]
    for k, i in enumerate(range(layers - 1, -1, -1)):
        gradient = (layers + k - 1,) if k else ()
        below = (i - 1,) if i else ()
        ops.append(Op(f"b{i}", "backward", (*gradient, i, *below), (layers + k,), 1))
    values = tuple(Value(f"v{i}", 1, "activation" if i < layers else "gradient") for i in range(2 * layers))
    return Problem(f"unit{layers}", tuple(ops), values, (2 * layers - 1,))


def poet_chain(layers: int) -> Problem:
    """The chain of the POET paper: f_1..f_L, the loss, b_L..b_1; b_i reads b_(i+1) and f_i.

    Every op takes 10 ns, every value is 3 bytes, and a copy of it takes 3 ns: 0.3 of an op.
    """
    ops = [Op(f"f{i}", "forward", (i - 1,) if i else (), (i,), 10) for i in range(layers)]
    ops.append(Op("loss", "forward", (layers - 1,), (layers,), 10))
    for k, i in enumerate(range(layers - 1, -1, -1)):
        ops.append(Op(f"b{i}", "backward", (layers + k, i), (layers + 1 + k,), 10))
    values = tuple(Value(f"v{i}", 3, "activation" if i <= layers else "gradient") for i in range(2 * layers + 1))
    return Problem("with loss", tuple(ops), values, (2 * layers,), Link(10**9, 10**9))


def layers(*targets: str, module: str = "") -> Problem:
    """A chain of layers of these operators; the backward of each reads its input, its output and the gradient.

    Values are one byte and ops take 1 ns. `module` is the module path of each op, with `{}` for half its index."""
    n = len(targets)
    ops = [
        Op(f"f{i}", "forward", (i - 1,) if i else (), (i,), 1, target=t, module=module.format(i // 2))
        for i, t in enumerate(targets)
    ]
    for k, i in enumerate(range(n - 1, -1, -1)):
        reads = (*((i - 1,) if i else ()), i, *((n + k - 1,) if k else ()))
        ops.append(Op(f"b{i}", "backward", reads, (n + k,), 1, target=f"{targets[i]}_backward"))
    values = tuple(Value(f"v{i}", 1, "activation" if i < n else "gradient") for i in range(2 * n))
    return Problem("layers", tuple(ops), values, (2 * n - 1,))


def with_link(problem: Problem, bytes_per_s: int = 10**9, latency_ns: int = 0) -> Problem:
    """The problem over a link that is equally fast in both directions; by default a byte takes a nanosecond."""
    return replace(problem, link=Link(bytes_per_s, bytes_per_s, latency_ns))


def budget_above_floor(problem: Problem, share: float) -> int:
    """The smallest provable peak, and this share of what store-all needs beyond it."""
    floor = max(1, peak_bound_bytes(problem))
    return floor + int(share * max(0, baseline(problem).peak_bytes - floor))


def budget_above_static(problem: Problem, share: float) -> int:
    """The static bytes, and this share of what store-all needs beyond them."""
    return problem.static_bytes + int(share * (baseline(problem).peak_bytes - problem.static_bytes))


def constrained_steps(seeds: Iterable[int]) -> Iterator[tuple[Problem, int]]:
    """Random problems of at most 13 ops, for exhaustive search, each with a budget between its floor and store-all."""
    for seed in seeds:
        rng = random.Random(seed)
        problem = training_graph(rng.randint(2, 6), seed) if seed % 4 else adversarial(seed)
        budget_bytes = budget_above_floor(problem, rng.random())
        if len(problem.ops) <= 13 and budget_bytes < baseline(problem).peak_bytes:
            yield problem, budget_bytes


def linked_step(seed: int, max_layers: int, skew: int = 1) -> tuple[Problem, int, random.Random]:
    """A random training step with a link, a budget between its floor and store-all, and the generator that drew them.

    The larger `skew`, the closer to the floor most budgets are.
    """
    rng = random.Random(seed)
    problem = training_graph(rng.randint(1, max_layers), seed, link=True)
    return problem, budget_above_floor(problem, rng.random() ** skew), rng


def small_linked_steps(
    seeds: Iterable[int], skew: int = 1, max_ops: int = 6, max_movable: int = 6
) -> Iterator[tuple[Problem, int, random.Random]]:
    """The problems of `linked_step` that are small enough for exhaustive search: few ops and few values that may
    move."""
    for seed in seeds:
        problem, budget_bytes, rng = linked_step(seed, 3, skew)
        movable = sum(value.kind != "constant" and value.bytes > 0 for value in problem.values)
        if len(problem.ops) <= max_ops and movable <= max_movable:
            yield problem, budget_bytes, rng


def constrained_linked_steps(number: int, max_ops: int = 6, max_movable: int = 6) -> Iterator[tuple[Problem, int]]:
    """The first `number` of `small_linked_steps` at whose budget store-all does not fit."""
    steps = small_linked_steps(itertools.count(), max_ops=max_ops, max_movable=max_movable)
    constrained = ((problem, budget) for problem, budget, _ in steps if budget < baseline(problem).peak_bytes)
    return itertools.islice(constrained, number)
