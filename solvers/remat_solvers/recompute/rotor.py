"""rotor: optimal checkpointing for heterogeneous chains, by dynamic programming.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains: how to train deep
neural networks with limited memory. RR-9302 and arXiv 1911.13214, 2019; ACM TOMS 2024.

Stage k takes x_k to x_(k+1); its backward needs x̄_(k+1). A stage is run forward keeping nothing, keeping its input, or
keeping x̄ (F_all). Among memory-persistent schedules, in which a checkpoint stays until its backward, the cost of
segment i..j with memory m (its input x_i not counted) is

    C(m, i, i) = f_i + b_i                                                               if m >= leaf_i
    C(m, i, j) = min of
        min over i < k <= j of  f_i + .. + f_(k-1) + C(m - x_k, k, j) + C(m, i, k-1)      if m >= sweep
        C(m, i, i) + C(m - x̄_(i+1), i+1, j)                                                if m >= leaf_i and F_all fits

and inf where none is allowed. leaf_i: x̄_(i+1), the gradient of x_(i+1) and the peaks of the stage's forward and
backward; sweep: the gradient of x_(j+1), and for each stage run the state before it, after it and its peak. Where a
stage may be saved in several ways, each with its x̄, times and peaks, F_all is the cheapest of them (see rockmate.py).

From the paper's chain to a training step (`chain`, `chain_costs`):

- A state is a set of values; one that is in x_i already takes no more memory in x_k, so x_k counts without x_i. On a
  plain chain, where states are disjoint, that is the paper's recurrence.
- The last thing that happens to x_i is the backward of stage i. What nobody below keeps of it goes with its last reader
  there, also in F_all before segment i+1..j. Two cases, each with rows in the table: stage k was run to from a stage
  whose state shares nothing with x_k (then all of it goes), or not (then what stage k-1 made and its backward does
  not read). A sweep lets go in the same way what x_i does not have.
- The first forward runs every op anyway, so only what runs again costs time; segments that end with the last stage are
  those of the first forward. Running again to keep x̄ alone may need fewer ops than running to the next state.
- The sweep's memory is asked of the stages that are run, i..k-1; the paper asks it of i..j-1.
- Run again, a stage needs memory for the ops that run then: its x̄ may be in its state already.
- In place of the gradient of x_(j+1): all gradients, results and fixed values alive at that moment.

Memory is counted in `slots` parts (500 as in the paper) of half as much again as the budget leaves, sizes rounded up.
Ties: F_all, then the smallest k. One table answers all memories up to the largest, and the replay decides: of the costs
in the table's last cell, the one of the largest memory whose replayed peak is within the budget is taken, also where it
is above what the discretisation says the budget allows. A second table has the first case everywhere, which may count
too little; its schedules are tried too. Where no schedule of any table fits, each stage is run again from the start,
nothing kept, and the reason says so. The method is optimal for its chain only, so it reports no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome
from remat_solvers.toolkit.arrays import Floats, Ints
from remat_solvers.toolkit.chains.chain import MOST_SLOTS, MOST_STAGES, Chain, Cuts, chain_view
from remat_solvers.toolkit.chains.costs import ChainCosts, chain_costs
from remat_solvers.toolkit.chains.schedule import Advance, Back, Save, Step, Ways, least_memory, sequence_of
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.trials import Trials

__all__ = [
    "Advanced",
    "Rotor",
    "Slots",
    "Table",
    "advanced",
    "in_slots",
    "keep_nothing",
    "reference_table",
    "schedule",
    "search",
    "table",
]

CUTS: tuple[Cuts, ...] = ("minima", "renewed", "every")
BEYOND_BUDGET = 1.5  # memories in the table go up to this many times what the budget leaves
PATIENCE = 6  # memories beyond the fastest that fits, in a row, whose replays do not

Table = Floats  # [i, j, m]: cost of segment i..j with m slots beside its input


@dataclass(frozen=True, slots=True)
class Slots:
    """A chain of L stages in whole slots of memory. [i, k] has rows 0..L-1, columns 0..L; [i, j] columns 0..L-1.

    [w, ...]: per way w to save and run back a stage; a way that stage i does not have needs more than `slots`.
    [r]: stage r % L; from L on, where nobody else keeps any of the state before it (see `entry`).
    """

    slots: int  # the largest memory
    advance: Floats  # [i, k]: time of running i..k-1 to the state of k, where k is the first stage of ..j
    last_advance: Floats  # [i, k]: the same where the segment ends with the last stage
    leaf_time: Floats  # [w, i, j]: F_all of i with its backward next, and that backward
    save_time: Floats  # [w, i, j]: F_all of i in segment i..j, and its backward
    state: Ints  # [i, k]: slots of x_k beside x_i
    saved: Ints  # [w, r]: slots of x̄_(i+1) and x_(i+1) beside x_i
    leaf_need: Ints  # [w, r]: least m of F_all and backward of i
    save_need: Ints  # [w, r, j]: least m of F_all of i in segment i..j
    sweep_need: Ints  # [j, i, k]: least m of running i..k-1 in segment i..j
    entry: Ints  # [i, k]: the row of stage k where it is run to from i; where i = k - 1 is saved it is k


def table(chain: Slots) -> Table:
    """The costs of all segments, memory by memory as arrays. O(L^2 (L + ways) slots) time, O(L^2 slots) space."""
    (ways, rows), width = chain.saved.shape, chain.slots + 1
    count = len(chain.state)
    pad = width  # to the left of every row, infinite: the memory that is not there
    cost = np.full((rows, count, pad + width), np.inf)
    least = np.full((rows, count), width)  # [r, j]: the smallest memory of finite cost
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
                for k in np.flatnonzero(need > state[i, ks] + least[entry, j]):
                    sums[k, : need[k]] = np.inf
            for r in range(i, rows, count):
                row = cost[r, j, pad:]
                if i < j:
                    np.min(np.add(sums, cost[r, i:j, pad:], out=both[: j - i]), axis=0, out=row)
                for w in range(ways):
                    need_all = int(chain.leaf_need[w, r])
                    if i < j:
                        need_all = max(need_all, int(chain.save_need[w, r, j]))
                    if need_all < width:
                        price, back = (
                            (chain.save_time[w, i, j], saved[w, r]) if i < j else (chain.leaf_time[w, i, i], 0)
                        )
                        onward = cost[i + 1, j, pad + need_all - back : pad + width - back] if i < j else 0.0
                        np.minimum(row[need_all:], onward + price, out=row[need_all:])
                least[r, j] = width - np.count_nonzero(np.isfinite(row))  # costs fall with memory
    return cost[:, :, pad:]


def reference_table(chain: Slots) -> Table:
    """The same, cell by cell: what `table` is tested against."""
    rows, count = chain.saved.shape[1], len(chain.state)
    cost = np.full((rows, count, chain.slots + 1), np.inf)
    for j in range(count):
        for i in range(j, -1, -1):
            for r in range(i, rows, count):
                for m in range(chain.slots + 1):
                    cost[r, j, m] = min((option[0] for option in _options(chain, cost, r, j, m)), default=np.inf)
    return cost


def _options(chain: Slots, cost: Table, r: int, j: int, m: int) -> list[tuple[float, int, int]]:
    """(cost, k, w) of all ways to begin segment i..j, i of row r, with m slots; k = i stands for F_all, in way w."""
    if m < 0:
        return []
    ways, count = chain.saved.shape[0], len(chain.state)
    i = r % count
    if i == j:
        return [(float(chain.leaf_time[w, i, i]), i, w) for w in range(ways) if m >= chain.leaf_need[w, r]]
    options: list[tuple[float, int, int]] = []
    for w in range(ways):
        if m >= max(chain.leaf_need[w, r], chain.save_need[w, r, j], chain.saved[w, r]):
            options.append((float(chain.save_time[w, i, j] + cost[i + 1, j, m - chain.saved[w, r]]), i, w))
    advance = chain.last_advance if j == count - 1 else chain.advance
    for k in range(i + 1, j + 1):
        if m >= max(chain.sweep_need[j, i, k], chain.state[i, k]):
            right = cost[chain.entry[i, k], j, m - chain.state[i, k]]
            options.append((float(advance[i, k] + right + cost[r, k - 1, m]), k, 0))
    return options


def schedule(chain: Slots, cost: Table, memory: int, first: int = 0, last: int | None = None) -> list[Step]:
    """The steps of the cheapest schedule of stages first..last with `memory` slots beside x_first; it must exist."""
    steps: list[Step] = []
    count = len(chain.state)
    todo: list[tuple[int, int, int] | Step] = [(first, count - 1 if last is None else last, memory)]
    while todo:
        item = todo.pop()
        if not isinstance(item, tuple):
            steps.append(item)
            continue
        r, j, m = item
        i = r % count
        _, k, w = min(_options(chain, cost, r, j, m))
        if i == j:
            todo += [Back(i, w), Save(i, way=w)]
        elif k == i:
            todo += [Back(i, w), (i + 1, j, m - int(chain.saved[w, r])), Save(i, onward=True, way=w)]
        else:
            todo += [(r, k - 1, m), (int(chain.entry[i, k]), j, m - int(chain.state[i, k])), Advance(i, k)]
    return steps


@dataclass(frozen=True, slots=True)
class Advanced:
    """Where nobody else keeps any of the state before a stage: it is run to from stage below[k] or an earlier one."""

    below: Sequence[int]
    costs: ChainCosts


def in_slots(costs: ChainCosts, memory_bytes: int, slots: int, case: Advanced | None = None) -> Slots:
    """The chain with memory in `slots` parts of `memory_bytes`; every size and need is rounded up."""
    unit = max(1, -(-memory_bytes // slots))
    count = costs.saved.shape[1]

    def up(size: Ints) -> Ints:
        return -(-size // unit)

    running = np.concatenate([[0.0], np.cumsum(costs.advance_ns, dtype=np.float64)])
    advance = running[None, :] - running[:-1, None]
    backward = costs.backward_ns.astype(np.float64)[..., None]
    again = costs.again_ns[..., None]
    last = np.arange(count) == count - 1  # segments of the first forward: every op runs anyway
    sweep = np.where(last[:, None, None], costs.first_sweep[None], costs.sweep[None] + costs.around[:, None, None])
    rows = [costs] if case is None else [costs, case.costs]
    first_save = [row.save_peak + row.first_around for row in rows]
    leaf_peak = [np.where(last, first, row.leaf_peak + row.around) for row, first in zip(rows, first_save, strict=True)]
    entry = np.tile(np.arange(count), (count, 1))
    for k, below in enumerate([] if case is None else case.below):
        entry[: below + 1, k] += count
    return Slots(
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
                    np.where(last, first[..., None], row.save_again_peak[..., None] + row.around)
                    for row, first in zip(rows, first_save, strict=True)
                ],
                axis=1,
            )
        ),
        sweep_need=up(sweep),
        entry=entry,
    )


def advanced(chain: Chain, ways: Ways | None = None) -> Advanced:
    """Stages run to from one whose state shares nothing with theirs: nobody else keeps any of it."""
    states = [set(stage.state) for stage in chain.stages]
    below = [max((h for h in range(k) if states[h].isdisjoint(states[k])), default=0) for k in range(len(states))]
    return Advanced(below, chain_costs(chain, ways, alone=True))


def search(chain: Chain, slots: int, trials: Trials, ways: Ways | None = None) -> None:
    """Of the schedules in the last cells of both tables, one per cost, try the fastest whose replayed peak fits."""
    problem = chain.problem
    left = max(1, trials.budget_bytes - problem.constant_bytes - problem.reserve_bytes)
    most_bytes = int(left * BEYOND_BUDGET)
    case = advanced(chain, ways)
    for sizes in (
        in_slots(chain_costs(chain, ways), most_bytes, slots, case),
        in_slots(case.costs, most_bytes, slots),
    ):
        if not trials.expired:
            _search_table(chain, sizes, trials, ways)


def _search_table(chain: Chain, sizes: Slots, trials: Trials, ways: Ways | None) -> None:
    cost = table(sizes)
    whole = cost[0, -1]
    memories = [m for m in range(len(whole)) if np.isfinite(whole[m]) and (m == 0 or whole[m] < whole[m - 1])]
    if not memories:
        return

    def sequence(memory: int) -> list[int]:
        return sequence_of(chain, schedule(sizes, cost, memory), ways)

    trials.search(memories, sequence, "memory of")
    forward_ns = sum(chain.problem.ops[op].time_ns for op in chain.problem.forward_ops)
    missed = 0
    for memory in memories:
        if trials.best is None or missed == PATIENCE or trials.expired:
            break
        if whole[memory] + forward_ns < trials.best.time_ns:
            missed = 0 if trials.fits(sequence(memory), f"memory of {memory}") else missed + 1


def keep_nothing(chain: Chain, trials: Trials, ways: Ways | None = None) -> str:
    """Where no plan fits yet: run every stage from the start again. What to tell where that is a plan, else nothing."""
    if trials.best is not None or trials.expired:
        return ""
    found = trials.fits(sequence_of(chain, least_memory(0, len(chain.stages)), ways), "nothing kept")
    return "no schedule of the tables fits; nothing is kept, every stage runs again from the start" if found else ""


@dataclass(frozen=True)
class Rotor:
    """The optimal memory-persistent schedule of a heterogeneous chain."""

    slots: int = 500  # parts into which memory is divided
    stages: int = 100  # most stages of the chain
    cuts: Cuts | None = None  # where the step is cut, see `chain`; None: each way

    name: ClassVar[str] = "rotor"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self, slots=(1, MOST_SLOTS), stages=(1, MOST_STAGES))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest schedule of the tables whose replayed peak is within the budget. See `registry.Solver`.

        Where none is, the plan that keeps nothing, if that fits, and the reason says so.
        """
        if missing := missing_requirement(problem, self.name, "backward pass"):
            return missing
        trials = Trials(problem, budget_bytes, limits, on_progress)
        reason = ""
        with trials:
            chains: list[Chain] = []
            for cuts in (self.cuts,) if self.cuts else CUTS:
                chain = chain_view(problem, cuts=cuts, most=self.stages)
                if chain not in chains and not trials.expired:
                    chains.append(chain)
                    known = trials.best
                    search(chain, self.slots, trials)
                    reason = keep_nothing(chain, trials) or (reason if trials.best is known else "")
        return replace(trials.outcome(), reason=reason)
