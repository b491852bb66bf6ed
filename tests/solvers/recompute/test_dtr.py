"""Tests of DTR and Belady: the papers' examples, evictions by hand, their laws on chains, and the replay engine."""

from __future__ import annotations

from collections import Counter
from math import isqrt

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import chain, random_chain, random_layered, training_graph
from remat_solvers.problem import Op, Phase, Problem, Value
from remat_solvers.recompute.belady import WEIGHTS, Belady
from remat_solvers.recompute.dtr import DTR, EVICTORS, HEURISTICS
from remat_solvers.result import Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.solving import solve
from remat_solvers.toolkit.eviction.memory import Memory
from remat_solvers.toolkit.eviction.neighbourhoods import REACH, Components, Neighbourhoods, ValueGraph
from remat_solvers.toolkit.eviction.replay import Replay
from remat_solvers.toolkit.eviction.settings import PATIENCE, THRASHING
from remat_solvers.validate import validate


def forward(*reads: tuple[int, ...], times: tuple[int, ...] = (), sizes: tuple[int, ...] = ()) -> Problem:
    """A forward graph: op i reads reads[i] and computes value i; the last value is the result."""
    ops = tuple(Op(f"t{i}", "forward", r, (i,), times[i] if times else 1) for i, r in enumerate(reads))
    values = tuple(Value(f"t{i}", sizes[i] if sizes else 1, "activation") for i in range(len(reads)))
    return Problem("graph", ops, values, (len(reads) - 1,))


def test_the_evicted_neighbourhood_of_the_paper() -> None:
    """In section 2, t0, t2, t3 and t6 are resident, e*(t2) = {t1, t4} and e*(t3) = {t1, t4, t5}."""
    graph = ValueGraph(forward((), (0,), (1,), (1,), (2, 3), (3,), (4, 5)))
    neighbourhoods = Neighbourhoods(graph, descendants=True)
    for value in (1, 4, 5):
        neighbourhoods.evict(value)
    assert neighbourhoods.ops(2) == {1, 2, 4}
    assert neighbourhoods.ops(3) == {1, 3, 4, 5}
    ancestors = Neighbourhoods(graph, descendants=False)
    ancestors.evicted[:] = neighbourhoods.evicted
    assert ancestors.ops(2) == {1, 2}
    assert ancestors.ops(6) == {4, 5, 6}


@given(seed=st.integers(0, 10**6), n=st.integers(2, 14))
@settings(max_examples=100, deadline=None)
def test_neighbourhoods_are_reached_by_evicted_paths(seed: int, n: int) -> None:
    """In the graph of t and the evicted values, e*(t) has all ancestors and descendants of t, after any evictions."""
    problem = random_layered(n, seed)
    graph = nx.DiGraph([(v, op) for op in range(n) for v in problem.ops[op].inputs])
    graph.add_nodes_from(range(n))
    exact, upstream = (Neighbourhoods(ValueGraph(problem), descendants=both) for both in (True, False))
    rng = np.random.default_rng(seed)
    evicted: set[int] = set()
    for _ in range(25):
        value = int(rng.integers(n))
        for neighbourhoods in (exact, upstream):
            (neighbourhoods.restore if value in evicted else neighbourhoods.evict)(value)
        evicted ^= {value}
        costs, ancestor_costs = exact.refresh(np.arange(n)), upstream.refresh(np.arange(n))
        for t in set(range(n)) - evicted:
            evicted_graph = graph.subgraph(evicted | {t})
            ancestors = nx.ancestors(evicted_graph, t)
            e_star = ancestors | nx.descendants(evicted_graph, t)
            assert exact.ops(t) - {t} == e_star
            assert costs[t] == sum(problem.ops[v].time_ns for v in e_star | {t})
            assert ancestor_costs[t] == sum(problem.ops[v].time_ns for v in ancestors | {t})


def test_components_leave_phantom_links() -> None:
    """The evicted values a - b - c are one component. When b is recomputed, a and c stay linked, without b's cost."""
    graph = ValueGraph(forward((), (0,), (1,), (2,), (3,), times=(1, 10, 100, 1000, 10000)))
    neighbourhoods = Components(graph)
    for value in (1, 2, 3):
        neighbourhoods.evict(value)
    assert neighbourhoods.cost_ns.tolist()[0] == 1 + 1110
    assert neighbourhoods.cost_ns.tolist()[4] == 10000 + 1110
    neighbourhoods.restore(2)
    assert neighbourhoods.cost_ns.tolist()[0] == 1 + 1010
    assert neighbourhoods.cost_ns.tolist()[2] == 100 + 1010  # both neighbours are in one component, which counts once
    neighbourhoods.evict(2)
    assert neighbourhoods.cost_ns.tolist()[0] == 1 + 1110


def test_a_neighbourhood_ends_after_its_nearest_values() -> None:
    """All values of a chain but its ends are evicted: each end counts REACH values and does not reach the other end."""
    n = 3 * REACH
    neighbourhoods = Neighbourhoods(ValueGraph(forward((), *((i,) for i in range(n - 1)))), descendants=True)
    for value in range(1, n - 1):
        neighbourhoods.evict(value)
    assert neighbourhoods.refresh(np.array([0, n - 1])).tolist() == [1 + REACH, 1 + REACH]
    neighbourhoods.restore(2)
    assert neighbourhoods.refresh(np.array([0, n - 1])).tolist() == [1 + 1, 1 + REACH]


@given(seed=st.integers(0, 10**6), n=st.integers(2, REACH))
@settings(max_examples=150, deadline=None)
def test_running_sums_agree_with_a_direct_computation(seed: int, n: int) -> None:
    problem = random_layered(n, seed)
    graph = ValueGraph(problem)
    rng = np.random.default_rng(seed)
    exact = Neighbourhoods(graph, descendants=True)
    linked = Components(graph)
    members: dict[int, set[int]] = {}  # component -> values
    all_values = np.arange(n)
    for step in range(40):
        value = int(rng.integers(n))
        was_evicted = bool(exact.evicted[value])
        for neighbourhoods in (exact, linked):
            (neighbourhoods.restore if was_evicted else neighbourhoods.evict)(value)
        if was_evicted:
            for component in members.values():
                component.discard(value)
        else:
            adjacent = [k for k, c in members.items() if any(x in c for x in graph.neighbours[value])]
            members[step] = {value}.union(*(members.pop(k) for k in adjacent))
        resident = [v for v in range(n) if not exact.evicted[v]]
        costs = exact.refresh(all_values)
        for v in resident:
            assert costs[v] == sum(graph.op_ns[op] for op in exact.ops(v))
            touched = [c for c in members.values() if any(x in c for x in graph.neighbours[v])]
            assert linked.cost_ns[v] == graph.c0[v] + sum(graph.c0[x] for c in touched for x in c)


def evictions(heuristic: str, problem: Problem, budget_bytes: int) -> list[int]:
    """The evicted values in order."""
    evicted: list[int] = []

    def recording_evictor(memory: Memory) -> object:
        evictor = EVICTORS[heuristic](memory)  # type: ignore[index]
        choose = evictor.choose

        def choose_and_record(candidates: np.ndarray) -> int:  # type: ignore[type-arg]
            evicted.append(choose(candidates))
            return evicted[-1]

        evictor.choose = choose_and_record  # type: ignore[method-assign]
        return evictor

    assert Replay(problem, budget_bytes, recording_evictor, limit_ns=10**9).run()  # type: ignore[arg-type]
    return evicted


# The last op reads four values with costs 8, 2, 12, 1 and bytes 4, 1, 3, 1, and a large one, t4. When t4 is computed
# (5 bytes, 12 allowed), 2 bytes are too many; the ages are 15, 13, 1, 1 (at least) ns.
TRACE = forward((), (), (), (), (), (0, 1, 2, 3, 4), times=(8, 2, 12, 1, 1, 1), sizes=(4, 1, 3, 1, 5, 1))


@pytest.mark.parametrize(
    ("heuristic", "first"),
    [
        ("lru", 0),  # the oldest
        ("size", 0),  # 4 bytes
        ("h_local", 0),  # 8 / (4 * 15) = .13 against 2 / 13 = .15, 12 / (3 * 1) = 4, 1 / 1 = 1
        ("h", 0),  # equals h_local, since nothing is evicted yet
        ("h_eq", 0),
        ("msps", 3),  # 1 / 1 against 8 / 4, 2 / 1, 12 / 3
    ],
)
def test_the_first_eviction_by_hand(heuristic: str, first: int) -> None:
    assert evictions(heuristic, TRACE, 12)[0] == first


class CheckedEvictor:
    """An evictor whose choices are compared with the scores of all candidates by the paper's definitions."""

    def __init__(self, heuristic: str, memory: Memory, chosen: list[bool]) -> None:
        self.inner = EVICTORS[heuristic](memory)  # type: ignore[index]
        self.heuristic = heuristic
        self.memory = memory
        self.chosen = chosen
        self.out: set[int] = set()
        self.accessed = dict.fromkeys(range(len(memory.size)), 0)
        ops = memory.problem.ops
        self.graph = nx.DiGraph([(v, w) for op in ops for v in op.inputs for w in op.outputs])
        self.graph.add_nodes_from(range(len(memory.size)))

    def score(self, value: int) -> float:
        ops, producer = self.memory.problem.ops, self.memory.problem.producer
        evicted_graph = self.graph.subgraph(self.out | {value})
        ancestors = nx.ancestors(evicted_graph, value)
        neighbourhood = {"h": ancestors | nx.descendants(evicted_graph, value), "msps": ancestors}.get(
            self.heuristic, set()
        )
        cost = sum(ops[producer[v]].time_ns for v in {value, *neighbourhood})
        size, stale = self.memory.size[value], max(1, self.memory.now_ns - self.accessed[value])
        scores = {"lru": 1 / stale, "size": 1 / size, "msps": cost / size}
        return scores.get(self.heuristic, cost / (size * stale))

    def choose(self, candidates: np.ndarray) -> int:  # type: ignore[type-arg]
        value = self.inner.choose(candidates)
        smallest = min(map(self.score, candidates.tolist()))
        self.chosen.append(self.score(value) <= smallest * (1 + 1e-9))
        return value

    def evicted(self, value: int) -> None:
        self.out.add(value)
        self.inner.evicted(value)

    def released(self, value: int) -> None:
        self.out.discard(value)
        self.inner.released(value)

    def computed(self, op: int, fresh: list[int]) -> None:
        self.out.difference_update(fresh)
        for value in (*self.memory.problem.ops[op].inputs, *self.memory.problem.ops[op].outputs):
            self.accessed[value] = self.memory.now_ns
        self.inner.computed(op, fresh)


@pytest.mark.parametrize("heuristic", ["h", "h_local", "lru", "msps", "size"])
def test_every_eviction_of_a_replay_has_the_smallest_score(heuristic: str) -> None:
    chosen: list[bool] = []
    for seed in range(12):
        for problem in (random_chain(9, seed), random_layered(15, seed)):
            budget_bytes = int(0.6 * baseline(problem).peak_bytes)

            def checked_evictor(memory: Memory) -> CheckedEvictor:
                return CheckedEvictor(heuristic, memory, chosen)

            Replay(problem, budget_bytes, checked_evictor, limit_ns=10**5).run()
    assert len(chosen) > 200
    assert all(chosen)


def test_evicted_neighbours_count_in_scores() -> None:
    """t1 and t2 cost the same. After t1 is evicted, t2, which reads it, counts 2; t3 does not and is evicted next."""
    problem = forward((), (0,), (1,), (0,), (), (), (0, 1, 2, 3, 4, 5), sizes=(0, 1, 1, 1, 1, 1, 1))
    assert evictions("msps", problem, 3)[:2] == [1, 3]


@pytest.mark.parametrize("heuristic", ["h", "h_eq"])
@pytest.mark.parametrize("n", [64, 256, 1024])
def test_a_chain_takes_order_n_ops_in_order_sqrt_n_bytes(heuristic: str, n: int) -> None:
    """By theorem 3.1; with 3 sqrt(n) values it takes about one extra forward. LRU has no such law."""
    problem = chain(n)
    result = solve(problem, 3 * isqrt(n), solver=DTR(heuristic))  # type: ignore[arg-type]
    assert result.plan is not None
    assert result.time_ns is not None
    assert n - 3 * isqrt(n) <= result.time_ns - 3 * n <= 2 * n


def test_belady_by_hand() -> None:
    """A chain of 4 in 4 bytes: while F4 is computed, v1, v2 and v3 are resident beside v4; B4 reads v4 and v3, B3 v2,
    B2 v1. v1 is read last, so it is evicted, and F1 is recomputed: one forward step, which is the optimum."""
    problem = chain(4)
    result = solve(problem, 4, solver=Belady("none"))
    assert result.plan is not None
    assert Counter(getattr(a, "op", None) for a in result.plan)[0] == 2
    assert result.time_ns == 12 + 1


@given(n=st.integers(1, 16), seed=st.integers(0, 10**6), share=st.floats(0, 1), eager=st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_replay_is_a_valid_plan(n: int, seed: int, share: float, eager: bool) -> None:
    problem = training_graph(n, seed)
    unmodified = baseline(problem)
    budget_bytes = int(share * unmodified.peak_bytes)
    for heuristic in HEURISTICS:
        deallocate = "eager" if eager else "ignore"
        replay = Replay(problem, budget_bytes, EVICTORS[heuristic], deallocate=deallocate, limit_ns=10**9)  # type: ignore[arg-type]
        assert replay.run()
        sequence = replay.sequence
        computations = Counter(sequence)
        assert set(computations) == set(range(len(problem.ops)))
        assert all(problem.ops[op].recomputable for op, count in computations.items() if count > 1)
        assert validate(problem, plan_from_sequence(problem, sequence)) == []


def test_readers_of_an_evicted_value_that_cannot_be_recomputed_stay() -> None:
    """Op 2 is computed once. After its output is freed, ops 3 and 5 cannot be recomputed, so the output of 5 stays."""
    wiring: list[tuple[Phase, tuple[int, ...], tuple[int, ...]]] = [
        *(("forward", (), (0,)), ("forward", (0,), (1,)), ("forward", (1, 0), (2,)), ("forward", (1, 2), (3, 4))),
        *(("backward", (3,), (5,)), ("backward", (4, 0), (6,)), ("backward", (5,), (7, 8, 9))),
        ("backward", (6,), (10, 11, 12)),
    ]
    ops = [Op(f"op{i}", *roles, 1, 4 if i == 6 else 0, i != 2) for i, roles in enumerate(wiring)]
    problem = Problem("", tuple(ops), tuple(Value("", 1, "activation") for _ in range(13)), tuple(range(7, 13)))
    for solver in ("belady", "dtr"):
        assert solve(problem, 8, solver=solver).plan is None


def test_a_method_that_thrashes_gives_up() -> None:
    problem = chain(200)
    result = solve(problem, 4, solver=DTR("lru", "ignore"))
    assert result.status is Status.NOT_FOUND
    assert result.smallest_peak_bytes is not None
    assert result.seconds < 5


def test_thrashing_is_accepted_where_nothing_else_fits() -> None:
    """LRU in 6 bytes on a chain of 50 takes more than twice the time; it is given up, then retried with patience."""
    problem = chain(50)
    result = solve(problem, 6, solver=DTR("lru"))
    assert result.time_ns is not None
    assert THRASHING * 150 < result.time_ns <= PATIENCE * 150


@pytest.mark.parametrize("wrong", [{"heuristic": "best"}, {"deallocate": "banish"}])
def test_options_of_dtr(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        DTR(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"weight": "best"}, {"deallocate": "never"}])
def test_options_of_belady(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Belady(**wrong)  # type: ignore[arg-type]
    assert len(WEIGHTS) == 4
