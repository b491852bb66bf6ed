"""Tests of certificates: brute force confirms them, both programs agree, and tampered ones prove nothing false."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.certificates.check import check_certificate
from remat_solvers.errors import CertificateError, FormatError, InputError
from remat_solvers.formats import (
    decode,
    encode_certificate,
    load_certificate,
    save_certificate,
    save_problem,
)
from remat_solvers.generate import adversarial, chain, random_chain, training_graph
from remat_solvers.optimal.certify import certify, certify_floor
from remat_solvers.optimal.certify_tree import certify_tree
from remat_solvers.problem import Link, Problem
from remat_solvers.recompute.brute_force.states import Search
from remat_solvers.result import Certificate, Leaf, Order
from remat_solvers.schedule import baseline
from tests.solvers.makers import corpus_problem

ORDERS = (Order.GIVEN, Order.FREE)


def optimum(problem: Problem, budget_bytes: int, order: Order) -> int | None:
    """The smallest time of any plan, including those that compute ops before the tangents; None if no plan fits."""
    search = Search(problem, budget_bytes, "free" if order is Order.FREE else "given", None, tangents_first=False)
    sequence = search.shortest(cheapest=True)
    return None if sequence is None else sum(problem.ops[op].time_ns for op in sequence)


def path(problem: Problem, order: Order, rng: random.Random) -> tuple[int, ...]:
    """Random ops whose first computations are ordered: any ops, or a random walk along inputs and outputs."""
    if order is Order.GIVEN or not problem.ops:
        return tuple(sorted(rng.sample(range(len(problem.ops)), rng.randint(0, min(4, len(problem.ops))))))
    walk = [rng.randrange(len(problem.ops))]
    while readers := [c for v in problem.ops[walk[-1]].outputs for c in problem.consumers[v]]:
        walk.append(rng.choice(readers))
    later = [op for op in problem.backward_ops if problem.ops[walk[-1]].phase == "forward"]
    walk += rng.sample(later, min(1, len(later)))
    return tuple(op for op in walk if rng.random() < 0.7)


def random_intervals(at: tuple[int, ...], rng: random.Random) -> tuple[tuple[int, int], ...]:
    pairs = [(i, j) for i in range(len(at) + 1) for j in range(i + 1, len(at) + 1)]
    return tuple(rng.sample(pairs, rng.randint(0, len(pairs))))


def tiny(seed: int) -> Problem:
    kinds = (training_graph(1 + seed % 4, seed), adversarial(seed), random_chain(2 + seed % 3, seed), chain(4))
    return kinds[seed % len(kinds)]


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=400, deadline=None)
def test_no_plan_is_faster_than_the_certified_bound(seed: int, share: float) -> None:
    """Exhaustive search confirms any moments and intervals, in both orders; a second LP proves the same bound."""
    problem, rng = tiny(seed), random.Random(seed)
    if len(problem.ops) > 8:
        return
    low, high = peak_bound_bytes(problem), baseline(problem).peak_bytes
    budget_bytes = max(0, low - 1) + round(share * (high - low + 1))
    for order in ORDERS:
        at = path(problem, order, rng)
        intervals = random_intervals(at, rng)
        certificate = certify(problem, budget_bytes, order=order, at=at, intervals=intervals)
        best = optimum(problem, budget_bytes, order)
        proven = check_certificate(problem, certificate)
        assert proven == certificate.bound_ns
        if best is not None:
            assert proven is not None
            assert proven <= best
        recomputed = check_certificate(problem, replace(certificate, leaves=(), bound_ns=None if proven is None else 0))
        assert (recomputed is None) == (proven is None)
        if proven is not None and recomputed is not None:
            assert abs(recomputed - proven) <= 1 + proven * 1e-6


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_no_plan_fits_below_a_certified_floor(seed: int) -> None:
    problem, rng = tiny(seed), random.Random(seed)
    if len(problem.ops) > 8:
        return
    sizes = [0 if value.kind == "constant" else value.bytes for value in problem.values]
    for order in ORDERS:
        at = path(problem, order, rng)
        floor = certify_floor(problem, order=order, at=at, intervals=random_intervals(at, rng))
        lowest = problem.static_bytes + sum(sizes[v] for v in set(problem.results))
        if floor is None:
            assert lowest == 0
            continue
        assert floor.budget_bytes >= lowest - 1
        assert check_certificate(problem, floor) is None
        assert optimum(problem, floor.budget_bytes, order) is None
        with pytest.raises(CertificateError):
            check_certificate(problem, replace(floor, budget_bytes=floor.budget_bytes + 1))


@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_tampered_certificate_is_true_or_rejected(seed: int, data: st.DataObject) -> None:
    problem, rng = tiny(seed), random.Random(seed)
    if not 1 <= len(problem.ops) <= 7:
        return
    low, high = peak_bound_bytes(problem), baseline(problem).peak_bytes
    order = rng.choice(ORDERS)
    at = path(problem, order, rng)
    good = certify(problem, (low + high) // 2, order=order, at=at, intervals=random_intervals(at, rng))
    bad, checked_problem = tampered(good, problem, rng, data.draw(st.integers(0, 9)))
    try:
        proven = check_certificate(checked_problem, bad)
    except CertificateError:
        return
    best = optimum(checked_problem, bad.budget_bytes, bad.order)
    assert best is None or (proven is not None and proven <= best)
    assert proven is None or (bad.bound_ns is not None and bad.bound_ns <= proven)


def tampered(good: Certificate, problem: Problem, rng: random.Random, case: int) -> tuple[Certificate, Problem]:
    """The certificate and the problem that it is checked on, one of them changed in one place."""
    leaf = good.leaves[0]
    weights = list(leaf.multipliers)
    if case == 0:
        return replace(good, bound_ns=(good.bound_ns or 0) + rng.randint(1, 9)), problem
    if case == 1:
        at = list(good.at)
        if at:
            at[rng.randrange(len(at))] = rng.randrange(len(problem.ops))
        return replace(good, at=tuple(at)), problem
    if case == 2:
        return replace(good, budget_bytes=max(0, good.budget_bytes + rng.choice((-5, 1, 5, 50)))), problem
    if case == 3:
        return replace(good, order=ORDERS[good.order is Order.GIVEN]), problem
    if case == 4 and weights:
        k = rng.randrange(len(weights))
        kind, indices, weight = weights[k]
        weights[k] = (kind, indices, rng.choice((-weight, 3 * weight, 0.0, weight + 1)))
    elif case == 5 and weights:
        k = rng.randrange(len(weights))
        kind, indices, weight = weights[k]
        shifted = tuple(max(0, i + rng.choice((-1, 0, 1))) for i in indices)
        weights[k] = (kind, shifted, weight)
    elif case == 6:
        return replace(good, bound_ns=None), problem
    elif case == 7 and problem.ops:
        ops = list(problem.ops)
        k = rng.randrange(len(ops))
        ops[k] = replace(ops[k], time_ns=ops[k].time_ns // 2)
        return good, replace(problem, ops=tuple(ops))
    elif case == 8 and problem.values:
        values = list(problem.values)
        k = rng.randrange(len(values))
        values[k] = replace(values[k], bytes=values[k].bytes + 1)
        return good, replace(problem, values=tuple(values))
    elif case == 9:
        run = ("run", (rng.randrange(len(problem.ops)),) + (rng.randrange(len(good.at) + 1),) * 2, rng.randint(0, 1))
        return replace(good, leaves=(replace(leaf, fixed=(run,)),)), problem
    return replace(good, leaves=(replace(leaf, multipliers=tuple(weights)),)), problem


INTERVALS = tuple((i, j) for i in range(5) for j in range(i + 1, 5))


@pytest.fixture(scope="module")
def sample() -> tuple[Problem, Certificate]:
    problem = random_chain(5, 2)
    certificate = certify(problem, 12, order=Order.GIVEN, at=(4, 5, 6, 7), intervals=INTERVALS)
    assert certificate.bound_ns is not None
    assert certificate.bound_ns > sum(op.time_ns for op in problem.ops)
    assert check_certificate(problem, certificate) == certificate.bound_ns
    return problem, certificate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bound_ns": 10**6}, "claimed"),
        ({"bound_ns": None}, "no plan fits"),
        ({"bound_ns": True}, "bound_ns"),
        ({"bound_ns": 1.0}, "bound_ns"),
        ({"problem": "0" * 64}, "another problem"),
        ({"problem": 3}, "problem"),
        ({"budget_bytes": 13}, "claimed"),
        ({"budget_bytes": -1}, "budget_bytes"),
        ({"budget_bytes": True}, "budget_bytes"),
        ({"order": "sideways"}, "order"),
        ({"at": (4, 6, 5, 7)}, "need not be computed first after"),
        ({"at": (4, 5, 5, 7)}, "need not be computed first after"),
        ({"at": (4, 5, 6, 99)}, "no op 99"),
        ({"at": [4, 5, 6, 7]}, "at"),
        ({"at": (5, 6, 7)}, "stages"),
        ({"intervals": ((0, 5),)}, "no run of stages"),
        ({"intervals": ((1, 1),)}, "no run of stages"),
        ({"intervals": ((0,),)}, "pair"),
        ({"intervals": ()}, "no row|has no run"),
        ({"leaves": None}, "tuple"),
        ({"leaves": ("leaf",)}, "Leaf"),
        ({"leaves": (Leaf(multipliers=(("memory", (0,), float("nan")),)),)}, "float|0 or 1"),
        ({"leaves": (Leaf(multipliers=(("memory", (0,), float("inf")),)),)}, "float|0 or 1"),
        ({"leaves": (Leaf(multipliers=(("memory", (0,), 1),)),)}, "float|0 or 1"),
        ({"leaves": (Leaf(multipliers=(("memory", (0, 1), 1.0),)),)}, "indices"),
        ({"leaves": (Leaf(multipliers=(("nothing", (0,), 1.0),)),)}, "memory"),
        ({"leaves": (Leaf(multipliers=(("memory", (9,), 1.0),)),)}, "no row memory"),
        ({"leaves": (Leaf(multipliers=(("stay", (99, 0, 0), 1.0),)),)}, "no row stay"),
        ({"leaves": (Leaf(multipliers=(("input", (7, 0, 1, 1), 1.0),)),)}, "no row input"),
        ({"leaves": (Leaf(multipliers=(("inside", (0, 0, 1, 1, 2), 1.0),)),)}, "no row inside"),
        ({"leaves": (Leaf(multipliers=(("split", (0, 2, 1, 1), 1.0),)),)}, "no row split"),
        ({"leaves": (Leaf(multipliers=(("only", (0,), 1.0),)),)}, "no row only"),
        ({"leaves": (Leaf(),)}, "claimed"),
        ({"leaves": (Leaf(fixed=(("run", (0, 1, 1), 0),)),)}, "no leaf covers"),
        ({"leaves": (Leaf(fixed=(("run", (0, 1, 1), 2),)),)}, "float|0 or 1"),
        ({"leaves": (Leaf(), Leaf())}, "do not split"),
        ({"leaves": (Leaf(fixed=(("run", (0, 1, 1), 0),)), Leaf(fixed=(("run", (1, 1, 1), 1),)))}, "do not split"),
        ({"leaves": (Leaf(fixed=(("run", (99, 1, 1), 0),)), Leaf(fixed=(("run", (99, 1, 1), 1),)))}, "there is no run"),
    ],
)
def test_the_error_names_the_fault(
    sample: tuple[Problem, Certificate], changes: dict[str, object], message: str
) -> None:
    problem, certificate = sample
    with pytest.raises(CertificateError, match=message):
        check_certificate(problem, replace(certificate, **changes))  # type: ignore[arg-type]


def test_a_certificate_holds_for_its_problem_and_plans_without_offload(sample: tuple[Problem, Certificate]) -> None:
    problem, certificate = sample
    wider = replace(problem, values=(replace(problem.values[0], bytes=2), *problem.values[1:]))
    with pytest.raises(CertificateError, match="another problem"):
        check_certificate(wider, certificate)
    with pytest.raises(CertificateError, match="offload"):
        check_certificate(replace(problem, link=Link(1, 1)), certificate)
    faster = replace(problem, ops=tuple(replace(op, time_ns=op.time_ns // 2) for op in problem.ops))
    with pytest.raises(CertificateError, match="claimed"):
        check_certificate(faster, certificate)
    with pytest.raises(InputError, match="one after the other"):
        certify(problem, 4, order=Order.GIVEN, at=(8, 5))


@pytest.mark.parametrize("order", ORDERS)
def test_leaves_prove_the_weakest_of_their_bounds(order: Order) -> None:
    """Two cases of a variable, each with the multipliers of its own program, prove no more than the optimum."""
    problem = chain(6)
    certificate = certify(problem, 4, order=order, at=(5, 8))
    best = optimum(problem, 4, order)
    assert best is not None
    assert certificate.bound_ns is not None
    name = ("run", (2, 1, 1))
    leaves = tuple(Leaf(((*name, side),), certificate.leaves[0].multipliers) for side in (0, 1))
    proven = check_certificate(problem, replace(certificate, leaves=leaves))
    assert proven is not None
    assert certificate.bound_ns <= proven <= best


# Bounds of the plain relaxation for unet at 40 %, in % above store-all; its moments are the ops of most memory in equal
# slices, and the last op.
STUDIED = {(77, 91, 156): 12.64, (38, 77, 91, 126, 156): 12.44}


def test_the_studied_relaxations_of_unet() -> None:
    problem, budget_bytes, unmodified_ns = at_40_percent("unet")
    for at, percent in STUDIED.items():
        certificate = certify(problem, budget_bytes, order=Order.GIVEN, at=at)
        assert certificate.bound_ns is not None
        assert 100 * (certificate.bound_ns / unmodified_ns - 1) == pytest.approx(percent, abs=0.006)
        assert check_certificate(problem, certificate) == certificate.bound_ns


@pytest.mark.parametrize("name", ["unet", "gpt", "r50"])
def test_more_moments_prove_no_less_where_intervals_keep_the_old_stages(name: str) -> None:
    problem, budget_bytes, unmodified_ns = at_40_percent(name)
    count = len(problem.ops)
    coarse_moments = (count // 3, count // 2)
    fine_moments = (count // 4, *coarse_moments, 3 * count // 4)
    coarse = certify(problem, budget_bytes, order=Order.GIVEN, at=coarse_moments).bound_ns
    refined = certify(problem, budget_bytes, order=Order.GIVEN, at=fine_moments, intervals=((0, 1), (3, 4))).bound_ns
    assert coarse is not None
    assert refined is not None
    assert unmodified_ns <= coarse <= refined + 1


def at_40_percent(name: str) -> tuple[Problem, int, int]:
    """A problem, a budget of its static bytes plus 40 % of the rest of the store-all peak, and the store-all time."""
    problem = corpus_problem(name)
    unmodified = baseline(problem)
    base = problem.static_bytes
    return problem, base + int(0.4 * (unmodified.peak_bytes - base)), unmodified.time_ns


def test_files_survive_the_round_trip(sample: tuple[Problem, Certificate], tmp_path: Path) -> None:
    problem, certificate = sample
    free = certify(problem, 12, order=Order.FREE, at=(4, 7))
    for index, saved in enumerate((certificate, free, replace(certificate, bound_ns=None, leaves=()))):
        path = tmp_path / f"{index}.json"
        save_certificate(path, saved)
        assert load_certificate(path) == saved
        assert encode_certificate(load_certificate(path)) == path.read_bytes()
    save_problem(tmp_path / "problem.json", problem)
    with pytest.raises(FormatError, match="holds a problem, not a certificate"):
        load_certificate(tmp_path / "problem.json")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": 2}, "version"),
        ({"problem": "no"}, "problem"),
        ({"order": "sideways"}, "order"),
        ({"at": [-1]}, r"at\[0\]"),
        ({"at": 3}, "at"),
        ({"bound_ns": 1.5}, "bound_ns"),
        ({"intervals": [[0]]}, "intervals"),
        ({"more": 1}, "more"),
        ({"leaves": [{}]}, "fixed"),
        ({"leaves": [3]}, r"leaves\[0\]"),
        ({"leaves": [{"fixed": [], "multipliers": [["memory", 0]]}]}, r"leaves\[0\].multipliers\[0\]"),
        ({"leaves": [{"fixed": [], "multipliers": [["memory", "0", 1.0]]}]}, r"multipliers\[0\]\[1\]"),
        ({"leaves": [{"fixed": [], "multipliers": [["memory", 0, "1"]]}]}, r"multipliers\[0\]"),
        ({"leaves": [{"fixed": [["run", 0, 0, 0, 0.5]], "multipliers": []}]}, r"fixed\[0\]"),
    ],
)
def test_files_of_another_form_are_refused(
    sample: tuple[Problem, Certificate], change: dict[str, object], place: str
) -> None:
    document = {**json.loads(encode_certificate(sample[1])), **change}
    with pytest.raises(FormatError, match=place):
        decode(json.dumps(document).encode())


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_tree_proves_no_more_than_the_optimum_and_no_less_than_its_root(seed: int, share: float) -> None:
    problem, rng = tiny(seed), random.Random(seed)
    if len(problem.ops) > 8:
        return
    low, high = peak_bound_bytes(problem), baseline(problem).peak_bytes
    budget_bytes = low + round(share * (high - low))
    for order in ORDERS:
        at, best = path(problem, order, rng), optimum(problem, budget_bytes, order)
        root = certify(problem, budget_bytes, order=order, at=at)
        tree = certify_tree(problem, budget_bytes, order=order, at=at, target_ns=best or 10**6, nodes=20)
        proven = check_certificate(problem, tree)
        assert proven == tree.bound_ns
        if best is not None:
            assert proven is not None
            assert root.bound_ns is not None
            assert root.bound_ns <= proven <= best


def test_a_tree_closes_the_gap_of_the_relaxation() -> None:
    """Branching continues to the optimum that exhaustive search finds."""
    problem = random_chain(4, 0)
    best = optimum(problem, 16, Order.GIVEN)
    assert best is not None
    root = certify(problem, 16, order=Order.GIVEN, at=(3, 4, 5, 6))
    tree = certify_tree(problem, 16, order=Order.GIVEN, at=(3, 4, 5, 6), target_ns=best)
    assert root.bound_ns is not None
    assert tree.bound_ns is not None
    assert root.bound_ns < tree.bound_ns == best
    assert len(tree.leaves) > 1
    assert check_certificate(problem, tree) == tree.bound_ns
    with pytest.raises(CertificateError, match=r"no leaf covers|do not split"):
        check_certificate(problem, replace(tree, leaves=tree.leaves[1:]))
    decoded = decode(encode_certificate(tree))
    assert decoded == tree
