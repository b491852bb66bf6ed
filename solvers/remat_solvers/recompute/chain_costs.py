"""What the stages of a chain cost: times and bytes, as the dynamic programs over chains ask for them.

Bytes are counted above constants and reserve. Beside what a schedule keeps, memory holds what no schedule of the chain
moves: gradients, results, outputs of ops that run once. Before the backward of stage j begins that is `around[j]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remat_solvers.recompute.chain import Chain, live_gradients
from remat_solvers.recompute.chain_schedule import needed_ops

__all__ = ["ChainCosts", "chain_costs"]

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """Per stage k of L; `state` and `sweep` have rows 0..L-1 and columns 0..L."""

    advance_ns: Array  # run k again from its state to the state after it
    save_ns: Array  # ... keeping what its backward reads, and the state after it
    leaf_ns: Array  # ... keeping what its backward reads
    backward_ns: Array  # its backward ops
    state: Array  # [i, k]: bytes of the state of k that are not in the state of i
    saved: Array  # bytes saved for its backward, with the state after it, not in its own state
    sweep: Array  # [i, k]: most bytes beside the state of i while running i..k-1, keeping nothing but that state
    first_sweep: Array  # [i, k]: the same for the first forward, with what it leaves around
    save_peak: Array  # most bytes beside its state while running k, keeping what its backward reads
    back_peak: Array  # most bytes beside its state during its backward, all included
    around: Array  # bytes that stay around before its backward begins
    first_around: Array  # bytes that stay around when it has run for the first time


def chain_costs(chain: Chain) -> ChainCosts:
    """The costs of every stage. Time O(L^2) beside one pass over the ops."""
    count = len(chain.stages)
    state = _state(chain)
    around, first_around, back_peak = _surroundings(chain)
    peaks, saves, times, saved = [], [], [], []
    for k, stage in enumerate(chain.stages):
        after = chain.state(k + 1)
        own = set(stage.state)
        peaks.append(_peak(chain, k, set(after)))
        saves.append(_peak(chain, k, {*after, *stage.saved}))
        saved.append(chain.bytes({*stage.saved, *after} - own))
        kept = [0] * len(chain.droppable)
        for value in own:
            kept[value] = 1
        runs = [needed_ops(chain, targets, kept) for targets in (after, (*stage.saved, *after), stage.saved)]
        times.append([sum(chain.problem.ops[op].time_ns for op in run) for run in runs])
    time_ns = np.array(times, dtype=np.int64).reshape(count, 3)
    sweep = np.zeros((count, count + 1), dtype=np.int64)
    first_sweep = sweep.copy()
    for k in range(count):  # running k with the state of i beside it
        here = state[: k + 1, k] + peaks[k]
        sweep[: k + 1, k + 1] = np.maximum(sweep[: k + 1, k], here)
        first_sweep[: k + 1, k + 1] = np.maximum(first_sweep[: k + 1, k], here + first_around[k])
    return ChainCosts(
        advance_ns=time_ns[:, 0],
        save_ns=time_ns[:, 1],
        leaf_ns=time_ns[:, 2],
        backward_ns=np.array(
            [sum(chain.problem.ops[op].time_ns for op in stage.backward) for stage in chain.stages], dtype=np.int64
        ),
        state=state,
        saved=np.array(saved, dtype=np.int64),
        sweep=sweep,
        first_sweep=first_sweep,
        save_peak=np.array(saves, dtype=np.int64),
        back_peak=back_peak,
        around=around,
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


def _peak(chain: Chain, stage: int, keep: set[int]) -> int:
    """Most bytes of droppable values and workspace made by a stage that keeps `keep`, its own state not counted."""
    problem = chain.problem
    ops = chain.stages[stage].ops
    last: dict[int, int] = {}
    for op in ops:
        for value in problem.ops[op].inputs:
            last[value] = op
    own: set[int] = set()
    live = peak = 0
    for op in ops:
        made = [v for v in problem.ops[op].outputs if chain.droppable[v]]
        live += chain.bytes(made)
        own.update(made)
        beside = chain.bytes(problem.ops[op].outputs) - chain.bytes(made)  # fresh copies of what stays anyway
        peak = max(peak, live + beside + problem.ops[op].workspace_bytes)
        ended = [v for v in made if v not in last] + [v for v in set(problem.ops[op].inputs) if last[v] == op]
        live -= chain.bytes([v for v in ended if v in own and v not in keep])
    return peak


def _surroundings(chain: Chain) -> tuple[Array, Array, Array]:
    """`around`, `first_around` and `back_peak` of every stage."""
    problem, stages = chain.problem, chain.stages
    alive = live_gradients(problem)
    fixed, first_around = _fixed(chain)
    place = 0
    back_peak = np.zeros(len(stages), dtype=np.int64)
    starts = [0] * len(stages)
    for k in range(len(stages) - 1, -1, -1):
        stage = stages[k]
        starts[k] = place
        ends = _ends(chain, stage.backward)
        kept = set(stage.saved) - set(stage.state)
        live = chain.bytes(kept)
        peaks = [live + int(alive[place])]
        for op in stage.backward:
            made = chain.bytes(problem.ops[op].outputs) + problem.ops[op].workspace_bytes
            peaks.append(live + int(alive[place]) + made)
            live -= chain.bytes([v for v in ends.get(op, ()) if v in kept])
            place += 1
        back_peak[k] = max(peaks) + fixed[k]
    around = [int(alive[starts[k]]) + int(fixed[k]) for k in range(len(stages))]
    return np.array(around, dtype=np.int64), first_around, back_peak


def _ends(chain: Chain, backward: Iterable[int]) -> dict[int, list[int]]:
    """Per backward op, the droppable values that no later op of `backward` reads."""
    last: dict[int, int] = {}
    for op in backward:
        for value in chain.problem.ops[op].inputs:
            if chain.droppable[value]:
                last[value] = op
    ends: dict[int, list[int]] = {}
    for value, op in last.items():
        ends.setdefault(op, []).append(value)
    return ends


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
