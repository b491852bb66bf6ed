"""Computes the times and bytes of the stages of a chain that the dynamic programs over chains need.

Bytes are counted above constants and reserve. Beside the values that a schedule keeps, memory holds those that no
schedule of the chain moves: gradients, results, outputs of ops that cannot be recomputed. Before the backward of stage
j begins they are `background[j]` bytes.

The state before a stage is counted by who keeps it, until the end of the stage's backward. Its fresh part is what the
stage before computes and does not read in its own backward: no op reads it after the stage's backward. Such a value is
freed after its last reader in the stage, and counts as negative "beside its state" from then on. In the same way, a
value that cannot be recomputed is freed after its last reader in the backward of the last stage that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.toolkit.arrays import Ints
from remat_solvers.toolkit.chains.chain import Chain, live_gradients
from remat_solvers.toolkit.chains.schedule import SaveOptions, keep_everything, needed_ops

NEVER = 2**62  # bytes: the need of an option that a stage does not have


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """Per stage k of L. `state` and `sweep` have rows 0..L-1 and columns 0..L; [w, k]: with option w of stage k."""

    advance_ns: Ints  # recomputing k from its state to the state after it
    save_ns: Ints  # [w, k]: ... keeping what its backward reads, and the state after it
    leaf_ns: Ints  # [w, k]: ... keeping what its backward reads
    repeat_ns: Ints  # [w, k]: time of its forward beyond that of its ops, each once
    backward_ns: Ints  # [w, k]: its backward
    state: Ints  # [i, k]: bytes of the state of k that are not in the state of i
    saved: Ints  # [w, k]: bytes saved for its backward, and of the state after it, that are not in its own state
    released: Ints  # [w, k]: bytes of the fresh part of its state that neither its backward nor the state after it has
    sweep: Ints  # [i, k]: most bytes beside the state of i while recomputing i..k-1, keeping only the state of k
    first_sweep: Ints  # [i, k]: the same for the first computation, with the background
    save_peak: Ints  # [w, k]: most bytes beside its state while computing all of k, keeping what its backward reads
    resave_peak: Ints  # [w, k]: the same while recomputing what is needed to keep that and the state after it
    leaf_peak: Ints  # [w, k]: the same while recomputing what is needed to keep that alone
    back_peak: Ints  # [w, k]: most bytes beside its state during its backward, with the background
    background: Ints  # bytes that no schedule moves, before its backward begins
    first_background: Ints  # the same, before its first computation begins


def chain_costs(chain: Chain, options: SaveOptions | None = None, *, alone: bool = False) -> ChainCosts:
    """The costs of every stage. Time O(L^2) beside one pass over the ops of every option.

    alone: no other stage keeps any of the state before a stage, so that all of it is fresh. That holds where all stages
    from one of a disjoint state on are computed keeping nothing; elsewhere it counts too little.
    """
    options = options or keep_everything(chain)
    problem, count, width = chain.problem, len(chain.stages), max(map(len, options))
    state, appears = _state(chain)
    fixed = _fixed(chain)
    moving = _moving(chain)
    starts, incoming = _gradients(chain)
    advance_ns = np.zeros(count, dtype=np.int64)
    save_ns, leaf_ns, repeat_ns, backward_ns, saved, released = (
        np.zeros((width, count), dtype=np.int64) for _ in range(6)
    )
    save_peak, resave_peak, leaf_peak, back_peak = (np.full((width, count), NEVER) for _ in range(4))
    sweep = np.zeros((count, count + 1), dtype=np.int64)
    first_sweep = sweep.copy()
    backward_before: set[int] = set()  # read by the backward of the stage before, with any option
    for k, stage in enumerate(chain.stages):
        after, own = set(chain.state(k + 1)), set(stage.state)
        fresh = own if alone else own.difference(chain.state(max(0, k - 1)), backward_before)
        backward_before = {v for option in options[k] for v in option.saved}
        in_state = [v in own for v in range(len(problem.values))]
        sizes = _sizes(chain, moving, own - fresh, set())
        once = _sizes(chain, moving, own - fresh, fixed.computed[k])
        back = _sizes(chain, moving, own - fresh, fixed.ending[k])
        fresh_bytes, ending_bytes = chain.bytes(fresh), chain.bytes(fixed.ending[k])

        def time_ns(ops: Iterable[int]) -> int:
            return sum(problem.ops[op].time_ns for op in ops)

        onward = needed_ops(chain, stage.ops, after, in_state)
        advance_ns[k] = time_ns(onward)
        peaks = state[: k + 1, k] + _sweep_peaks(chain, k, moving, appears, onward, set(), after)
        sweep[: k + 1, k + 1] = np.maximum(sweep[: k + 1, k], peaks)
        peaks = state[: k + 1, k] + _sweep_peaks(
            chain, k, moving, appears, stage.ops, fixed.computed[k], after | fixed.staying[k]
        )
        first_sweep[: k + 1, k + 1] = np.maximum(first_sweep[: k + 1, k], peaks + fixed.before[k])
        for w, option in enumerate(options[k]):
            kept_after = {*option.saved, *after}
            resave_ops = needed_ops(chain, option.forward, kept_after, in_state)
            leaf_ops = needed_ops(chain, option.forward, option.saved, in_state)
            save_ns[w, k], leaf_ns[w, k] = time_ns(resave_ops), time_ns(leaf_ops)
            repeat_ns[w, k] = time_ns(option.forward) - time_ns(stage.ops)
            backward_ns[w, k] = time_ns(option.backward)
            saved[w, k] = chain.bytes(kept_after - own)
            released[w, k] = chain.bytes(fresh - kept_after)
            save_peak[w, k] = _peak(problem, option.forward, once, fresh, kept_after | fixed.staying[k]) - fresh_bytes
            resave_peak[w, k] = _peak(problem, resave_ops, sizes, fresh, kept_after) - fresh_bytes
            leaf_peak[w, k] = _peak(problem, leaf_ops, sizes, fresh, set(option.saved)) - fresh_bytes
            entering, leaving = incoming[k]
            passing = int(starts[k]) - chain.bytes(entering)
            peak = _peak(problem, option.backward, back, {*option.saved, *entering, *fixed.ending[k]}, leaving)
            back_peak[w, k] = peak + passing + fixed.backward[k] - fresh_bytes - ending_bytes
    return ChainCosts(
        advance_ns=advance_ns,
        save_ns=save_ns,
        leaf_ns=leaf_ns,
        repeat_ns=repeat_ns,
        backward_ns=backward_ns,
        state=state,
        saved=saved,
        released=released,
        sweep=sweep,
        first_sweep=first_sweep,
        save_peak=save_peak,
        resave_peak=resave_peak,
        leaf_peak=leaf_peak,
        back_peak=back_peak,
        background=starts + fixed.backward,
        first_background=fixed.before,
    )


def _state(chain: Chain) -> tuple[Ints, dict[int, int]]:
    """[i, k]: bytes of the state of k that do not cross the cut before i; per value the first stage whose state has it
    (a value is in consecutive states)."""
    count = len(chain.stages)
    state = np.zeros((count, count + 1), dtype=np.int64)
    appears: dict[int, int] = {}
    for k in range(count):
        for value in chain.state(k):
            first = appears.setdefault(value, k)
            state[:first, k] += chain.problem.values[value].bytes
    return state, appears


def _moving(chain: Chain) -> list[int]:
    """Per value, its bytes where a schedule of the chain moves it, or where backward computes it; else 0."""
    problem = chain.problem
    backward = [p >= 0 and problem.ops[p].phase == "backward" for p in problem.producer]
    return [value.bytes if backward[v] or chain.droppable[v] else 0 for v, value in enumerate(problem.values)]


def _sizes(chain: Chain, moving: list[int], staying: set[int], once: set[int]) -> list[int]:
    """Per value, the bytes that count in a stage: 0 for constants and those `staying`, its size for those in `once`."""
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
    """[i]: most bytes beside the state of k while its `sequence` is computed, in a sweep from stage i <= k that keeps
    the values `keep`.

    A value that is not in the state of i is freed after its last reader. `once`: values of k that cannot be recomputed,
    where this is its first computation.
    """
    own = set(chain.stages[k].state)
    ending = {v: appears[v] for v in own - keep}
    peaks = np.zeros(k + 1, dtype=np.int64)
    for low, high in pairwise([0, *sorted(set(ending.values())), k + 1]):
        freed = {v for v, first in ending.items() if first > low}
        sizes = _sizes(chain, moving, own - freed, once)
        peaks[low:high] = _peak(chain.problem, sequence, sizes, freed, keep) - chain.bytes(freed)
    return peaks


def _peak(problem: Problem, sequence: Sequence[int], sizes: Sequence[int], resident: set[int], keep: set[int]) -> int:
    """Most bytes while `sequence` is computed: of the values `resident` before it and of its outputs, each until its
    last reader, or to the end for those in `keep`.

    An output without a size here is a fresh copy of a value that stays anyway, and is freed after its op.
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
    live = set(resident)
    held = peak = sum(sizes[v] for v in resident)
    for op, ended in zip(sequence, reversed(ends), strict=True):
        outputs = problem.ops[op].outputs
        peak = max(peak, held + sum(problem.values[v].bytes for v in outputs) + problem.ops[op].workspace_bytes)
        held += sum(sizes[v] for v in outputs if v not in live)
        live.update(outputs)
        held -= sum(sizes[v] for v in ended if v in live)
        live.difference_update(ended)
    return peak


def _gradients(chain: Chain) -> tuple[Ints, list[tuple[set[int], set[int]]]]:
    """Per stage: bytes of gradients alive before its backward; the gradients that it reads from before; and those of
    them, and of its own, that later ops read. Results count as read at the end.
    """
    problem, stages = chain.problem, chain.stages
    alive = live_gradients(problem)
    results = set(problem.results)
    starts = np.zeros(len(stages), dtype=np.int64)
    crossing: list[tuple[set[int], set[int]]] = []
    place = 0
    for k in range(len(stages) - 1, -1, -1):
        starts[k] = alive[place]
        place += len(stages[k].backward)
        ops = set(stages[k].backward)
        computed = {v for op in ops for v in problem.ops[op].outputs}
        read = {v for op in ops for v in problem.ops[op].inputs if v not in computed}
        entering = {
            v for v in read if problem.producer[v] >= 0 and problem.ops[problem.producer[v]].phase == "backward"
        }
        last = max(ops, default=-1)
        leaving = {v for v in computed | entering if v in results or any(op > last for op in problem.consumers[v])}
        crossing.append((entering, leaving))
    return starts, crossing[::-1]


@dataclass(frozen=True, slots=True)
class _Fixed:
    """The times at which the forward values that cannot be dropped are resident. Per stage of L."""

    computed: list[set[int]]  # by its first computation
    staying: list[set[int]]  # of these, those still resident after it
    before: Ints  # bytes before its first computation
    backward: Ints  # bytes during its backward
    ending: list[set[int]]  # those that no op reads after its backward


def _fixed(chain: Chain) -> _Fixed:
    """A value that is no result is resident until its last reader; a forward op that may be recomputed reads it in the
    backward of its stage."""
    problem, stages = chain.problem, chain.stages
    count = len(stages)
    stage_of = {op: k for k, stage in enumerate(stages) for op in (*stage.ops, *stage.backward)}
    results = set(problem.results)
    before, backward = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    computed: list[set[int]] = [set() for _ in stages]
    staying: list[set[int]] = [set() for _ in stages]
    ending: list[set[int]] = [set() for _ in stages]

    def reads_in_backward(op: int) -> bool:
        may_repeat = problem.ops[op].recomputable and any(chain.droppable[v] for v in problem.ops[op].outputs)
        return may_repeat or problem.ops[op].phase == "backward"

    for value, producer in enumerate(problem.producer):
        if producer < 0 or problem.ops[producer].phase == "backward" or chain.droppable[value]:
            continue
        size = problem.values[value].bytes
        start, readers = stage_of[producer], problem.consumers[value]
        lowest = (
            0 if value in results else min((stage_of[op] for op in readers if reads_in_backward(op)), default=count)
        )
        last = count - 1 if lowest < count else max((stage_of[op] for op in readers), default=start)
        before[start + 1 : last + 1] += size
        backward[lowest:] += size
        computed[start].add(value)
        if lowest < count or last > start:
            staying[start].add(value)
        if lowest < count and value not in results:
            ending[lowest].add(value)
    return _Fixed(computed, staying, before, backward, ending)
