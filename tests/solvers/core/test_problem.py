"""Tests of the conversion of problems to networkx graphs and back."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import ProblemError
from remat_solvers.generate import adversarial, training_graph
from remat_solvers.problem import Costs, Op, Problem, Value


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), link=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_round_trip_is_exact(n: int, seed: int, link: bool) -> None:
    for problem in (training_graph(n, seed, link=link), adversarial(seed)):
        graph = problem.to_networkx()
        assert nx.is_directed_acyclic_graph(graph)
        assert Problem.from_networkx(graph) == problem


def test_nodes_edges_and_graph_carry_everything() -> None:
    op = Op("mul", "forward", (0, 1, 0), (2, 3), 7, 11, False, ("random",), "aten.mul", "h.0", "model.py:3")
    kinds = (("w", "constant"), ("x", "constant"), ("y", "activation"), ("mask", "activation"))
    costs = Costs("measure", "cpu", 1, "2.13", workspace=True)
    values = tuple(Value(name, 5, kind) for name, kind in kinds)  # type: ignore[arg-type]
    problem = Problem("p", (op,), values, (2,), reserve_bytes=9, costs=costs)
    graph = problem.to_networkx()
    assert graph.nodes["value", 3] == {"name": "mask", "bytes": 5, "kind": "activation"}
    assert graph.nodes["op", 0] == {
        "name": "mul",
        "phase": "forward",
        "time_ns": 7,
        "workspace_bytes": 11,
        "recomputable": False,
        "effects": ("random",),
        "target": "aten.mul",
        "module": "h.0",
        "source": "model.py:3",
    }
    assert {(a, b): d["position"] for a, b, d in graph.edges(data=True)} == {
        (("value", 0), ("op", 0)): 0,
        (("value", 1), ("op", 0)): 1,
        (("op", 0), ("value", 2)): 0,
        (("op", 0), ("value", 3)): 1,
    }
    assert graph.edges[("value", 0), ("op", 0)]["positions"] == (0, 2)
    assert graph.graph == {"name": "p", "results": (2,), "link": None, "reserve_bytes": 9, "costs": costs}
    assert Problem.from_networkx(graph).costs == costs


def test_an_edited_graph_is_read_from_its_edges_and_checked() -> None:
    graph = training_graph(4, 2).to_networkx()
    reader = next(node for node in graph if node[0] == "op" and graph.in_degree(node))
    graph.remove_node(next(iter(graph.predecessors(reader))))
    with pytest.raises(ProblemError):
        Problem.from_networkx(graph)
