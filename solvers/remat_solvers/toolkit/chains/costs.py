"""What the stages of a chain cost: times and bytes, as the dynamic programs over chains ask for them.

Bytes are counted above constants and reserve. Beside what a schedule keeps, memory holds what no schedule of the chain
moves: gradients, results, outputs of ops that run once. Before the backward of stage j begins that is `around[j]`.

The state before a stage is counted by who keeps it, until the backward of the stage is through. Of its fresh part, what
the stage before makes and its backward does not read, nothing is read after that: such a value goes with its last
reader in the stage, and counts as negative "beside its state" from then on. In the same way a value that runs once goes
with its last reader in the backward of the last stage that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.chains.chain import Chain, live_gradients
from remat_solvers.toolkit.chains.schedule import Ways, needed_ops, plain_ways

__all__ = ["ChainCosts", "chain_costs"]


NEVER = 2**62  # bytes: the needs of a way that a stage does not have


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """Per stage k of L; `state` and `sweep` have rows 0..L-1 and columns 0..L. [w, k]: in way w of stage k."""

    advance_ns: Ints  # run k again from its state to the state after it
    save_ns: Ints  # [w, k]: ... keeping what its backward shall find, and the state after it
    leaf_ns: Ints  # [w, k]: ... keeping what its backward shall find
    again_ns: Ints  # [w, k]: what its forward takes longer than its ops, each once
    backward_ns: Ints  # [w, k]: its backward
    state: Ints  # [i, k]: bytes of the state of k that are not in the state of i
    saved: Ints  # [w, k]: bytes saved for its backward, with the state after it, not in its own state
    released: Ints  # [w, k]: bytes of the fresh part of its state that neither backward nor the state after it has
    sweep: Ints  # [i, k]: most bytes beside the state of i while running i..k-1 again, keeping that state alone
    first_sweep: Ints  # [i, k]: the same for the first forward, with all that is around
    save_peak: Ints  # [w, k]: most bytes beside its state while running all of k, keeping what its backward shall find
    save_again_peak: Ints  # [w, k]: the same of what runs again to keep that and the state after it
    leaf_peak: Ints  # [w, k]: the same of what runs again to keep that alone
    back_peak: Ints  # [w, k]: most bytes beside its state during its backward, all included
    around: Ints  # bytes that stay around before its backward begins
    first_around: Ints  # bytes that are around when it begins to run for the first time


def chain_costs(chain: Chain, ways: Ways | None = None, *, alone: bool = False) -> ChainCosts:
    """The costs of every stage. Time O(L^2) beside one pass over the ops of every way.

    alone: nobody else keeps any of the state before a stage, so that all of it is fresh. That holds where the stages
    from one of a disjoint state on are run keeping nothing; elsewhere it counts too little.
    """
    ways = ways or plain_ways(chain)
    problem, count, most = chain.problem, len(chain.stages), max(map(len, ways))
    state, appears = _state(chain)
    fixed = _fixed(chain)
    moving = _moving(chain)
    starts, incoming = _gradients(chain)
    advance_ns = np.zeros(count, dtype=np.int64)
    save_ns, leaf_ns, again_ns, backward_ns, saved, released = (
        np.zeros((most, count), dtype=np.int64) for _ in range(6)
    )
    save_peak, save_again_peak, leaf_peak, back_peak = (np.full((most, count), NEVER) for _ in range(4))
    sweep = np.zeros((count, count + 1), dtype=np.int64)
    first_sweep = sweep.copy()
    backward_before: set[int] = set()  # what the backward of the stage before reads, in any way
    for k, stage in enumerate(chain.stages):
        after, own = set(chain.state(k + 1)), set(stage.state)
        fresh = own if alone else own.difference(chain.state(max(0, k - 1)), backward_before)
        backward_before = {v for way in ways[k] for v in way.saved}
        kept = [v in own for v in range(len(problem.values))]
        sizes = _sizes(chain, moving, own - fresh, set())
        once = _sizes(chain, moving, own - fresh, fixed.made[k])
        back = _sizes(chain, moving, own - fresh, fixed.ending[k])
        fresh_bytes, ending_bytes = chain.bytes(fresh), chain.bytes(fixed.ending[k])

        def time_ns(ops: Iterable[int]) -> int:
            return sum(problem.ops[op].time_ns for op in ops)

        onward = needed_ops(chain, stage.ops, after, kept)
        advance_ns[k] = time_ns(onward)
        here = state[: k + 1, k] + _sweep_peaks(chain, k, moving, appears, onward, set(), after)
        sweep[: k + 1, k + 1] = np.maximum(sweep[: k + 1, k], here)
        here = state[: k + 1, k] + _sweep_peaks(
            chain, k, moving, appears, stage.ops, fixed.made[k], after | fixed.staying[k]
        )
        first_sweep[: k + 1, k + 1] = np.maximum(first_sweep[: k + 1, k], here + fixed.before[k])
        for w, way in enumerate(ways[k]):
            both = {*way.saved, *after}
            save_run = needed_ops(chain, way.forward, both, kept)
            leaf_run = needed_ops(chain, way.forward, way.saved, kept)
            save_ns[w, k], leaf_ns[w, k] = time_ns(save_run), time_ns(leaf_run)
            again_ns[w, k] = time_ns(way.forward) - time_ns(stage.ops)
            backward_ns[w, k] = time_ns(way.backward)
            saved[w, k] = chain.bytes(both - own)
            released[w, k] = chain.bytes(fresh - both)
            save_peak[w, k] = _peak(problem, way.forward, once, fresh, both | fixed.staying[k]) - fresh_bytes
            save_again_peak[w, k] = _peak(problem, save_run, sizes, fresh, both) - fresh_bytes
            leaf_peak[w, k] = _peak(problem, leaf_run, sizes, fresh, set(way.saved)) - fresh_bytes
            entering, leaving = incoming[k]
            passing = int(starts[k]) - chain.bytes(entering)
            peak = _peak(problem, way.backward, back, {*way.saved, *entering, *fixed.ending[k]}, leaving)
            back_peak[w, k] = peak + passing + fixed.backward[k] - fresh_bytes - ending_bytes
    return ChainCosts(
        advance_ns=advance_ns,
        save_ns=save_ns,
        leaf_ns=leaf_ns,
        again_ns=again_ns,
        backward_ns=backward_ns,
        state=state,
        saved=saved,
        released=released,
        sweep=sweep,
        first_sweep=first_sweep,
        save_peak=save_peak,
        save_again_peak=save_again_peak,
        leaf_peak=leaf_peak,
        back_peak=back_peak,
        around=starts + fixed.backward,
        first_around=fixed.before,
    )


def _state(chain: Chain) -> tuple[Ints, dict[int, int]]:
    """[i, k]: bytes of the state of k that do not cross the cut before i; per value the first stage whose state has it.

    It stays in consecutive states.
    """
    count = len(chain.stages)
    state = np.zeros((count, count + 1), dtype=np.int64)
    appears: dict[int, int] = {}
    for k in range(count):
        for value in chain.state(k):
            first = appears.setdefault(value, k)
            state[:first, k] += chain.problem.values[value].bytes
    return state, appears


def _moving(chain: Chain) -> list[int]:
    """Per value, its bytes where a schedule of the chain moves it, or where backward makes it; else 0."""
    problem = chain.problem
    backward = [p >= 0 and problem.ops[p].phase == "backward" for p in problem.producer]
    return [value.bytes if backward[v] or chain.droppable[v] else 0 for v, value in enumerate(problem.values)]


def _sizes(chain: Chain, moving: list[int], staying: set[int], once: set[int]) -> list[int]:
    """Per value, the bytes that count in a stage: none for constants and for what is `staying`; all for `once`."""
    sizes = moving.copy()
    for value in staying:
        sizes[value] = 0
    for value in once:
        sizes[value] = chain.problem.values[value].bytes
    return sizes


def _sweep_peaks(
    chain: Chain,
    k: int,
    moving: list[int],
    appears: dict[int, int],
    sequence: Sequence[int],
    once: set[int],
    keep: set[int],
) -> Ints:
    """[i]: most bytes beside the state of k while `sequence` of k runs in a sweep from stage i <= k, to `keep` its end.

    What the state of i does not keep goes with its last reader. `once`: values of k that are made in the first run.
    """
    own = set(chain.stages[k].state)
    ending = {v: appears[v] for v in own - keep}
    peaks = np.zeros(k + 1, dtype=np.int64)
    for low, high in pairwise([0, *sorted(set(ending.values())), k + 1]):
        going = {v for v, first in ending.items() if first > low}
        sizes = _sizes(chain, moving, own - going, once)
        peaks[low:high] = _peak(chain.problem, sequence, sizes, going, keep) - chain.bytes(going)
    return peaks


def _peak(problem: Problem, sequence: Sequence[int], sizes: Sequence[int], there: set[int], keep: set[int]) -> int:
    """Most bytes while `sequence` runs: what is `there` before it, what it makes, until its last reader or to be kept.

    What has no size here, but is made by an op, is a fresh copy of what stays anyway, and gone after it.
    """
    ends: list[list[int]] = []
    needed = set(keep)
    for op in reversed(sequence):
        outputs = problem.ops[op].outputs
        ended = [v for v in outputs if v not in needed]
        needed.difference_update(outputs)
        ended += [v for v in dict.fromkeys(problem.ops[op].inputs) if v not in needed]
        needed.update(problem.ops[op].inputs)
        ends.append(ended)
    live = set(there)
    held = peak = sum(sizes[v] for v in there)
    for op, ended in zip(sequence, reversed(ends), strict=True):
        outputs = problem.ops[op].outputs
        peak = max(peak, held + sum(problem.values[v].bytes for v in outputs) + problem.ops[op].workspace_bytes)
        held += sum(sizes[v] for v in outputs if v not in live)
        live.update(outputs)
        held -= sum(sizes[v] for v in ended if v in live)
        live.difference_update(ended)
    return peak


def _gradients(chain: Chain) -> tuple[Ints, list[tuple[set[int], set[int]]]]:
    """Per stage: bytes of gradients alive before its backward; those it reads, and those it reads or makes and leaves.

    Results count as read at the end.
    """
    problem, stages = chain.problem, chain.stages
    alive = live_gradients(problem)
    results = set(problem.results)
    starts = np.zeros(len(stages), dtype=np.int64)
    borders: list[tuple[set[int], set[int]]] = []
    place = 0
    for k in range(len(stages) - 1, -1, -1):
        starts[k] = alive[place]
        place += len(stages[k].backward)
        mine = set(stages[k].backward)
        made = {v for op in mine for v in problem.ops[op].outputs}
        read = {v for op in mine for v in problem.ops[op].inputs if v not in made}
        entering = {
            v for v in read if problem.producer[v] >= 0 and problem.ops[problem.producer[v]].phase == "backward"
        }
        last = max(mine, default=-1)
        leaving = {v for v in made | entering if v in results or any(op > last for op in problem.consumers[v])}
        borders.append((entering, leaving))
    return starts, borders[::-1]


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Forward values that cannot be dropped: when they are there. Per stage of L."""

    made: list[set[int]]  # those that its first run makes
    staying: list[set[int]]  # of these, those that it leaves
    before: Ints  # bytes before its first run
    backward: Ints  # bytes during its backward
    ending: list[set[int]]  # those that nothing reads after its backward


def _fixed(chain: Chain) -> _Fixed:
    """One that is no result is there until the last reader; a forward op that may run again reads in its backward."""
    problem, stages = chain.problem, chain.stages
    count = len(stages)
    stage_of = {op: k for k, stage in enumerate(stages) for op in (*stage.ops, *stage.backward)}
    results = set(problem.results)
    before, backward = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    made: list[set[int]] = [set() for _ in stages]
    staying: list[set[int]] = [set() for _ in stages]
    ending: list[set[int]] = [set() for _ in stages]

    def late(op: int) -> bool:
        again = problem.ops[op].recomputable and any(chain.droppable[v] for v in problem.ops[op].outputs)
        return again or problem.ops[op].phase == "backward"

    for value, producer in enumerate(problem.producer):
        if producer < 0 or problem.ops[producer].phase == "backward" or chain.droppable[value]:
            continue
        size = problem.values[value].bytes
        start, readers = stage_of[producer], problem.consumers[value]
        lowest = 0 if value in results else min((stage_of[op] for op in readers if late(op)), default=count)
        last = count - 1 if lowest < count else max((stage_of[op] for op in readers), default=start)
        before[start + 1 : last + 1] += size
        backward[lowest:] += size
        made[start].add(value)
        if lowest < count or last > start:
            staying[start].add(value)
        if lowest < count and value not in results:
            ending[lowest].add(value)
    return _Fixed(made, staying, before, backward, ending)
