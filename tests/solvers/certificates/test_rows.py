"""Rows of certificates: every one that the checker accepts, used by a certificate of ours or not, holds for every plan.

What a plan does is read off its actions here, by the definitions in the docstring of certificates/rows.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from remat_solvers.certificates.check import check_certificate
from remat_solvers.certificates.rows import Relaxation, Variable
from remat_solvers.errors import CertificateError
from remat_solvers.generate import adversarial, random_chain, random_layered, random_plan, training_graph
from remat_solvers.plan import Compute, Free, Plan
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.result import Certificate, Leaf, Order
from remat_solvers.schedule import keeps_order, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate

MOST_OPS, MOST_VALUES, MOST_MOMENTS = 8, 9, 3


class Reading:
    """The 0/1 values of a plan: what is there at which moment, and what runs in which stages."""

    def __init__(self, problem: Problem, plan: Plan, at: tuple[int, ...]) -> None:
        self.there: list[set[int]] = []  # per moment
        self.runs: list[set[int]] = [set()]  # per stage
        held: set[int] = set()
        for action in plan:
            if isinstance(action, Free):
                held.discard(action.value)
            elif isinstance(action, Compute):
                held.update(problem.ops[action.op].outputs)
                self.runs[-1].add(action.op)
                if len(self.there) < len(at) and action.op == at[len(self.there)]:
                    self.there.append(set(held))
                    self.runs.append(set())
        self.there.append(held)

    def value(self, variable: Variable) -> int:
        kind, indices = variable
        if kind == "stay":
            value, moment = indices
            return int(value in self.there[moment])
        op, first, last = indices
        return int(any(op in stage for stage in self.runs[first : last + 1]))


def reordered(problem: Problem, rng: random.Random) -> Plan:
    """A plan that runs ops for the first time in some other order, with a few recomputations."""
    ran: list[int] = []
    left = list(range(len(problem.ops)))
    while left:
        effect = next((op for op in left if problem.ops[op].effects), None)
        forward = any(problem.ops[op].phase == "forward" for op in left)
        makers = {v for op in left for v in problem.ops[op].outputs}
        ready = [
            op
            for op in left
            if makers.isdisjoint(problem.ops[op].inputs)
            and (not problem.ops[op].effects or op == effect)
            and (not forward or problem.ops[op].phase == "forward")
        ]
        again = [op for op in ran if problem.ops[op].recomputable]
        if again and rng.random() < 0.3:
            ran.append(rng.choice(again))
        ran.append(rng.choice(ready))
        left.remove(ran[-1])
    return plan_from_sequence(problem, ran)


def first_runs(plan: Plan) -> list[int]:
    return list(dict.fromkeys(action.op for action in plan if isinstance(action, Compute)))


def some_problem(seed: int) -> Problem:
    kinds = (training_graph(1 + seed % 3, seed), random_layered(4 + seed % 4, seed), random_chain(2 + seed % 2, seed))
    return (*kinds, adversarial(seed))[seed % 4]


def cases() -> Iterator[tuple[Problem, Plan, Certificate, Relaxation]]:
    """Small problems, a plan of each, and moments that the order allows."""
    for seed in range(400):
        rng = random.Random(seed)
        problem = some_problem(seed)
        if not problem.ops or len(problem.ops) > MOST_OPS or len(problem.values) > MOST_VALUES:
            continue
        problem = replace(problem, link=None)
        plan = reordered(problem, rng) if rng.random() < 0.5 else random_plan(problem, seed)
        assert not validate(problem, plan)
        order = Order.GIVEN if keeps_order(plan) and rng.random() < 0.5 else Order.FREE
        ran = first_runs(plan)
        for count in range(MOST_MOMENTS, -1, -1):
            chosen = rng.sample(ran, min(count, len(ran)))
            at = tuple(op for op in ran if op in chosen)
            intervals = tuple((i, j) for i in range(len(at)) for j in range(i + 1, len(at) + 1) if rng.random() < 0.6)
            budget_bytes = simulate(problem, plan).peak_bytes
            certificate = Certificate(problem.fingerprint, budget_bytes, order, at, None, intervals)
            try:
                relaxation = Relaxation(problem, certificate)
            except CertificateError:
                continue  # not one after the other in every plan
            yield problem, plan, certificate, relaxation
            break


def names(problem: Problem, last: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All that a row could be called, and a little beyond: one more op, value and stage than there is."""
    ops, values, stages = range(len(problem.ops) + 1), range(len(problem.values) + 1), range(last + 2)
    yield from (("memory", (k,)) for k in stages)
    yield from (("stay", name) for name in product(values, stages, stages))
    yield from (("input", name) for name in product(ops, values, stages, stages))
    yield from (("inside", name) for name in product(ops, stages, stages, stages, stages))
    yield from (("split", name) for parts in (2, 3, 4) for name in product(ops, *(stages,) * parts))
    yield from ((kind, (op,)) for kind in ("once", "only") for op in ops)


def test_whatever_row_is_accepted_holds_for_every_plan() -> None:
    plans = reorders = accepted = refused = 0
    for problem, plan, certificate, relaxation in cases():
        plans += 1
        reorders += not keeps_order(plan)
        reading = Reading(problem, plan, certificate.at)
        for kind, indices in names(problem, relaxation.last):
            try:
                coefficients, constant = relaxation.row(kind, indices)
            except CertificateError:
                refused += 1
                continue
            accepted += 1
            for variable in coefficients:
                low, high = relaxation.box(variable)
                assert low <= reading.value(variable) <= high, (problem.name, certificate, variable)
            holds = sum(c * reading.value(v) for v, c in coefficients.items()) + constant >= 0
            assert holds, (problem.name, certificate, kind, indices)
    assert plans > 100
    assert reorders > 20
    assert accepted > 10_000
    assert refused > 10_000


def test_reading_a_constant_needs_no_run() -> None:
    """A constant has no op that makes it, so that nobody has to run one; op -1 is not the last one."""
    values = (Value("weight", 1, "constant"), Value("x", 1, "activation"), Value("y", 1, "activation"))
    ops = (Op("first", "forward", (0,), (1,), 1), Op("last", "forward", (1,), (2,), 1))
    problem = Problem("reads a constant", ops, values, (2,))
    leaf = Leaf(multipliers=(("input", (0, 0, 0, 0), 1.0),))
    certificate = Certificate(problem.fingerprint, 1000, Order.GIVEN, (0,), None, leaves=(leaf,))
    with pytest.raises(CertificateError, match="no run"):
        check_certificate(problem, certificate)
