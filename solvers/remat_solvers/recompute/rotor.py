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
- The first forward runs every op anyway, so only what runs again costs time; segments that end with the last stage are
  those of the first forward. Running again to keep x̄ alone may need fewer ops than running to the next state.
- The sweep's memory is asked of the stages that are run, i..k-1; the paper asks it of i..j-1.
- Run again, a stage needs memory for the ops that run then: its x̄ may be in its state already.
- In place of the gradient of x_(j+1): all gradients, results and fixed values alive at that moment.

Memory is counted in `slots` (500 as in the paper) of what the budget leaves, sizes rounded up. Ties: F_all, then the
smallest k. One table answers all memories up to the largest, and the replay decides: of the costs in the table's last
cell, the one of the largest memory whose replayed peak is within the budget is taken, also where it is above what
the discretisation says the budget allows. The method is optimal for its chain only, so it reports no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import InputError
from remat_solvers.problem import Problem
from remat_solvers.recompute.attempts import Attempts
from remat_solvers.recompute.chain import Chain, Cuts, chain_view
from remat_solvers.recompute.chain_costs import ChainCosts, chain_costs
from remat_solvers.recompute.chain_schedule import Advance, Back, Save, Step, Ways, least_memory, sequence_of
from remat_solvers.result import Limits, OnProgress, Outcome, Status

__all__ = ["Rotor", "Slots", "Table", "in_slots", "reference_table", "schedule", "search", "table"]

CUTS: tuple[Cuts, ...] = ("minima", "renewed", "every")
BEYOND_BUDGET = 1.5  # memories in the table go up to this many times what the budget leaves

Table = NDArray[np.float64]  # [i, j, m]: cost of segment i..j with m slots beside its input


@dataclass(frozen=True, slots=True)
class Slots:
    """A chain of L stages in whole slots of memory. [i, k] has rows 0..L-1, columns 0..L; [i, j] columns 0..L-1.

    [w, ...]: per way w to save and run back a stage; a way that stage i does not have needs more than `slots`.
    """

    slots: int  # the largest memory
    advance: NDArray[np.float64]  # [i, k]: time of running i..k-1 to the state of k, where k is the first stage of ..j
    last_advance: NDArray[np.float64]  # [i, k]: the same where the segment ends with the last stage
    leaf_time: NDArray[np.float64]  # [w, i, j]: F_all of i with its backward next, and that backward
    save_time: NDArray[np.float64]  # [w, i, j]: F_all of i in segment i..j, and its backward
    state: NDArray[np.int64]  # [i, k]: slots of x_k beside x_i
    saved: NDArray[np.int64]  # [w, i]: slots of x̄_(i+1) and x_(i+1) beside x_i
    leaf_need: NDArray[np.int64]  # [w, i]: least m of F_all and backward of i
    save_need: NDArray[np.int64]  # [w, i, j]: least m of F_all of i in segment i..j
    sweep_need: NDArray[np.int64]  # [j, i, k]: least m of running i..k-1 in segment i..j


def table(chain: Slots) -> Table:
    """The costs of all segments, memory by memory as arrays. O(L^2 (L + ways) slots) time, O(L^2 slots) space."""
    (ways, count), width = chain.saved.shape, chain.slots + 1
    pad = width  # to the left of every row, infinite: the memory that is not there
    cost = np.full((count, count, pad + width), np.inf)
    least = np.full((count, count), width)  # [i, j]: the smallest memory of finite cost
    flat = cost.reshape(-1)
    memory = np.arange(width)
    starts = np.arange(count) * count * (pad + width)
    state = np.minimum(chain.state, pad)
    saved = np.minimum(chain.saved, pad)
    places = np.empty((count, width), dtype=np.intp)
    rights = np.empty((count, width))
    for j in range(count):
        advance = chain.last_advance if j == count - 1 else chain.advance
        for i in range(j, -1, -1):
            row = cost[i, j, pad:]
            if i == j:
                for w in range(ways):
                    fits = row[min(chain.leaf_need[w, i], width) :]
                    np.minimum(fits, chain.leaf_time[w, i, i], out=fits)
            else:
                ks = slice(i + 1, j + 1)
                begin = starts[ks] + (j * (pad + width) + pad) - state[i, ks]
                index = np.add(begin[:, None], memory, out=places[: j - i])
                sums = np.take(flat, index, out=rights[: j - i], mode="clip")
                sums += cost[i, i:j, pad:]
                sums += advance[i, ks, None]
                need = np.minimum(chain.sweep_need[j, i, ks], width)
                finite = np.maximum(state[i, ks] + least[ks, j], least[i, i:j])
                for k in np.flatnonzero(need > finite):
                    sums[k, : need[k]] = np.inf
                np.min(sums, axis=0, out=row)
                for w in range(ways):
                    need_all = max(int(chain.leaf_need[w, i]), int(chain.save_need[w, i, j]))
                    if need_all < width:
                        onward = cost[i + 1, j, pad + need_all - saved[w, i] : pad + width - saved[w, i]]
                        np.minimum(row[need_all:], onward + chain.save_time[w, i, j], out=row[need_all:])
            least[i, j] = width - np.count_nonzero(np.isfinite(row))  # costs fall with memory
    return cost[:, :, pad:]


def reference_table(chain: Slots) -> Table:
    """The same, cell by cell: what `table` is tested against."""
    count = chain.saved.shape[1]
    cost = np.full((count, count, chain.slots + 1), np.inf)
    for j in range(count):
        for i in range(j, -1, -1):
            for m in range(chain.slots + 1):
                cost[i, j, m] = min((option[0] for option in _options(chain, cost, i, j, m)), default=np.inf)
    return cost


def _options(chain: Slots, cost: Table, i: int, j: int, m: int) -> list[tuple[float, int, int]]:
    """(cost, k, w) of all ways to begin segment i..j with m slots; k = i stands for F_all, in way w."""
    if m < 0:
        return []
    ways, count = chain.saved.shape
    if i == j:
        return [(float(chain.leaf_time[w, i, i]), i, w) for w in range(ways) if m >= chain.leaf_need[w, i]]
    options: list[tuple[float, int, int]] = []
    for w in range(ways):
        if m >= max(chain.leaf_need[w, i], chain.save_need[w, i, j], chain.saved[w, i]):
            options.append((float(chain.save_time[w, i, j] + cost[i + 1, j, m - chain.saved[w, i]]), i, w))
    advance = chain.last_advance if j == count - 1 else chain.advance
    for k in range(i + 1, j + 1):
        if m >= max(chain.sweep_need[j, i, k], chain.state[i, k]):
            right = cost[k, j, m - chain.state[i, k]]
            options.append((float(advance[i, k] + right + cost[i, k - 1, m]), k, 0))
    return options


def schedule(chain: Slots, cost: Table, memory: int, first: int = 0, last: int | None = None) -> list[Step]:
    """The steps of the cheapest schedule of stages first..last with `memory` slots beside x_first; it must exist."""
    steps: list[Step] = []
    end = chain.saved.shape[1] - 1 if last is None else last
    todo: list[tuple[int, int, int] | Step] = [(first, end, memory)]
    while todo:
        item = todo.pop()
        if not isinstance(item, tuple):
            steps.append(item)
            continue
        i, j, m = item
        _, k, w = min(_options(chain, cost, i, j, m))
        if i == j:
            todo += [Back(i, w), Save(i, way=w)]
        elif k == i:
            todo += [Back(i, w), (i + 1, j, m - int(chain.saved[w, i])), Save(i, onward=True, way=w)]
        else:
            todo += [(i, k - 1, m), (k, j, m - int(chain.state[i, k])), Advance(i, k)]
    return steps


def in_slots(costs: ChainCosts, memory_bytes: int, slots: int) -> Slots:
    """The chain with memory in `slots` parts of `memory_bytes`; every size and need is rounded up."""
    unit = max(1, -(-memory_bytes // slots))
    count = costs.saved.shape[1]

    def up(size: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-size // unit)

    running = np.concatenate([[0.0], np.cumsum(costs.advance_ns, dtype=np.float64)])
    advance = running[None, :] - running[:-1, None]
    backward = costs.backward_ns.astype(np.float64)[..., None]
    again = costs.again_ns[..., None]
    last = np.arange(count) == count - 1  # segments of the first forward: every op runs anyway
    first_save = (costs.save_peak + costs.first_around)[..., None]
    save_again = costs.save_again_peak[..., None] + costs.around
    leaf_peak = np.where(last, costs.save_peak, costs.leaf_peak)
    sweep = np.where(last[:, None, None], costs.first_sweep[None], costs.sweep[None] + costs.around[:, None, None])
    return Slots(
        slots=slots,
        advance=advance,
        last_advance=np.zeros_like(advance),
        leaf_time=np.where(last, again, costs.leaf_ns[..., None]) + backward,
        save_time=np.where(last, again, costs.save_ns[..., None]) + backward,
        state=up(costs.state),
        saved=up(costs.saved),
        leaf_need=up(np.maximum(costs.back_peak, leaf_peak + costs.around)),
        save_need=up(np.where(last, first_save, save_again)),
        sweep_need=up(sweep),
    )


def search(chain: Chain, slots: int, attempts: Attempts, ways: Ways | None = None) -> None:
    """Of the schedules in the table's last cell, one per cost, try the fastest whose replayed peak fits."""
    problem = chain.problem
    left = max(1, attempts.budget_bytes - problem.constant_bytes - problem.reserve_bytes)
    sizes = in_slots(chain_costs(chain, ways), int(left * BEYOND_BUDGET), slots)
    cost = table(sizes)
    whole = cost[0, -1]
    memories = [m for m in range(len(whole)) if np.isfinite(whole[m]) and (m == 0 or whole[m] < whole[m - 1])]
    if memories:
        attempts.search(memories, lambda m: sequence_of(chain, schedule(sizes, cost, m), ways), "memory of")


@dataclass(frozen=True)
class Rotor:
    """The optimal memory-persistent schedule of a heterogeneous chain."""

    slots: int = 500  # parts into which memory is divided
    stages: int = 100  # most stages of the chain
    cuts: Cuts | None = None  # where the step is cut, see `chain`; None: each way

    name: ClassVar[str] = "rotor"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        for option in ("slots", "stages"):
            number = getattr(self, option)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"rotor: {option} must be a positive integer, not {number!r}")
        if self.cuts not in (None, *CUTS):
            raise InputError(f"rotor: cuts must be one of {', '.join(CUTS)}, not {self.cuts!r}")

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest schedule of the table whose replayed peak is within the budget. See `registry.Solver`."""
        if not problem.backward_ops:
            return Outcome(Status.NOT_APPLICABLE, reason="rotor recomputes for a backward pass; there is none")
        attempts = Attempts(problem, budget_bytes, limits, on_progress)
        with attempts:
            chains: list[Chain] = []
            for cuts in (self.cuts,) if self.cuts else CUTS:
                chain = chain_view(problem, cuts=cuts, most=self.stages)
                if chain not in chains and not attempts.expired:
                    chains.append(chain)
                    search(chain, self.slots, attempts)
                    if attempts.best is None and not attempts.expired:  # what the chain can do with the least memory
                        attempts.fits(sequence_of(chain, least_memory(0, len(chain.stages))), "nothing kept")
        return attempts.outcome()
