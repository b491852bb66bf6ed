"""Finds the articulation points of the forward graph: ops through which everything before reaches everything after."""

from __future__ import annotations

from remat_solvers.problem import Problem


def articulation_positions(problem: Problem) -> tuple[int, ...]:
    """Positions, among the forward ops, of the articulation points of the undirected forward graph.

    The graph is restricted to the ops that lead to the forward op with the most ancestors. Statistics and buffer
    updates on the side, which lead nowhere in the forward pass, would make articulation points that separate nothing.
    """
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(problem.forward_ops)
    for op in problem.forward_ops:
        graph.add_edges_from((problem.producer[v], op) for v in problem.ops[op].inputs if problem.producer[v] >= 0)
    if not graph:
        return ()
    trunk = max(({op} | nx.ancestors(graph, op) for op in graph if not graph.out_degree(op)), key=len)
    points = set(nx.articulation_points(graph.subgraph(trunk).to_undirected()))
    return tuple(k for k, op in enumerate(problem.forward_ops) if op in points)
