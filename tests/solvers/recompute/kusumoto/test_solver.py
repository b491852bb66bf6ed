"""Tests of Kusumoto et al. (2019): lower sets, the formula by hand, the program against enumeration, and schedules."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import InputError
from remat_solvers.generate import adversarial, chain, training_graph
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.kusumoto.lower_sets import (
    ForwardGraph,
    all_lower_sets,
    ancestor_sets,
    forward_graph,
    membership,
    set_boundaries,
    set_boundary,
)
from remat_solvers.recompute.kusumoto.program import (
    STRATEGIES,
    LowerSetProgram,
    binned_times,
    reference_front,
    segment_bytes,
)
from remat_solvers.recompute.kusumoto.solver import Kusumoto, canonical_sequence
from remat_solvers.result import Limits, Status
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.toolkit.graphs.bit_sets import indices_of
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem


def diamond() -> Problem:
    """A graph a -> b, a -> c, b and c -> d with sizes 1, 2, 4, 8 and times 10, 1, 1, 10; backward reads all values."""
    ops = [
        Op("a", "forward", (), (0,), 10),
        Op("b", "forward", (0,), (1,), 1),
        Op("c", "forward", (0,), (2,), 1),
        Op("d", "forward", (1, 2), (3,), 10),
        Op("back", "backward", (0, 1, 2, 3), (4,), 1),
    ]
    values = [Value(name, size, "activation") for name, size in zip("abcd", (1, 2, 4, 8), strict=True)]
    return Problem("diamond", tuple(ops), (*values, Value("g", 1, "gradient")), (4,))


def test_the_diamond_by_hand() -> None:
    graph = forward_graph(diamond())
    a, b, c, d = 1, 2, 4, 8
    assert all_lower_sets(graph, 100) == [0, a, a | b, a | c, a | b | c, a | b | c | d]
    assert ancestor_sets(graph) == [0, a, a | b, a | c, a | b | c | d]
    assert set_boundary(graph, a) == a
    assert set_boundary(graph, a | b) == a | b  # c reads a, d reads b
    assert set_boundary(graph, a | b | c) == b | c
    # {a} needs 2 (1) and its readers b, c (2 + 4), which read nothing else outside. {a, b} needs U = 1, 2 (2), its
    # readers c and d (4 + 8), and c, which d reads (4). V needs U = 1 + 2 and 2 (4 + 8), and nothing outside.
    assert segment_bytes(graph, [a, a | b, a | b | c | d]) == [2 + 6, 1 + 4 + 12 + 4, 3 + 24]
    assert segment_bytes(graph, [a | b | c, a | b | c | d]) == [14 + 8, 6 + 16]
    assert segment_bytes(graph, [a | b | c | d]) == [30]
    sets = all_lower_sets(graph, 100)
    assert sets is not None
    fronts = {limit: reference_front(graph, sets, limit) for limit in range(20, 31)}
    assert fronts[21] == {}
    assert fronts[22] == {20: 6}  # abc, V: a and d are recomputed; 22 in the first segment
    assert fronts[23] == {20: 6, 10: 7}  # a, abc, V: d is recomputed; 7 + 16
    assert fronts[25] == {20: 6, 10: 7, 11: 5}  # a, ac, V: b and d are recomputed; 5 + 2 (2 + 8)
    assert fronts[27] == {20: 6, 10: 7, 11: 3}  # a, ab, V: c and d are recomputed; 3 + 2 (4 + 8)
    assert fronts[29] == {20: 6, 10: 7, 11: 3, 12: 1}  # a, V
    assert fronts[30] == {20: 6, 10: 7, 11: 3, 12: 1, 22: 0}  # V
    assert LowerSetProgram(graph, sets).smallest_limit() == 22


@given(n=st.integers(1, 9), seed=st.integers(0, 10**6), share=st.floats(0, 1.2), keep_last=st.booleans())
@settings(max_examples=120, deadline=None)
def test_the_program_agrees_with_enumeration(n: int, seed: int, share: float, keep_last: bool) -> None:
    """They agree exactly where a bin is a nanosecond. Feasibility is monotone in B, and bisection finds the smallest
    B."""
    graph = forward_graph(training_graph(n, seed))
    sets = all_lower_sets(graph, 300)
    for family in [ancestor_sets(graph)] + ([sets] if sets else []):
        program = LowerSetProgram(graph, family, bins=10**4, keep_last=keep_last)
        smallest = program.smallest_limit()
        limit = int(smallest * (1 + share))
        front = reference_front(graph, family, limit, keep_last=keep_last)
        row = program.table(limit)[-1]
        assert {t: row[t] for t in np.flatnonzero(np.isfinite(row))} == front
        assert program.smallest_kept_bytes(limit) == min(front.values())
        assert not graph.ops or not reference_front(graph, family, smallest - 1, keep_last=keep_last)
        for strategy, overhead in zip(STRATEGIES, (min(front), max(front)), strict=True):
            chosen = program.sequence(program.table(limit), limit, strategy)
            assert chosen is not None
            assert max(segment_bytes(graph, chosen), default=0) <= limit
            assert overhead_ns(graph, chosen, keep_last) == overhead


def mirrored(n: int, seed: int) -> Problem:
    """A random DAG of n ops with a gradient op for each, which reads its readers' inputs and gradients."""
    rng = random.Random(seed)
    reads = [tuple(sorted(rng.sample(range(i), min(i, rng.choice((0, 1, 1, 2)))))) for i in range(n)]
    size = [rng.randint(1, 9) for _ in range(n)]
    ops = [Op(f"f{i}", "forward", reads[i], (i,), rng.randint(1, 9)) for i in range(n)]
    for i in range(n - 1, -1, -1):
        readers = [j for j in range(n) if i in reads[j]]
        needed = {i, *(v for j in readers for v in reads[j]), *(2 * n - 1 - j for j in readers)}
        ops.append(Op(f"b{i}", "backward", tuple(sorted(needed)), (2 * n - 1 - i,), 1))
    values = [Value(f"v{i}", size[i], "activation") for i in range(n)]
    return Problem("mirrored", tuple(ops), (*values, *(Value("g", b, "gradient") for b in size[::-1])), ())


Sets = tuple[frozenset[int], ...]


def every_sequence(lower_sets: list[frozenset[int]], everything: frozenset[int]) -> Iterator[Sets]:
    """Yields all sequences L_1 < .. < L_k = V."""
    unfinished: list[Sets] = [()]
    while unfinished:
        chosen = unfinished.pop()
        if chosen and chosen[-1] == everything:
            yield chosen
        else:
            unfinished += [(*chosen, s) for s in lower_sets if (chosen[-1] if chosen else frozenset()) < s]


def by_definition(problem: Problem, chosen: Sets) -> tuple[int, int]:
    """The overhead of a sequence and the memory of its largest segment, by their definitions; op i computes value i."""
    nodes = range(len(problem.forward_ops))
    reads = [set(problem.ops[i].inputs) for i in nodes]

    def size_of(subset: set[int] | frozenset[int]) -> int:
        return sum(problem.values[i].bytes for i in subset)

    overhead = memory = 0
    kept: set[int] = set()
    before: frozenset[int] = frozenset()
    for lower in chosen:
        outside = {j for j in nodes if j not in lower and reads[j] & lower}
        beside = {i for j in outside for i in reads[j]} - lower
        memory = max(memory, size_of(kept) + 2 * size_of(lower - before) + size_of(outside) + size_of(beside))
        edge = {i for i in lower if any(i in reads[j] for j in nodes if j not in lower)}
        overhead += sum(problem.ops[i].time_ns for i in lower - before - edge)
        kept |= edge
        before = lower
    return overhead, memory


@given(n=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_sequence_of_lower_sets_is_better_than_the_program(n: int, seed: int) -> None:
    """The smallest and the largest overhead at every B and the smallest B are exact, for all lower sets and for
    ancestor sets.

    With a larger B the smallest overhead does not grow and the largest does not fall."""
    problem = mirrored(n, seed)
    graph = forward_graph(problem)
    reads = [set(problem.ops[i].inputs) for i in range(n)]
    subsets = [frozenset(c) for k in range(1, n + 1) for c in combinations(range(n), k)]
    lower = [s for s in subsets if all(reads[i] <= s for i in s)]
    smallest_sets = [
        next(s for s in lower if i in s) for i in range(n)
    ]  # the smallest lower set with i has its ancestors
    for family, sets in (
        (lower, all_lower_sets(graph, 100)),
        ([*smallest_sets, frozenset(range(n))], ancestor_sets(graph)),
    ):
        assert sets is not None
        assert {frozenset(indices_of(s)) for s in sets} == {frozenset(), *family}
        enumerated = [
            by_definition(problem, chosen) for chosen in every_sequence(list(set(family)), frozenset(range(n)))
        ]
        program = LowerSetProgram(graph, sets, bins=10**4)
        assert program.smallest_limit() == min(memory for _, memory in enumerated)
        span = []
        for limit in sorted({memory for _, memory in enumerated}):
            within = [overhead for overhead, memory in enumerated if memory <= limit]
            found = np.flatnonzero(np.isfinite(program.table(limit)[-1]))
            assert (found[0], found[-1]) == (min(within), max(within))
            span.append((min(within), -max(within)))
        assert all(sorted(column, reverse=True) == list(column) for column in zip(*span, strict=True))


@given(n=st.integers(1, 8), seed=st.integers(0, 10**6), cuts=st.integers(0, 2**7 - 1))
@settings(max_examples=200, deadline=None)
def test_the_replay_has_the_overhead_and_at_most_the_memory_of_the_formula(n: int, seed: int, cuts: int) -> None:
    """Backward reads every value and takes the segments in reverse, and the sets are prefixes of the order. Liveness
    analysis frees some values earlier than the formula, so the formula is an upper bound."""
    problem = mirrored(n, seed)
    chosen = tuple(frozenset(range(k)) for k in range(1, n + 1) if k == n or cuts >> k & 1)
    overhead, memory = by_definition(problem, chosen)
    masks = [sum(1 << i for i in lower) for lower in chosen]
    graph = forward_graph(problem)
    assert max(segment_bytes(graph, masks)) == memory
    sequence = canonical_sequence(problem, graph, masks, keep_last=False)
    line = simulate(problem, plan_from_sequence(problem, sequence))
    assert line.time_ns == sum(op.time_ns for op in problem.ops) + overhead
    assert line.peak_bytes <= memory


def overhead_ns(graph: ForwardGraph, chosen: list[int], keep_last: bool) -> int:
    total = before = 0
    for lower in chosen:
        lost = lower & ~before & ~set_boundary(graph, lower)
        if not (keep_last and lower == graph.everything):
            total += sum(graph.time_ns[node] for node in indices_of(lost))
        before = lower
    return total


@given(times=st.lists(st.integers(0, 50), min_size=1), bins=st.integers(1, 300))
def test_binned_times_are_right_to_one_bin_over_any_interval(times: list[int], bins: int) -> None:
    counted = binned_times(times, bins)
    total = sum(times)
    assert sum(counted) == min(total, bins)
    unit = max(1.0, total / bins)
    for first in range(len(times)):
        assert abs(sum(counted[first:]) - sum(times[first:]) / unit) <= 1


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_the_lower_sets_of_a_chain_are_its_prefixes(length: int) -> None:
    graph = forward_graph(chain(length))
    prefixes = [(1 << k) - 1 for k in range(length + 1)]
    assert all_lower_sets(graph, 100) == ancestor_sets(graph) == prefixes
    assert Kusumoto().families(graph) == [ancestor_sets(graph)]


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_arrays_over_sets_agree_with_each_set(n: int, seed: int) -> None:
    graph = forward_graph(training_graph(n, seed))
    sets = all_lower_sets(graph, 2000) or ancestor_sets(graph)
    within = membership(sets, len(graph.ops))
    edges = set_boundaries(graph, within)
    for k, lower in enumerate(sets):
        assert np.flatnonzero(within[:, k]).tolist() == list(indices_of(lower))
        assert np.flatnonzero(edges[:, k]).tolist() == list(indices_of(set_boundary(graph, lower)))


def test_the_graph_of_a_resnet50_is_that_of_the_released_code() -> None:
    """The file of the released code for ResNet50 has 176 nodes and 241 lower sets."""
    graph = forward_graph(corpus_problem("r50"))
    assert len(graph.ops) == 176
    sets = all_lower_sets(graph, 1000)
    assert sets is not None
    assert len(sets) == 241
    assert len(ancestor_sets(graph)) == 177
    assert all_lower_sets(graph, 240) is None


@pytest.mark.parametrize("name", ["chain50", "gpt", "r50", "unet"])
def test_laws_on_the_corpus(name: str) -> None:
    """Below the smallest B no sequence exists; with a larger B the smallest overhead falls, down to 0."""
    problem = corpus_problem(name)
    graph = forward_graph(problem)
    program = LowerSetProgram(graph, ancestor_sets(graph), keep_last=True)
    smallest = program.smallest_limit()
    assert program.sequence(program.table(smallest - 1), smallest - 1, "time-centric") is None
    fastest = None
    for limit in (smallest, int(1.3 * smallest), 2 * smallest, program.largest_limit()):
        row = np.flatnonzero(np.isfinite(program.table(limit)[-1]))
        assert fastest is None or row[0] <= fastest
        fastest = row[0]
    assert fastest == 0


@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), keep_last=st.booleans(), pick=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_every_sequence_of_lower_sets_is_a_valid_plan(n: int, seed: int, keep_last: bool, pick: int) -> None:
    """Every op is computed at most twice."""
    for problem in (training_graph(n, seed), adversarial(seed)):
        if not problem.backward_ops:
            continue
        graph = forward_graph(problem)
        chosen: list[int] = []
        for k, lower in enumerate(ancestor_sets(graph)[1:]):
            if (pick >> k % 20 & 1 or lower == graph.everything) and not (chosen and chosen[-1] & ~lower):
                chosen.append(lower)
        sequence = canonical_sequence(problem, graph, chosen, keep_last=keep_last)
        assert validate(problem, plan_from_sequence(problem, sequence), 2**62) == []
        assert max(map(sequence.count, sequence)) <= 2


def test_keeping_every_node_is_store_all() -> None:
    problem = corpus_problem("gpt")
    graph = forward_graph(problem)
    sequence = canonical_sequence(problem, graph, [graph.everything], keep_last=True)
    assert sequence == list(range(len(problem.ops)))
    recomputed = canonical_sequence(problem, graph, [graph.everything], keep_last=False)
    extra = simulate(problem, plan_from_sequence(problem, recomputed)).time_ns - sum(op.time_ns for op in problem.ops)
    assert 0 < extra <= sum(graph.time_ns)


def test_a_tight_budget_needs_the_memory_centric_strategy() -> None:
    """At 40 % of the peak of ResNet-50, memory-centric schedules fit and time-centric ones do not."""
    problem = corpus_problem("r50")
    results = [
        solve(problem, int(0.4 * 2_763_978_752), solver=Kusumoto(exact=False, strategy=strategy))
        for strategy in (*STRATEGIES, "auto")
    ]
    assert [result.status for result in results] == [Status.NOT_FOUND, Status.FEASIBLE, Status.FEASIBLE]
    assert results[1].time_ns == results[2].time_ns


def test_exact_is_not_applicable_with_too_many_lower_sets() -> None:
    problem = corpus_problem("r50")
    result = solve(problem, int(0.7 * 2_763_978_752), solver=Kusumoto(exact=True, most_sets=200))
    assert result.status is Status.NOT_APPLICABLE
    assert "200 lower sets" in result.reason
    limited = Kusumoto(exact=False, most_sets=40)
    assert len(limited.families(forward_graph(problem))[0]) == 40
    assert solve(problem, int(0.7 * 2_763_978_752), solver=limited).plan is not None


def test_without_a_plan_the_smallest_peak_is_that_of_the_best_schedule() -> None:
    problem = corpus_problem("unet")
    outcome = Kusumoto().solve(problem, 900_000_000, limits=Limits(None), on_progress=None, seed=0)
    assert outcome.status is Status.NOT_FOUND
    assert outcome.smallest_peak_bytes is not None
    found = solve(problem, outcome.smallest_peak_bytes, solver=Kusumoto())
    assert found.peak_bytes == outcome.smallest_peak_bytes


@pytest.mark.parametrize("options", [{"strategy": "fast"}, {"bins": 0}, {"most_sets": 1}, {"bins": True}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Kusumoto(**options)  # type: ignore[arg-type]
