"""Seeded random problems and plans, for tests and benchmarks: the same arguments give the same problem everywhere.

`chain` and `random_layered` are the synthetic problems of the literature. `random_chain` is a chain of unequal layers.
`training_graph` has every feature that an exported model can have. `adversarial` gives well-formed problems of extreme
kinds. `random_plan` returns any valid plan, good or bad.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import log, sqrt

from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Effect, Kind, Link, Op, Phase, Problem, Value

# Random layered graphs: width of a layer, skip distance, and the mixture of (mean, deviation) of sizes and times.
WIDTH_DIVISOR = 2.5
SKIP_P = 0.35
MIXTURE = ((5, 1), (20, 5), (60, 10), (120, 20))


def chain(n: int, *, size_bytes: int = 1, forward_ns: int = 1, backward_ns: int = 2) -> Problem:
    """A chain of n forward ops F1..Fn and n backward ops Bn..B1, all values of one size.

    Fi computes value i-1 from the value before. Bi reads the output of F(i-1) and the gradient; Bn reads the output of
    Fn in place of a gradient. The last gradient is the result.
    """
    ops = [Op(f"op{i}", "forward", (i - 1,) if i else (), (i,), forward_ns, target=f"F{i + 1}") for i in range(n)]
    for i in range(n, 2 * n):
        layer = 2 * n - i  # Bn first
        reads = (layer - 2, i - 1) if layer > 1 else (i - 1,)
        ops.append(Op(f"op{i}", "backward", reads, (i,), backward_ns, target=f"B{layer}"))
    values = tuple(Value(f"v{i}", size_bytes, "activation" if i < n else "gradient") for i in range(2 * n))
    return Problem(f"chain{n}", tuple(ops), values, (2 * n - 1,))


def random_chain(n: int, seed: int) -> Problem:
    """A chain of n unequal layers. Each computes a state from the state before; some also save a value for backward.

    The backward of a layer reads the gradient of its state (of the last layer: the state itself), its saved value, and
    the state before it, after it or both. It computes the gradient of the state before it, of the same size. The last
    gradient is the result. Sizes, times and workspaces are small random integers.
    """
    rng = random.Random(seed)
    values: list[Value] = []
    ops: list[Op] = []

    def make(kind: Kind, size_bytes: int) -> int:
        values.append(Value(f"v{len(values)}", size_bytes, kind))
        return len(values) - 1

    def run(phase: Phase, reads: list[int], makes: list[int]) -> None:
        name = f"{phase}_{len(ops)}"
        ops.append(Op(name, phase, tuple(reads), tuple(makes), rng.randint(1, 9), rng.choice((0, 0, 0, 2, 6))))

    states: list[int] = []
    saved: list[list[int]] = []
    for layer in range(n):
        state = make("activation", rng.choice((1, 2, 3, 5, 9)))
        saved.append([make("activation", rng.choice((1, 2, 3, 5, 9)))] if rng.random() < 0.4 else [])
        run("forward", states[-1:], [state, *saved[layer]])
        states.append(state)
    gradient: list[int] = []
    for layer in reversed(range(n)):
        before = states[layer - 1 : layer]
        reads = rng.choice((before, [states[layer]], [*before, states[layer]]))
        if layer == n - 1:
            reads = [*before, states[layer]]
        made = make("gradient", values[before[0]].bytes if before else rng.choice((1, 2, 3)))
        run("backward", [*reads, *saved[layer], *gradient], [made])
        gradient = [made]
    return Problem(f"random_chain{n}_{seed}", tuple(ops), tuple(values), tuple(gradient))


def random_layered(n: int, seed: int, *, edges: int | None = None) -> Problem:
    """A random layered graph of n forward ops with one output each. The sinks are results.

    Layer widths are uniform on 1..2w, w = sqrt(n) / 2.5; every op has a parent in the layer before and a child in
    the next one; the other edges are random with a geometric skip distance (p = 0.35). Sizes and times are drawn
    from a mixture of four Gaussians. `edges` defaults to the density of the graphs in the literature, which grows
    with log n (2.4 edges per op at n = 100, 5.9 at n = 1000).
    """
    rng = random.Random(seed)
    width = max(1, round(sqrt(n) / WIDTH_DIVISOR))
    layers: list[list[int]] = []
    while (made := sum(map(len, layers))) < n:
        layers.append(list(range(made, min(n, made + rng.randint(1, 2 * width)))))
    layer_of = [depth for depth, layer in enumerate(layers) for _ in layer]
    parents: list[set[int]] = [set() for _ in range(n)]
    for above, below in pairwise(layers):
        for op in below:
            parents[op].add(rng.choice(above))
        for op in above:
            if not any(op in parents[child] for child in below):
                parents[rng.choice(below)].add(op)
    wanted = edges if edges is not None else round(n * max(1.0, 2.36 + 1.55 * log(n / 100)))
    for _ in range(20 * wanted):  # attempts: small graphs may have no room for that many
        if sum(map(len, parents)) >= wanted:
            break
        op = rng.randrange(n)
        distance = 1
        while rng.random() > SKIP_P:
            distance += 1
        if layer_of[op] >= distance:
            parents[op].add(rng.choice(layers[layer_of[op] - distance]))

    def draw() -> int:
        return max(1, round(rng.gauss(*rng.choice(MIXTURE))))

    ops = tuple(Op(f"op{i}", "forward", tuple(sorted(p)), (i,), draw()) for i, p in enumerate(parents))
    values = tuple(Value(f"v{i}", draw(), "activation") for i in range(n))
    read = set().union(*parents)
    return Problem(f"random_layered{n}_{seed}", ops, values, tuple(i for i in range(n) if i not in read))


def training_graph(n: int, seed: int, *, link: bool = False) -> Problem:
    """A random training step: n forward ops on a DAG, the tangents, and the mirrored backward.

    It has parameters, several outputs per op, workspace, random ops, buffer updates without outputs, ops that are not
    recomputable, values without a reader, gradients that are summed, and results of both phases.
    """
    return _TrainingGraph(n, seed).build(link)


class _TrainingGraph:
    def __init__(self, n: int, seed: int) -> None:
        self.name = f"training{n}_{seed}"
        self.rng = random.Random(seed)
        self.n = n
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.gradients: dict[int, list[int]] = {}  # forward value -> its gradients, to be summed

    def build(self, link: bool) -> Problem:
        rng = self.rng
        activations = [self._value("constant")]  # the input of the model
        for _ in range(self.n):
            self._forward(activations)
        forward = list(self.ops)
        read = {v for op in forward for v in op.inputs}
        made = [v for op in forward for v in op.outputs]
        outputs = [v for v in made if v not in read and rng.random() < 0.7]
        outputs = list(dict.fromkeys([*outputs, *rng.sample(made, min(1, len(made)))]))
        tangents = [self._value("gradient") for _ in outputs]
        self._op("tangents", "backward", (), tuple(tangents), recomputable=False, time_ns=0)
        for value, tangent in zip(outputs, tangents, strict=True):
            self.gradients[value] = [tangent]
        for op in reversed(forward):
            self._backward(op)
        weights = [v for v, value in enumerate(self.values) if value.kind == "constant"]
        gradients = [self._summed(v) for v in weights]
        return Problem(
            name=self.name,
            ops=tuple(self.ops),
            values=tuple(self.values),
            results=tuple(dict.fromkeys([*outputs, *(g for g in gradients if g is not None)])),
            link=_random_link(rng) if link else None,
            reserve_bytes=rng.choice((0, 7)),
        )

    def _forward(self, activations: list[int]) -> None:
        rng = self.rng
        recent = activations[-4:] if rng.random() < 0.8 else activations
        reads = rng.sample(recent, min(len(recent), rng.choice((1, 1, 2))))
        kind = rng.random()
        if kind < 0.08 and len(activations) > 1:  # a running statistic: reads, creates nothing, runs once
            self._op("update", "forward", tuple(reads), (), recomputable=False, effects=("buffer",))
            return
        if rng.random() < 0.5:
            reads.append(self._value("constant"))
        outputs = tuple(self._value("activation") for _ in range(rng.choice((1, 1, 1, 2, 3))))
        if kind < 0.2:
            self._op("dropout", "forward", tuple(reads), outputs, effects=("random",))
        elif kind < 0.27:
            self._op("all_reduce", "forward", tuple(reads), outputs, recomputable=False, effects=("collective",))
        else:
            self._op("layer", "forward", tuple(reads), outputs)
        activations.extend(outputs[: rng.randint(1, len(outputs))])

    def _backward(self, op: Op) -> None:
        """Add the backward of `op`: the gradients of its inputs from those of its outputs and some of its values."""
        arriving = [g for g in (self._summed(v) for v in op.outputs) if g is not None]
        if not arriving:
            return
        rng = self.rng
        saved = [v for v in (*op.inputs, *op.outputs) if rng.random() < 0.6]
        outputs = tuple(self._value("gradient") for _ in op.inputs)
        for value, gradient in zip(op.inputs, outputs, strict=True):
            self.gradients.setdefault(value, []).append(gradient)
        self._op(f"{op.name}_backward", "backward", tuple(dict.fromkeys([*saved, *arriving])), outputs)

    def _summed(self, value: int) -> int | None:
        """The gradient of `value`; where it has several parts, an op adds them."""
        parts = self.gradients.pop(value, [])
        if len(parts) < 2:
            return parts[0] if parts else None
        total = self._value("gradient")
        self._op("add", "backward", tuple(parts), (total,))
        return total

    def _value(self, kind: Kind) -> int:
        self.values.append(Value(f"v{len(self.values)}", self.rng.choice((0, 1, 3, 10, 40, 100)), kind))
        return len(self.values) - 1

    def _op(
        self,
        target: str,
        phase: Phase,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        recomputable: bool = True,
        effects: tuple[Effect, ...] = (),
        time_ns: int | None = None,
    ) -> None:
        rng = self.rng
        duration = rng.randint(0, 30) if time_ns is None else time_ns
        workspace = rng.choice((0, 0, 0, 5, 60)) if duration else 0
        name = target if target == "tangents" else f"{target}_{len(self.ops)}"
        self.ops.append(Op(name, phase, inputs, outputs, duration, workspace, recomputable, effects, target=target))


def _random_link(rng: random.Random) -> Link:
    def rate() -> int:
        return rng.choice((10**8, 10**9, 3 * 10**9, 7 * 10**10 + 1))

    return Link(rate(), rate(), rng.choice((0, 1, 20)), rng.choice((None, 50, 1000)))


def adversarial(seed: int) -> Problem:
    """A well-formed problem of an extreme kind. Consecutive seeds give all kinds in turn."""
    rng = random.Random(seed)
    build = ADVERSARIES[seed % len(ADVERSARIES)]
    return build(rng, training_graph(rng.randint(1, 9), seed))


def _resized(problem: Problem, size: Callable[[Value], int], time_ns: Callable[[Op], int]) -> Problem:
    return replace(
        problem,
        values=tuple(replace(v, bytes=size(v)) for v in problem.values),
        ops=tuple(replace(op, time_ns=time_ns(op)) for op in problem.ops),
    )


def _side_by_side(problem: Problem) -> Problem:
    """Two copies without any edge between them, forward of both before backward of both."""
    count = len(problem.values)

    def moved(op: Op) -> Op:
        return replace(op, inputs=tuple(v + count for v in op.inputs), outputs=tuple(v + count for v in op.outputs))

    phases: tuple[Phase, Phase] = ("forward", "backward")
    both = [(op, moved(op)) for op in problem.ops]
    ops = [op for phase in phases for k in (0, 1) for op in (pair[k] for pair in both) if op.phase == phase]
    results = (*problem.results, *(v + count for v in problem.results))
    return replace(problem, ops=tuple(ops), values=problem.values * 2, results=results)


def _one_op(rng: random.Random, _: Problem) -> Problem:
    phase: Phase = rng.choice(("forward", "backward"))
    return Problem("one op", (Op("only", phase, (), (0,), 1, 5),), (Value("v", 3, "activation"),), (0,))


def _twice_read(_: random.Random, problem: Problem) -> Problem:
    return replace(problem, ops=tuple(replace(op, inputs=op.inputs * 2) for op in problem.ops))


def _all_results(_: random.Random, problem: Problem) -> Problem:
    return replace(problem, results=tuple(range(len(problem.values))))


HUGE = 2**50  # a thousand of them stay below 2**63
ADVERSARIES: tuple[Callable[[random.Random, Problem], Problem], ...] = (
    lambda rng, p: _resized(p, lambda v: 0, lambda op: op.time_ns),
    lambda rng, p: _resized(p, lambda v: v.bytes, lambda op: 0),
    lambda rng, p: _resized(p, lambda v: rng.randint(HUGE // 2, HUGE), lambda op: rng.randint(0, HUGE)),
    lambda rng, p: _side_by_side(p),
    _one_op,
    _twice_read,
    _all_results,
    lambda rng, p: replace(p, results=()),
    lambda rng, p: replace(p, ops=tuple(replace(op, recomputable=False) for op in p.ops)),
    lambda rng, p: replace(p, ops=tuple(replace(op, workspace_bytes=10**6) for op in p.ops)),
    lambda rng, p: Problem("empty", (), (), ()),
)


def random_plan(problem: Problem, seed: int) -> Plan:
    """A valid plan of `problem` with random frees, recomputations and, over a link, offloads and fetches."""
    return _RandomPlan(problem, seed).build()


class _RandomPlan:
    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.rng = random.Random(seed)
        self.actions: list[Action] = []
        self.constant = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
        self.on_device = set(self.constant)
        self.host: set[int] = set()
        self.forward_results = problem.forward_results
        self.pinned: set[int] = set()

    def build(self) -> Plan:
        forward = self.problem.forward_ops
        for index in forward or range(len(self.problem.ops)):
            if forward and index == forward[-1]:  # the boundary follows: forward results must be resident
                before = [v for v in self.forward_results if self.problem.producer[v] != index]
                self._restore(before)
                self.pinned.update(self.forward_results)
            self._compute(index)
            self._tidy()
        for index in self.problem.backward_ops if forward else ():
            self._compute(index)
            self._tidy()
        self._restore(self.problem.results)
        return Plan(self.actions)

    def _compute(self, index: int) -> None:
        op = self.problem.ops[index]
        self._restore(op.inputs)
        self.actions.append(Compute(index))
        self.on_device.update(op.outputs)

    def _restore(self, values: tuple[int, ...] | list[int]) -> None:
        """Bring values back, by fetch or recomputation; nothing is freed meanwhile."""
        for value in values:
            if value in self.on_device:
                continue
            producer = self.problem.producer[value]
            recomputable = self.problem.ops[producer].recomputable
            if value in self.host and (not recomputable or self.rng.random() < 0.7):
                self.actions.append(Fetch(value))
                self.on_device.add(value)
            else:
                self._compute(producer)

    def _tidy(self) -> None:
        """Free and offload at random values that can be fetched or recomputed."""
        problem, rng = self.problem, self.rng
        for value in sorted(self.on_device - self.constant):
            link = problem.link
            if link is not None and rng.random() < 0.2:
                held = sum(problem.values[v].bytes for v in self.host | {value})
                if link.host_bytes is None or held <= link.host_bytes:
                    self.actions.append(Offload(value))
                    self.host.add(value)
            again = value in self.host or problem.ops[problem.producer[value]].recomputable
            if again and value not in self.pinned and rng.random() < 0.4:
                self.actions.append(Free(value))
                self.on_device.remove(value)
