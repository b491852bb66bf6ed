"""What the stages of a chain cost: times and bytes, as the dynamic programs over chains ask for them.

Bytes are counted above constants and reserve. Beside what a schedule keeps, memory holds what no schedule of the chain
moves: gradients, results, outputs of ops that run once. Before the backward of stage j begins that is `around[j]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remat_solvers.problem import Problem
from remat_solvers.recompute.chain import Chain, live_gradients
from remat_solvers.recompute.chain_schedule import Ways, needed_ops, plain_ways

__all__ = ["ChainCosts", "chain_costs"]

Array = NDArray[np.int64]


NEVER = 2**62  # bytes: the needs of a way that a stage does not have


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """Per stage k of L; `state` and `sweep` have rows 0..L-1 and columns 0..L. [w, k]: in way w of stage k."""

    advance_ns: Array  # run k again from its state to the state after it
    save_ns: Array  # [w, k]: ... keeping what its backward shall find, and the state after it
    leaf_ns: Array  # [w, k]: ... keeping what its backward shall find
    again_ns: Array  # [w, k]: what its forward takes longer than its ops, each once
    backward_ns: Array  # [w, k]: its backward
    state: Array  # [i, k]: bytes of the state of k that are not in the state of i
    saved: Array  # [w, k]: bytes saved for its backward, with the state after it, not in its own state
    sweep: Array  # [i, k]: most bytes beside the state of i while running i..k-1, keeping nothing but that state
    first_sweep: Array  # [i, k]: the same for the first forward, with what it leaves around
    save_peak: Array  # [w, k]: most bytes beside its state while running all of k, keeping what its backward shall find
    save_again_peak: Array  # [w, k]: the same of what runs again to keep that and the state after it
    leaf_peak: Array  # [w, k]: the same of what runs again to keep that alone
    back_peak: Array  # [w, k]: most bytes beside its state during its backward, all included
    around: Array  # bytes that stay around before its backward begins
    first_around: Array  # bytes that stay around when it has run for the first time


def chain_costs(chain: Chain, ways: Ways | None = None) -> ChainCosts:
    """The costs of every stage. Time O(L^2) beside one pass over the ops of every way."""
    ways = ways or plain_ways(chain)
    problem, count, most = chain.problem, len(chain.stages), max(map(len, ways))
    state = _state(chain)
    fixed, first_around = _fixed(chain)
    starts, incoming = _gradients(chain)
    advance_ns = np.zeros(count, dtype=np.int64)
    save_ns, leaf_ns, again_ns, backward_ns, saved = (np.zeros((most, count), dtype=np.int64) for _ in range(5))
    save_peak, save_again_peak, leaf_peak, back_peak = (np.full((most, count), NEVER) for _ in range(4))
    sweep = np.zeros((count, count + 1), dtype=np.int64)
    first_sweep = sweep.copy()
    for k, stage in enumerate(chain.stages):
        after, own = set(chain.state(k + 1)), set(stage.state)
        kept = [v in own for v in range(len(problem.values))]
        sizes = _sizes(chain, own)

        def time_ns(ops: Iterable[int]) -> int:
            return sum(problem.ops[op].time_ns for op in ops)

        advance_ns[k] = time_ns(needed_ops(chain, stage.ops, after, kept))
        here = state[: k + 1, k] + _peak(problem, stage.ops, sizes, set(), after)  # with the state of i beside it
        sweep[: k + 1, k + 1] = np.maximum(sweep[: k + 1, k], here)
        first_sweep[: k + 1, k + 1] = np.maximum(first_sweep[: k + 1, k], here + first_around[k])
        for w, way in enumerate(ways[k]):
            both = {*way.saved, *after}
            save_run = needed_ops(chain, way.forward, both, kept)
            leaf_run = needed_ops(chain, way.forward, way.saved, kept)
            save_ns[w, k], leaf_ns[w, k] = time_ns(save_run), time_ns(leaf_run)
            again_ns[w, k] = time_ns(way.forward) - time_ns(stage.ops)
            backward_ns[w, k] = time_ns(way.backward)
            saved[w, k] = chain.bytes(both - own)
            save_peak[w, k] = _peak(problem, way.forward, sizes, set(), both)
            save_again_peak[w, k] = _peak(problem, save_run, sizes, set(), both)
            leaf_peak[w, k] = _peak(problem, leaf_run, sizes, set(), set(way.saved))
            entering, leaving = incoming[k]
            passing = int(starts[k]) - chain.bytes(entering)
            peak = _peak(problem, way.backward, sizes, {*way.saved, *entering}, leaving)
            back_peak[w, k] = peak + passing + fixed[k]
    return ChainCosts(
        advance_ns=advance_ns,
        save_ns=save_ns,
        leaf_ns=leaf_ns,
        again_ns=again_ns,
        backward_ns=backward_ns,
        state=state,
        saved=saved,
        sweep=sweep,
        first_sweep=first_sweep,
        save_peak=save_peak,
        save_again_peak=save_again_peak,
        leaf_peak=leaf_peak,
        back_peak=back_peak,
        around=starts + fixed,
        first_around=first_around,
    )


def _state(chain: Chain) -> Array:
    """[i, k]: bytes of the state of k that do not cross the cut before i."""
    count = len(chain.stages)
    state = np.zeros((count, count + 1), dtype=np.int64)
    appears: dict[int, int] = {}  # value -> the first stage whose state has it; it stays in consecutive ones
    for k in range(count):
        for value in chain.state(k):
            first = appears.setdefault(value, k)
            state[:first, k] += chain.problem.values[value].bytes
    return state


def _sizes(chain: Chain, own: set[int]) -> list[int]:
    """Per value, the bytes that count in a stage with the state `own`: none for constants and for what stays anyway."""
    problem = chain.problem
    backward = [p >= 0 and problem.ops[p].phase == "backward" for p in problem.producer]
    return [
        value.bytes if backward[v] or (chain.droppable[v] and v not in own) else 0
        for v, value in enumerate(problem.values)
    ]


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


def _gradients(chain: Chain) -> tuple[Array, list[tuple[set[int], set[int]]]]:
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


def _fixed(chain: Chain) -> tuple[Array, Array]:
    """Bytes of forward values that cannot be dropped: during the backward of each stage, and after its first run.

    One that is no result is there until the backward of the earliest stage that may read it.
    """
    problem, stages = chain.problem, chain.stages
    stage_of = {op: k for k, stage in enumerate(stages) for op in (*stage.ops, *stage.backward)}
    results = set(problem.results)
    backward = np.zeros(len(stages), dtype=np.int64)
    first = np.zeros(len(stages), dtype=np.int64)
    for value, producer in enumerate(problem.producer):
        if producer < 0 or problem.ops[producer].phase == "backward" or chain.droppable[value]:
            continue
        size = problem.values[value].bytes
        first[stage_of[producer] :] += size
        readers = [stage_of[op] for op in problem.consumers[value]]
        lowest = 0 if value in results else min(readers, default=len(stages))
        backward[lowest:] += size
    return backward, first
