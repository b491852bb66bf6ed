"""Tests of the rows of certificates: every row that the checker accepts holds for every plan.

The variables of a plan are read from its actions, by the definitions in the docstring of certificates/rows.py."""

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

MAX_OPS, MAX_VALUES, MAX_MOMENTS = 8, 9, 3


class PlanVariables:
    """The 0/1 variables of a plan: the resident values at each moment, and the computed ops of each stage."""

    def __init__(self, problem: Problem, plan: Plan, at: tuple[int, ...]) -> None:
        self.resident: list[set[int]] = []  # per moment
        self.runs: list[set[int]] = [set()]  # per stage
        on_device: set[int] = set()
        for action in plan:
            if isinstance(action, Free):
                on_device.discard(action.value)
            elif isinstance(action, Compute):
                on_device.update(problem.ops[action.op].outputs)
                self.runs[-1].add(action.op)
                if len(self.resident) < len(at) and action.op == at[len(self.resident)]:
                    self.resident.append(set(on_device))
                    self.runs.append(set())
        self.resident.append(on_device)

    def value(self, variable: Variable) -> int:
        kind, indices = variable
        if kind == "stay":
            value, moment = indices
            return int(value in self.resident[moment])
        op, first, last = indices
        return int(any(op in stage for stage in self.runs[first : last + 1]))


def reordered(problem: Problem, rng: random.Random) -> Plan:
    """A plan with another order of first computations and a few recomputations."""
    computed: list[int] = []
    remaining = list(range(len(problem.ops)))
    while remaining:
        effect = next((op for op in remaining if problem.ops[op].effects), None)
        forward = any(problem.ops[op].phase == "forward" for op in remaining)
        missing = {v for op in remaining for v in problem.ops[op].outputs}
        ready = [
            op
            for op in remaining
            if missing.isdisjoint(problem.ops[op].inputs)
            and (not problem.ops[op].effects or op == effect)
            and (not forward or problem.ops[op].phase == "forward")
        ]
        recomputable = [op for op in computed if problem.ops[op].recomputable]
        if recomputable and rng.random() < 0.3:
            computed.append(rng.choice(recomputable))
        computed.append(rng.choice(ready))
        remaining.remove(computed[-1])
    return plan_from_sequence(problem, computed)


def first_computations(plan: Plan) -> list[int]:
    return list(dict.fromkeys(action.op for action in plan if isinstance(action, Compute)))


def small_problem(seed: int) -> Problem:
    kinds = (training_graph(1 + seed % 3, seed), random_layered(4 + seed % 4, seed), random_chain(2 + seed % 2, seed))
    return (*kinds, adversarial(seed))[seed % 4]


def cases() -> Iterator[tuple[Problem, Plan, Certificate, Relaxation]]:
    """Small problems, each with a plan and with moments that the order allows."""
    for seed in range(400):
        rng = random.Random(seed)
        problem = small_problem(seed)
        if not problem.ops or len(problem.ops) > MAX_OPS or len(problem.values) > MAX_VALUES:
            continue
        problem = replace(problem, link=None)
        plan = reordered(problem, rng) if rng.random() < 0.5 else random_plan(problem, seed)
        assert not validate(problem, plan)
        order = Order.GIVEN if keeps_order(plan) and rng.random() < 0.5 else Order.FREE
        computed = first_computations(plan)
        for count in range(MAX_MOMENTS, -1, -1):
            chosen = rng.sample(computed, min(count, len(computed)))
            at = tuple(op for op in computed if op in chosen)
            intervals = tuple((i, j) for i in range(len(at)) for j in range(i + 1, len(at) + 1) if rng.random() < 0.6)
            budget_bytes = simulate(problem, plan).peak_bytes
            certificate = Certificate(problem.fingerprint, budget_bytes, order, at, None, intervals)
            try:
                relaxation = Relaxation(problem, certificate)
            except CertificateError:
                continue  # the moments are not ordered in every plan
            yield problem, plan, certificate, relaxation
            break


def row_names(problem: Problem, last: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All possible names of rows, and some beyond: with one more op, value and stage than the problem has."""
    ops, values, stages = range(len(problem.ops) + 1), range(len(problem.values) + 1), range(last + 2)
    yield from (("memory", (k,)) for k in stages)
    yield from (("stay", name) for name in product(values, stages, stages))
    yield from (("input", name) for name in product(ops, values, stages, stages))
    yield from (("inside", name) for name in product(ops, stages, stages, stages, stages))
    yield from (("split", name) for parts in (2, 3, 4) for name in product(ops, *(stages,) * parts))
    yield from ((kind, (op,)) for kind in ("once", "only") for op in ops)


def test_every_accepted_row_holds_for_every_plan() -> None:
    plans = reorders = accepted = refused = 0
    for problem, plan, certificate, relaxation in cases():
        plans += 1
        reorders += not keeps_order(plan)
        variables = PlanVariables(problem, plan, certificate.at)
        for kind, indices in row_names(problem, relaxation.last):
            try:
                coefficients, constant = relaxation.row(kind, indices)
            except CertificateError:
                refused += 1
                continue
            accepted += 1
            for variable in coefficients:
                low, high = relaxation.box(variable)
                assert low <= variables.value(variable) <= high, (problem.name, certificate, variable)
            holds = sum(c * variables.value(v) for v, c in coefficients.items()) + constant >= 0
            assert holds, (problem.name, certificate, kind, indices)
    assert plans > 100
    assert reorders > 20
    assert accepted > 10_000
    assert refused > 10_000


def test_reading_a_constant_needs_no_computation() -> None:
    """No op computes a constant, so no computation is required; op -1 is not the last op."""
    values = (Value("weight", 1, "constant"), Value("x", 1, "activation"), Value("y", 1, "activation"))
    ops = (Op("first", "forward", (0,), (1,), 1), Op("last", "forward", (1,), (2,), 1))
    problem = Problem("reads a constant", ops, values, (2,))
    leaf = Leaf(multipliers=(("input", (0, 0, 0, 0), 1.0),))
    certificate = Certificate(problem.fingerprint, 1000, Order.GIVEN, (0,), None, leaves=(leaf,))
    with pytest.raises(CertificateError, match="no run"):
        check_certificate(problem, certificate)
