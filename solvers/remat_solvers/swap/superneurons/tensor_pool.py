"""Moves values by SuperNeurons' unified tensor pool and tensor cache, and computes the four peaks of its ladder.

The rules are in solver.py; the execution is `DemandPaging`, least recently used first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from remat_solvers.plan import Fetch, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import baseline, boundary_of, tangents_first
from remat_solvers.toolkit.transfers.demand_paging import (
    DemandPaging,
    PagedPlan,
    movable_values,
    smallest_paging_budget,
)
from remat_solvers.toolkit.transfers.profile import StepProfile


def pooled(profile: StepProfile, movable: set[int], budget_bytes: int, *, cache: bool) -> Plan | None:
    """The plan of `profile`'s sequence in which values of `movable` move; None: an op does not fit.

    cache: they move where memory is short, not as soon as they are computed.
    """
    movable = movable & movable_values(profile.problem, profile.sequence)
    eager = set() if cache else movable
    prefetch = prefetches(profile.problem, profile.sequence, movable)
    while True:
        paged = DemandPaging(profile, movable, budget_bytes, "lru", eager=eager, prefetch=prefetch).run()
        if not isinstance(paged, PagedPlan):
            return None
        fetched = {action.value for action in paged.plan if isinstance(action, Fetch)}
        in_vain = {action.value for action in paged.plan if isinstance(action, Offload)} - fetched
        if in_vain.isdisjoint(eager):
            return paged.plan
        eager = eager - in_vain


def prefetches(problem: Problem, sequence: Sequence[int], movable: set[int]) -> dict[int, int]:
    """Position -> the value to fetch there: where backward first reads one of `movable`, the one computed before it."""
    in_order = sorted(movable, key=lambda v: (problem.producer[v], v))
    before = dict(pairwise(reversed(in_order)))
    ahead: dict[int, int] = {}
    seen: set[int] = set()
    boundary = boundary_of(problem, sequence)
    for position in range(boundary, len(sequence)):
        first_reads = [v for v in problem.ops[sequence[position]].inputs if v in movable and v not in seen]
        seen.update(first_reads)
        if first_reads:
            earliest = min(first_reads, key=lambda v: (problem.producer[v], v))
            if earliest in before:
                ahead[position] = before[earliest]
    return ahead


@dataclass(frozen=True, slots=True)
class Ladder:
    """Peaks in bytes, constants and reserve included, one technique after the other."""

    baseline_bytes: int  # nothing is freed
    liveness_bytes: int  # freed after the last reader: store-all
    offload_bytes: int  # and moved values are resident only while an op uses them
    recompute_bytes: int  # and the others are recomputed: the same of the recomputing sequence


def ladder(problem: Problem, recomputing: Sequence[int], movable: set[int]) -> Ladder:
    """The peaks for a sequence that recomputes (`SuperNeurons.sequence`), with `movable` moved.

    The last two are the smallest budgets in which the pool gives a plan, whatever the link, if the host has room.
    """
    base = problem.static_bytes
    order = tangents_first(problem, range(len(problem.ops)))
    recomputing = tangents_first(problem, recomputing)
    return Ladder(
        baseline_bytes=base + sum(v.bytes for v in problem.values if v.kind != "constant"),
        liveness_bytes=baseline(problem).peak_bytes,
        offload_bytes=smallest_paging_budget(problem, order, movable & movable_values(problem, order)),
        recompute_bytes=smallest_paging_budget(problem, recomputing, movable & movable_values(problem, recomputing)),
    )
