"""Tests of TFLMS by hand: orders, triggers by distance, and the order in which values are swapped."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, training_graph
from remat_solvers.plan import Fetch, Offload
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.registry import create
from remat_solvers.result import Status
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.tflms import STRATEGIES, OrderedGraph, Strategy
from tests.solvers.makers import with_link
from tests.solvers.swap.test_meng import rewritten


def fork(first_bytes: int = 10) -> Problem:
    """e reads the output of d(b), and c; b and c read a. Backward of c and a reads a's output, of d and b that of b."""
    reads = {"a": (), "b": (0,), "d": (1,), "c": (0,), "e": (2, 3)}
    ops = [Op(name, "forward", inputs, (k,), 10) for k, (name, inputs) in enumerate(reads.items())]
    ops += [
        Op("E", "backward", (2, 3, 4), (5,), 10),
        Op("C", "backward", (0, 5), (6,), 10),
        Op("D", "backward", (1, 5), (7,), 10),
        Op("B", "backward", (1, 7), (8,), 10),
        Op("A", "backward", (0, 6, 8), (9,), 10),
    ]
    sizes = [first_bytes, *[10] * 9]
    values = [Value(f"v{k}", size, "activation" if k < 5 else "gradient") for k, size in enumerate(sizes)]
    return Problem("fork", tuple(ops), tuple(values), (9,), link=Link(10**11, 10**11))


def test_orders() -> None:
    graph = OrderedGraph(fork())
    assert graph.order == [0, 1, 2, 1, 3, 4, 5, 5, 6, 7]
    assert graph.backward_from == 4
    assert [graph.problem.ops[op].name for op in graph.breadth_first()] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("lb", [1, 2, 3, 5])
def test_chain_rule_on_a_chain(lb: int) -> None:
    """F1..F9 and B9..B1: the output of F1 is read by B2. B(2+lb) reads the output of F(1+lb), lb ops before B2."""
    problem = with_link(chain(9))
    graph = OrderedGraph(problem)
    b2 = next(k for k, op in enumerate(problem.ops) if op.target == "B2")
    trigger = graph.trigger(0, b2, lb, 10_000, "chain_rule")
    assert trigger is not None
    assert problem.ops[trigger].target == f"B{2 + lb}"
    assert graph.trigger(0, b2, lb, lb, "chain_rule") is None  # the distances below ub


def test_direct_order_on_a_chain() -> None:
    """Orders on a chain are positions. The trigger is below order(B2) - lb, above order(B2) - ub and the order of
    F1."""
    problem = with_link(chain(9))
    graph = OrderedGraph(problem)
    b2 = next(k for k, op in enumerate(problem.ops) if op.target == "B2")
    assert [graph.trigger(0, b2, lb, 10_000, "direct_order") for lb in (1, 2, 5)] == [b2 - 2, b2 - 3, b2 - 6]
    assert graph.trigger(0, b2, 3, 4, "direct_order") is None
    assert graph.trigger(0, b2, b2, 10_000, "direct_order") is None


def test_near_the_start_of_backward_chain_rule_is_direct_order() -> None:
    """B8 is one order above the first backward op, which is less than 2."""
    problem = with_link(chain(9))
    graph = OrderedGraph(problem)
    b8 = next(k for k, op in enumerate(problem.ops) if op.target == "B8")
    assert graph.trigger(6, b8, 1, 10_000, "chain_rule") == b8 - 1 == graph.order[b8] - 1
    assert graph.trigger(6, b8, 2, 10_000, "chain_rule") == graph.trigger(6, b8, 2, 10_000, "direct_order")


def test_a_trigger_runs_before_the_reader() -> None:
    """Next to a, E, D and B read b's and c's outputs. E alone has an order below C's, all have below A's."""
    problem = fork()
    names = [op.name for op in problem.ops]
    graph = OrderedGraph(problem)
    assert graph.trigger(0, names.index("A"), 1, 10_000, "chain_rule") == names.index("B")
    assert graph.trigger(0, names.index("C"), 1, 10_000, "chain_rule") == names.index("E")


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), lb=st.integers(1, 6), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=200)
def test_triggers_close_no_cycle(n: int, seed: int, lb: int, strategy: Strategy) -> None:
    problem = with_link(training_graph(n, seed))
    swaps = [s for own in OrderedGraph(problem).edges_to_cut(lb, 10_000, strategy, True) for s in own]
    assert all(s.interval.last <= s.fetch - 1 < s.interval.back for s in swaps)
    assert nx.is_directed_acyclic_graph(rewritten(problem, swaps))


def test_the_first_values_in_breadth_first_order_are_swapped() -> None:
    """Backward reads v2, v3 and v4 at once."""
    cuts = OrderedGraph(fork()).edges_to_cut(1, 10_000, "chain_rule", True)
    assert [[s.interval.value for s in own] for own in cuts] == [[0], [1]]
    problem = with_link(chain(9, size_bytes=10))
    plan = solve(problem, 89, solver=create("tflms", n_tensors=2, lb=1, strategy="chain_rule")).plan
    assert plan is not None
    assert {a.value for a in plan if isinstance(a, Offload)} == {0, 1}


def test_swap_ins_are_fused_or_one_per_reader() -> None:
    """C and A read v0: it is off the device before C and, without fusion, also between C and A."""
    graph = OrderedGraph(fork())
    names = [op.name for op in graph.problem.ops]
    fused, single = (graph.edges_to_cut(1, 10_000, "chain_rule", fuse)[0] for fuse in (True, False))
    assert [(names[s.interval.last], names[s.interval.back]) for s in fused] == [("c", "C")]
    assert [(names[s.interval.last], names[s.interval.back]) for s in single] == [("c", "C"), ("C", "A")]


def test_a_value_dropped_twice_is_copied_to_the_host_once() -> None:
    """v0 of 40 bytes fits neither beside e nor beside D."""
    problem = fork(first_bytes=40)
    result = solve(problem, 70, solver=create("tflms", fuse_swapins=False))
    assert result.plan is not None
    moved = [type(a) for a in result.plan if getattr(a, "value", None) == 0 and isinstance(a, Offload | Fetch)]
    assert moved == [Offload, Fetch, Fetch]


def test_a_larger_distance_hides_a_slow_link() -> None:
    """Three copies take two ops each: for values that consecutive ops read, one op is not enough, eight are."""
    problem = replace(chain(20, size_bytes=20, forward_ns=20, backward_ns=10), link=Link(10**9, 10**9))
    waits = []
    for lb in (1, 8):
        solver = create("tflms", n_tensors=3, lb=lb, strategy="chain_rule")
        plan = solve(problem, 380, solver=solver).plan
        assert plan is not None
        waits.append(simulate(problem, plan).wait_ns)
    assert waits[0] > waits[1] == 0


def test_tflms_refuses_unsupported_problems() -> None:
    assert solve(chain(6), 4, solver="tflms").status is Status.NOT_APPLICABLE
    for options in ({"n_tensors": 0}, {"lb": 0}, {"ub": -3}, {"strategy": "bfs"}):
        with pytest.raises(InputError, match="tflms"):
            create("tflms", **options)
