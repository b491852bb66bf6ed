"""Tests of Capuchin's candidates for recomputation, their MSPS, and the order in which they are taken."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.generate import chain
from remat_solvers.plan import Compute
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from remat_solvers.swap.capuchin import Capuchin
from remat_solvers.swap.capuchin.policy import Candidate, EvictionPolicy, candidates_of


def candidate(value: int, size_bytes: int, sources: set[int], time_ns: int) -> Candidate:
    return Candidate(value, size_bytes, 0, 0, sources, time_ns)


def test_msps_of_a_chain_of_four_is_updated_by_hand() -> None:
    """T1 -> T2 -> T3 -> T4 are in memory, computed in 1, 2, 4, 8 ns, with 8 bytes each but 20 for T2: MSPS 8, 10, 2, 1.

    T2 is first. It was the source of T3; now T1 is, with the time 4 + 2. T1 is a source of T2: ext = 1 * (1 + 0), MSPS
    4. Then T1 is taken (4 > 8 / 6): T2 and T3 are computed through it, in 3 and 7. T3 has 8 / 7 against 1 of T4, so T3
    is taken, and T4 takes 15."""
    chain4 = [
        candidate(1, 8, set(), 1),
        candidate(2, 20, {1}, 2),
        candidate(3, 8, {2}, 4),
        candidate(4, 8, {3}, 8),
    ]
    policy = EvictionPolicy(chain4)
    assert [c.msps for c in chain4] == [8, 10, 2, 1]
    assert policy.take().value == 2
    assert (chain4[2].sources, chain4[2].time_ns) == ({1}, 6)
    assert (chain4[0].ext_ns, chain4[0].msps) == (1, 4)
    assert policy.take().value == 1
    assert (chain4[1].time_ns, chain4[2].time_ns) == (3, 7)
    assert policy.take().value == 3
    assert chain4[3].time_ns == 15
    assert policy.take().value == 4


@given(tensors=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_recomputation_follows_the_lineage_after_every_choice(tensors: list[tuple[int, int]]) -> None:
    """On a chain, the largest MSPS is taken, and each tensor is computed from the nearest earlier one in memory,
    through all between."""
    times = [time_ns for _, time_ns in tensors]
    chain_of = [candidate(i, size, {i - 1} if i else set(), times[i]) for i, (size, _) in enumerate(tensors)]
    policy = EvictionPolicy(list(chain_of))
    taken: set[int] = set()
    while policy.open:
        largest = max(c.msps for c in policy.open.values())
        target = policy.take()
        assert target.msps == largest
        taken.add(target.value)
        for c in chain_of:
            nearest = max((i for i in range(c.value) if i not in taken), default=-1)
            assert c.sources == ({nearest} if nearest >= 0 else set())
            assert c.time_ns == sum(times[nearest + 1 : c.value + 1])


def test_candidates_are_alive_in_the_peak_period() -> None:
    """In a chain of 5 with 4 of 6 bytes allowed, F1 to F5 are ops 0 to 4; B2, which reads v1, is op 8."""
    problem = chain(5)
    found = {c.value: (c.evicted_access, c.back_access) for c in candidates_of(problem, 4)}
    assert found[0] == (1, 8)
    assert found[1] == (2, 7)
    assert 4 not in found
    assert all(c.time_ns == 1 for c in candidates_of(problem, 4))


def test_capuchin_takes_no_more_than_is_needed() -> None:
    problem = chain(20)
    unmodified = baseline(problem).peak_bytes
    for less in (1, 2, 5):
        result = solve(problem, unmodified - less, solver="capuchin")
        assert result.plan is not None
        runs = Counter(a.op for a in result.plan if isinstance(a, Compute))
        assert sum(runs.values()) - 40 <= less + 1
    assert Capuchin().name == "capuchin"
