"""The dynamic program over the memory-persistent schedules of a heterogeneous chain, and its discretised memory.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains: how to train deep
neural networks with limited memory. RR-9302 and arXiv 1911.13214, 2019; ACM TOMS 2024.

Stage k takes x_k to x_(k+1); its backward needs x̄_(k+1). The forward of a stage keeps nothing, keeps its input, or
keeps x̄ (F_all). Among memory-persistent schedules, in which a checkpoint stays until its backward, the cost of
segment i..j with memory m (its input x_i not counted) is

    C(m, i, i) = f_i + b_i                                                               if m >= leaf_i
    C(m, i, j) = min of
        min over i < k <= j of  f_i + .. + f_(k-1) + C(m - x_k, k, j) + C(m, i, k-1)      if m >= sweep
        C(m, i, i) + C(m - x̄_(i+1), i+1, j)                                                if m >= leaf_i and F_all fits

and inf where none is allowed. leaf_i: x̄_(i+1), the gradient of x_(i+1) and the peaks of the stage's forward and
backward; sweep: the gradient of x_(j+1), and for each stage run the state before it, after it and its peak. Where a
stage may be saved in several options, each with its x̄, times and peaks, F_all is the cheapest of them.

From the paper's chain to a training step (`chain`, `costs`):

- A state is a set of values; one that is in x_i already takes no more memory in x_k, so x_k counts without x_i. On a
  plain chain, where states are disjoint, that is the paper's recurrence.
- The last reader of x_i is the backward of stage i. A value that no earlier stage keeps is freed after its last reader
  there, also in F_all before segment i+1..j. There are two cases, each with rows in the table. Either stage k is
  reached by a sweep from a stage whose state shares nothing with x_k; then all of x_k is freed in this way. Or it is
  not; then only what stage k-1 computes and its backward does not read is freed. A sweep frees in the same way what
  x_i does not have.
- The first forward runs every op anyway, so only recomputation costs time; segments that end with the last stage are
  those of the first forward. Recomputing x̄ alone may need fewer ops than recomputing the next state.
- The memory of a sweep is that of the stages that are run, i..k-1; in the paper it is that of i..j-1.
- A recomputed stage needs memory for the ops that are recomputed: its x̄ may be in its state already.
- In place of the gradient of x_(j+1): all gradients, results and fixed values alive at that moment.
- Ties: F_all first, then the smallest k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from remat_solvers.toolkit.arrays import Floats, Ints
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.costs import ChainCosts, chain_costs
from remat_solvers.toolkit.chains.schedule import Advance, Back, ChainStep, Part, Save, SaveOptions, unfold


@dataclass(frozen=True, slots=True)
class DiscretisedChain:
    """A chain of L stages in whole slots of memory. [i, k] has rows 0..L-1, columns 0..L; [i, j] columns 0..L-1.

    [w, ...]: per option w to save a stage and run its backward; one that stage i does not have needs more than `slots`.
    [r]: row r stands for stage r % L; rows from L on are the case in which no other stage keeps any of the state
    before it (see `entry`).
    """

    slots: int  # the largest memory
    advance: Floats  # [i, k]: time of running i..k-1 to the state of k, where k is the first stage of ..j
    last_advance: Floats  # [i, k]: the same where the segment ends with the last stage
    leaf_time: Floats  # [w, i, j]: F_all of i with its backward next, and that backward
    save_time: Floats  # [w, i, j]: F_all of i in segment i..j, and its backward
    state: Ints  # [i, k]: slots of x_k beside x_i
    saved: Ints  # [w, r]: slots of x̄_(i+1) and x_(i+1) beside x_i
    leaf_need: Ints  # [w, r]: smallest m for F_all and backward of i
    save_need: Ints  # [w, r, j]: smallest m for F_all of i in segment i..j
    sweep_need: Ints  # [j, i, k]: smallest m for running i..k-1 in segment i..j
    entry: Ints  # [i, k]: the row of stage k where a sweep from i reaches it; where i = k - 1 is saved it is k


def cost_table(chain: DiscretisedChain) -> Floats:
    """[r, j, m]: the cost of segment i..j, i of row r, with m slots beside its input; inf where it does not fit.

    All memories are computed at once, as arrays: O(L^2 (L + options) slots) time and O(L^2 slots) space.
    """
    (options, rows), width = chain.saved.shape, chain.slots + 1
    count = len(chain.state)
    pad = width  # infinite entries to the left of every row, for memories below 0
    cost = np.full((rows, count, pad + width), np.inf)
    smallest = np.full((rows, count), width)  # [r, j]: the smallest memory of finite cost
    flat = cost.reshape(-1)
    memory = np.arange(width)
    starts = np.arange(rows) * count * (pad + width)
    state = np.minimum(chain.state, pad)
    saved = np.minimum(chain.saved, pad)
    places = np.empty((count, width), dtype=np.intp)
    rights, both = np.empty((count, width)), np.empty((count, width))
    for j in range(count):
        advance = chain.last_advance if j == count - 1 else chain.advance
        for i in range(j, -1, -1):
            ks = slice(i + 1, j + 1)
            entry = chain.entry[i, ks]
            if i < j:
                begin = starts[entry] + (j * (pad + width) + pad) - state[i, ks]
                index = np.add(begin[:, None], memory, out=places[: j - i])
                sums = np.take(flat, index, out=rights[: j - i], mode="clip")
                sums += advance[i, ks, None]
                need = np.minimum(chain.sweep_need[j, i, ks], width)
                for k in np.flatnonzero(need > state[i, ks] + smallest[entry, j]):
                    sums[k, : need[k]] = np.inf
            for r in range(i, rows, count):
                row = cost[r, j, pad:]
                if i < j:
                    np.min(np.add(sums, cost[r, i:j, pad:], out=both[: j - i]), axis=0, out=row)
                for w in range(options):
                    need_all = int(chain.leaf_need[w, r])
                    if i < j:
                        need_all = max(need_all, int(chain.save_need[w, r, j]))
                    if need_all < width:
                        price, back = (
                            (chain.save_time[w, i, j], saved[w, r]) if i < j else (chain.leaf_time[w, i, i], 0)
                        )
                        onward = cost[i + 1, j, pad + need_all - back : pad + width - back] if i < j else 0.0
                        np.minimum(row[need_all:], onward + price, out=row[need_all:])
                smallest[r, j] = width - np.count_nonzero(np.isfinite(row))  # costs fall with memory
    return cost[:, :, pad:]


def reference_cost_table(chain: DiscretisedChain) -> Floats:
    """The same table, cell by cell, for tests of `cost_table`."""
    rows, count = chain.saved.shape[1], len(chain.state)
    cost = np.full((rows, count, chain.slots + 1), np.inf)
    for j in range(count):
        for i in range(j, -1, -1):
            for r in range(i, rows, count):
                for m in range(chain.slots + 1):
                    cost[r, j, m] = min((first[0] for first in _decisions(chain, cost, r, j, m)), default=np.inf)
    return cost


def _decisions(chain: DiscretisedChain, cost: Floats, r: int, j: int, m: int) -> list[tuple[float, int, int]]:
    """(cost, k, w) of every first step of segment i..j, i of row r, with m slots; k = i stands for F_all, option w."""
    if m < 0:
        return []
    options, count = chain.saved.shape[0], len(chain.state)
    i = r % count
    if i == j:
        return [(float(chain.leaf_time[w, i, i]), i, w) for w in range(options) if m >= chain.leaf_need[w, r]]
    decisions: list[tuple[float, int, int]] = []
    for w in range(options):
        if m >= max(chain.leaf_need[w, r], chain.save_need[w, r, j], chain.saved[w, r]):
            decisions.append((float(chain.save_time[w, i, j] + cost[i + 1, j, m - chain.saved[w, r]]), i, w))
    advance = chain.last_advance if j == count - 1 else chain.advance
    for k in range(i + 1, j + 1):
        if m >= max(chain.sweep_need[j, i, k], chain.state[i, k]):
            right = cost[chain.entry[i, k], j, m - chain.state[i, k]]
            decisions.append((float(advance[i, k] + right + cost[r, k - 1, m]), k, 0))
    return decisions


def persistent_schedule(
    chain: DiscretisedChain, cost: Floats, memory: int, first: int = 0, last: int | None = None
) -> list[ChainStep]:
    """The steps of the cheapest schedule of stages first..last with `memory` slots beside x_first; it must exist."""
    count = len(chain.state)

    def split(part: Part) -> Sequence[Part | ChainStep]:
        r, j, m = part
        i = r % count
        _, k, w = min(_decisions(chain, cost, r, j, m))
        if i == j:
            return Save(i, option=w), Back(i, w)
        if k == i:
            return Save(i, onward=True, option=w), (i + 1, j, m - int(chain.saved[w, r])), Back(i, w)
        return Advance(i, k), (int(chain.entry[i, k]), j, m - int(chain.state[i, k])), (r, k - 1, m)

    return unfold((first, count - 1 if last is None else last, memory), split)


@dataclass(frozen=True, slots=True)
class DisjointStates:
    """The case in which a sweep comes from a stage whose state shares nothing with the state of the stage it reaches.

    No other stage keeps any of the reached state then, so all of it is freed after its last reader.
    """

    starts: Sequence[int]  # per stage: a sweep from this stage or an earlier one is of this case
    costs: ChainCosts  # of the stages in this case


def disjoint_states(chain: Chain, options: SaveOptions | None = None) -> DisjointStates:
    """The stages of `chain` in the case in which no other stage keeps any of the state before them."""
    states = [set(stage.state) for stage in chain.stages]
    starts = [max((h for h in range(k) if states[h].isdisjoint(states[k])), default=0) for k in range(len(states))]
    return DisjointStates(starts, chain_costs(chain, options, alone=True))


def discretised(
    costs: ChainCosts, memory_bytes: int, slots: int, disjoint: DisjointStates | None = None
) -> DiscretisedChain:
    """The chain with memory in `slots` parts of `memory_bytes`; every size and need is rounded up."""
    unit = max(1, -(-memory_bytes // slots))
    count = costs.saved.shape[1]

    def up(size_bytes: Ints) -> Ints:
        return -(-size_bytes // unit)

    running = np.concatenate([[0.0], np.cumsum(costs.advance_ns, dtype=np.float64)])
    advance = running[None, :] - running[:-1, None]
    backward = costs.backward_ns.astype(np.float64)[..., None]
    again = costs.repeat_ns[..., None]
    last = np.arange(count) == count - 1  # segments of the first forward: every op runs anyway
    sweep = np.where(last[:, None, None], costs.first_sweep[None], costs.sweep[None] + costs.background[:, None, None])
    rows = [costs] if disjoint is None else [costs, disjoint.costs]
    first_save = [row.save_peak + row.first_background for row in rows]
    leaf_peak = [
        np.where(last, first, row.leaf_peak + row.background) for row, first in zip(rows, first_save, strict=True)
    ]
    entry = np.tile(np.arange(count), (count, 1))
    for k, start in enumerate([] if disjoint is None else disjoint.starts):
        entry[: start + 1, k] += count
    return DiscretisedChain(
        slots=slots,
        advance=advance,
        last_advance=np.zeros_like(advance),
        leaf_time=np.where(last, again, costs.leaf_ns[..., None]) + backward,
        save_time=np.where(last, again, costs.save_ns[..., None]) + backward,
        state=up(costs.state),
        saved=up(np.concatenate([np.maximum(0, row.saved - row.released) for row in rows], axis=1)),
        leaf_need=up(np.concatenate(list(map(np.maximum, leaf_peak, [row.back_peak for row in rows])), axis=1)),
        save_need=up(
            np.concatenate(
                [
                    np.where(last, first[..., None], row.resave_peak[..., None] + row.background)
                    for row, first in zip(rows, first_save, strict=True)
                ],
                axis=1,
            )
        ),
        sweep_need=up(sweep),
        entry=entry,
    )
