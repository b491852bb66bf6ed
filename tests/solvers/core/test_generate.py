"""Tests of the generators: published problems equal their records, a seed gives one problem, and plans are valid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import adversarial, chain, random_chain, random_layered, random_plan, training_graph
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem


def test_the_chain_is_that_of_the_corpus() -> None:
    assert chain(50) == corpus_problem("chain50")


@pytest.mark.parametrize(("n", "edges"), [(100, 236), (250, 944), (500, 2461), (1000, 5857)])
def test_layered_graphs_have_the_density_of_the_literature(n: int, edges: int) -> None:
    assert sum(len(op.inputs) for op in random_layered(n, n).ops) == pytest.approx(edges, rel=0.02)
    assert sum(len(op.inputs) for op in random_layered(n, n, edges=edges).ops) == edges


def test_a_layered_op_has_a_parent_and_a_reader_except_at_the_ends() -> None:
    problem = random_layered(200, 5)
    sinks = set(problem.results)
    assert all(bool(problem.consumers[v]) != (v in sinks) for v in range(200))
    assert sum(not op.inputs for op in problem.ops) < 20


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), link=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_same_seed_gives_the_same_problem_and_a_valid_plan(n: int, seed: int, link: bool) -> None:
    for make in (lambda: training_graph(n, seed, link=link), lambda: adversarial(seed), lambda: random_chain(n, seed)):
        problem = make()
        assert problem == make()
        plan = random_plan(problem, seed)
        assert plan == random_plan(problem, seed)
        assert validate(problem, plan) == []
