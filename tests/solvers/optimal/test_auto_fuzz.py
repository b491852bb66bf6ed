"""`auto` on small problems that are allowed and unpleasant: no crash, no invalid plan, nothing claimed that is not so.

The judge is exhaustive search, over every order of first computations and over the problem's own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, islice

import pytest

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.generate import adversarial, random_layered, training_graph
from remat_solvers.optimal.auto import Auto
from remat_solvers.problem import EFFECTS, Effect, Kind, Link, Op, Phase, Problem, Value
from remat_solvers.recompute.brute_force import BruteForce
from remat_solvers.recompute.brute_force.states import OrderOption
from remat_solvers.result import Limits, Order, Outcome, Progress, Result, Status, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve

every = pytest.mark.parametrize(  # without: what the other parts claim, which the states leave nothing to on these
    "auto", [Auto(), Auto(state_search=False)], ids=["whole", "without states"]
)
HUGE = 2**60  # seven of them are below 2**63
UNTIL_THE_END = Limits(None)  # which on these takes well under a second, and is the same on every machine
JUDGE_SECONDS = 60.0
MOST_OPS, MOST_VALUES = 9, 20  # that the judge is asked about
MOST_MOVING_VALUES = 6  # with a link
Flavour = Sequence[int]
SIZES: tuple[Flavour, ...] = ((0, 1, 3, 10), (0, 1, 3, 10), (0, 0, 0, 1), (1,), (HUGE // 2, HUGE // 2 - 1, 1))
TIMES: tuple[Flavour, ...] = ((0, 1, 2, 9), (0, 1, 2, 9), (0,), (0, 0, 5), (HUGE // 16, 2**40 + 1, 1))
WORKSPACES: tuple[Flavour, ...] = ((0,), (0, 0, 4), (0, 25), (0, 0, 1000))
LINKS = (
    *(Link(1, 1), Link(10**9, 10**9), Link(10**9, 2 * 10**9, 3), Link(2 * 10**9, 10**9, host_bytes=0)),
    *(Link(10**18, 10**18, 4), Link(5 * 10**8, 10**9, 1, 10)),
)


def fuzzed(seed: int, *, link: bool = False) -> Problem:
    """Some problem of up to 8 ops (4 with a link), in which anything may be odd that a Problem allows."""
    rng = random.Random(seed)
    sizes, times, workspaces = rng.choice(SIZES), rng.choice(TIMES), rng.choice(WORKSPACES)
    recomputable, connected = rng.choice((1.0, 0.8, 0.8, 0.0)), rng.choice((0.9, 0.9, 0.3, 0.0))
    forward = rng.choice((0, 1, 2, 3, 4, 4, 4))
    backward = rng.choice((0, 1, 2, 3, 4, 4, 4))
    if link:
        forward, backward = min(forward, 2), min(backward, 2)
    values: list[Value] = []
    ops: list[Op] = []

    def make(kind: Kind) -> int:
        values.append(Value(f"v{len(values)}", rng.choice(sizes), kind))
        return len(values) - 1

    for _ in range(rng.choice((0, 0, 1, 2))):
        make("constant")
    if backward and rng.random() < 0.4:
        tangents: tuple[int, ...] | None = tuple(range(rng.randint(0, 2)))
    else:
        tangents = None
    phases: list[Phase] = ["forward"] * forward + ["backward"] * backward
    for index, phase in enumerate(phases):
        reads = tuple(v for v in _some(rng, len(values), connected))
        effects: tuple[Effect, ...] = tuple(rng.sample(EFFECTS, rng.choice((0, 0, 0, 0, 1, 2))))
        again = rng.random() < recomputable
        if index == forward and tangents is not None:
            reads, again = (), False
        kind: Kind = "activation" if phase == "forward" else "gradient"
        makes = tuple(make(kind) for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))))
        ops.append(Op(f"op{index}", phase, reads, makes, rng.choice(times), rng.choice(workspaces), again, effects))
    results = rng.sample(range(len(values)), rng.randint(0, min(3, len(values))))
    if rng.random() < 0.5:  # what nobody reads
        results = [v for v in range(len(values)) if all(v not in op.inputs for op in ops)]
    way = rng.choice(LINKS) if link else None
    return Problem("fuzzed", tuple(ops), tuple(values), tuple(results), way, rng.choice((0, 0, 7)))


def _some(rng: random.Random, count: int, share: float) -> list[int]:
    """Values to read, mostly recent ones, at times one of them twice."""
    if not count or rng.random() >= share:
        return []
    recent = range(max(0, count - 4), count) if rng.random() < 0.7 else range(count)
    return [rng.choice(recent) for _ in range(rng.choice((1, 1, 2, 2, 3)))]


def exact(problem: Problem, budget_bytes: int, order: OrderOption) -> Outcome:
    """The judge's answer."""
    outcome = BruteForce(order).solve(problem, budget_bytes, limits=Limits(JUDGE_SECONDS), on_progress=None, seed=0)
    assert outcome.stopped is Stopped.COMPLETE, "too large for the judge"
    return outcome


def budget_of(problem: Problem, seed: int) -> int:
    """Mostly between what no plan is below and what the unmodified step needs."""
    rng = random.Random(seed)
    floor, unmodified = peak_bound_bytes(problem), baseline(problem).peak_bytes
    between = rng.randint(floor, max(floor, unmodified - 1))
    return max(1, rng.choice((between, between, between, floor, floor, floor - 1, unmodified)))


def judged(problem: Problem, budget_bytes: int, auto: Auto) -> tuple[Result, bool]:
    """What `auto` says, held against every plan there is; and whether there is a plan that it could have found.

    Fails where it claims too much: a bound above the optimum of its order, infeasible or optimal what is not so."""
    told: list[Progress] = []
    result = solve(problem, budget_bytes, solver=auto, limits=UNTIL_THE_END, on_progress=told.append)
    assert_told_in_order(told)
    free, given = (exact(problem, budget_bytes, order) for order in ("free", "given"))
    best = free.bound_ns if result.order is Order.FREE else given.bound_ns
    if result.status is Status.INFEASIBLE:
        assert free.bound_ns is None
    if result.bound_ns is not None and best is not None:
        assert result.bound_ns <= best
    if result.time_ns is not None:
        assert free.bound_ns is not None
        assert result.time_ns >= free.bound_ns
        assert result.peak_bytes is not None
        assert result.peak_bound_bytes <= result.peak_bytes <= budget_bytes
    if result.status is Status.OPTIMAL:
        assert result.time_ns == best
    if auto.state_search and problem.link is None:
        assert (result.plan is None) == (free.plan is None)
        assert (result.status is Status.INFEASIBLE) == (free.status is Status.INFEASIBLE)
    return result, free.plan is not None


def assert_told_in_order(told: Sequence[Progress]) -> None:
    """Times fall, the bounds of an order rise, and no bound is above the plan that it is told with."""
    times = [progress.time_ns for progress in told if progress.time_ns is not None]
    assert times == sorted(times, reverse=True)
    for order in Order:
        bounds = [p.bound_ns for p in told if p.bound_ns is not None and p.order is order]
        assert bounds == sorted(bounds)
    assert all(p.bound_ns <= p.time_ns for p in told if p.bound_ns is not None and p.time_ns is not None)


def tally(problems: Iterator[Problem], number: int, auto: Auto) -> Counter[str]:
    """How many of the first `number` that the judge can treat had which end."""
    ends: Counter[str] = Counter()
    small = (p for p in problems if len(p.ops) <= MOST_OPS and len(p.values) <= MOST_VALUES)
    for seed, problem in enumerate(islice(small, number)):
        result, has_plan = judged(problem, budget_of(problem, seed), auto)
        ends[result.status.value] += 1
        ends["missed"] += result.plan is None and has_plan
        ends["loose"] += result.status is Status.FEASIBLE or (result.plan is None and not has_plan)
    return ends


@every
def test_whatever_a_problem_allows(auto: Auto) -> None:
    ends = tally(map(fuzzed, count()), 500, auto)
    assert ends["optimal"] > 300
    assert ends["infeasible"] > 50
    assert ends["missed"] <= (0 if auto.state_search else 2)  # by a byte in 2**60, beyond every tolerance


@every
def test_training_steps(auto: Auto) -> None:
    ends = tally((training_graph(1 + seed % 4, seed) for seed in count()), 150, auto)
    assert ends["optimal"] > 75
    assert ends["missed"] == 0


@every
def test_layered_graphs(auto: Auto) -> None:
    """Forward only, and mostly faster in another order."""
    ends = tally((random_layered(4 + seed % 6, seed) for seed in count()), 100, auto)
    assert ends["optimal"] > 50
    assert ends["missed"] == 0


@every
def test_adversaries(auto: Auto) -> None:
    ends = tally(map(adversarial, count()), 100, auto)
    assert ends["optimal"] > 50
    assert ends["missed"] == 0


@every
def test_with_a_link(auto: Auto) -> None:
    """Over links of 1 byte/s, without room on the host, of latency only, and others."""
    problems = (fuzzed(seed, link=True) for seed in count())
    ends = tally((p for p in problems if sum(len(op.outputs) for op in p.ops) <= MOST_MOVING_VALUES), 200, auto)
    assert ends["optimal"] > 100
    assert ends["missed"] <= 1  # by a byte in 2**59, in another order
