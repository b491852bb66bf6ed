"""A problem as a networkx graph, for people and for graph algorithms at the edge; inside, graphs are flat tuples.

A bipartite DiGraph: nodes `("op", i)` and `("value", i)` carry every field of the Op or Value beside its wiring;
an edge value -> op says that the op reads the value, an edge op -> value that it creates it. `position` on an edge
is the place among the op's inputs or outputs (the first, where a value is read twice: `positions` has all).
The graph's attributes are name, results, link, reserve_bytes and costs.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from remat_solvers.errors import ProblemError
from remat_solvers.problem import Op, Problem, Value

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["from_networkx", "to_networkx"]

WIRING = ("inputs", "outputs")
GRAPH_FIELDS = ("name", "results", "link", "reserve_bytes", "costs")


def to_networkx(problem: Problem) -> nx.DiGraph:
    """The annotated bipartite graph of `problem`; `from_networkx` gives the problem back."""
    import networkx as nx

    graph = nx.DiGraph(**{name: getattr(problem, name) for name in GRAPH_FIELDS})
    for index, value in enumerate(problem.values):
        graph.add_node(("value", index), **_attributes(value))
    for index, op in enumerate(problem.ops):
        graph.add_node(("op", index), **_attributes(op))
        for read in dict.fromkeys(op.inputs):
            positions = tuple(k for k, v in enumerate(op.inputs) if v == read)
            graph.add_edge(("value", read), ("op", index), position=positions[0], positions=positions)
        for position, created in enumerate(op.outputs):
            graph.add_edge(("op", index), ("value", created), position=position, positions=(position,))
    return graph


def from_networkx(graph: nx.DiGraph) -> Problem:
    """The problem whose `to_networkx()` gave `graph`, or one edited since; ProblemError where it is none.

    Wiring is read from the edges, everything else from the attributes.
    """
    ops = [node for kind, node in graph if kind == "op"]
    values = [node for kind, node in graph if kind == "value"]
    for kind, indices in (("op", ops), ("value", values)):
        if sorted(indices) != list(range(len(indices))):
            raise ProblemError(f"{kind} nodes", "must be numbered from 0 without a gap")
    return Problem(
        ops=tuple(_op(graph, i) for i in range(len(ops))),
        values=tuple(Value(**graph.nodes["value", i]) for i in range(len(values))),
        **{name: graph.graph[name] for name in GRAPH_FIELDS},
    )


def _op(graph: nx.DiGraph, index: int) -> Op:
    node = ("op", index)
    inputs = _wire(index, [(value, data) for (_, value), _, data in graph.in_edges(node, data=True)])
    outputs = _wire(index, [(value, data) for _, (_, value), data in graph.out_edges(node, data=True)])
    return Op(**graph.nodes[node], inputs=inputs, outputs=outputs)


def _wire(index: int, edges: list[tuple[int, dict[str, Any]]]) -> tuple[int, ...]:
    """Values in the order of the positions on their edges."""
    placed = sorted((position, value) for value, data in edges for position in data["positions"])
    if [position for position, _ in placed] != list(range(len(placed))):
        raise ProblemError(f"op node {index}", "the positions on its edges must count from 0 without a gap")
    return tuple(value for _, value in placed)


def _attributes(item: Op | Value) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item) if f.name not in WIRING}
