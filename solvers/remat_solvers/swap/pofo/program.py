"""The dynamic program of POFO over the stages of a chain; solver.py has the paper and the points chosen here.

A label is one state in which the first forward can reach the start of stage i:

    A     bytes kept on the device for earlier stages
    df    bytes of theirs whose copy to the host is not over when the stage starts
    db    bytes of theirs that are back on the device already when its backward ends
    bar   the stage before was run by F_all, so that x̄_i is resident, and not x_i alone; in = the bytes of either

and the time that is sure by then: backward and recomputation of the stages before, and idle time. Two decisions
continue it,

    F_all    eps_f = max(0, peak_f - M + A + df + in), eps_b = max(0, peak_b - M + A + db + in)
             out = beta_f f_i + eps_f, pre = beta_b b_i + eps_b, time b_i + eps_f / beta_f + eps_b / beta_b
    run on   from i to j, keeping nothing; eps_f the same with the most of  peak_k - beta_f (f_i + .. + f_(k-1))
             out = beta_f (f_i + .. + f_j) + eps_f, time and pre are those of backward, by rotor's table

each with the input of the stage, G bytes of it, moved to the host or kept:

    moved    df' = max(0, df + G - out), db' = max(0, db - pre) + G
    kept     A' = A + G, df' = max(0, df - out), db' = max(0, db - pre)

and A' + df' <= M, A' + db' <= M. At the loss, (df' + db') / beta is exposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from remat_solvers.problem import Link
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.toolkit.arrays import Floats, Ints, Mask
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.costs import ChainCosts, chain_costs
from remat_solvers.toolkit.chains.persistent import DiscretisedChain, cost_table, discretised

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision on the path of the best label."""

    stage: int
    end: int  # the next stage that decides; the number of stages for the last decision
    run_on: bool  # run the stages up to `end` keeping nothing, backward by rotor; else F_all
    bar: bool  # whether x̄ of the stage is resident
    moved: bool  # whether its input goes to the host
    memory: int  # slots for rotor, if `run_on`


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a chain of L stages, as the labels count them."""

    into: Ints  # [bar, i]: of the input of i: its state, with bar also the values that F_all of the stage before saved
    group: Ints  # [i, n]: of the state of i that is not in that of n > i: moved or kept when n decides next
    saved: Ints  # [i]: the bytes that bar adds to both


@dataclass(frozen=True, slots=True)
class ChainProgram:
    """A chain, its costs, and rotor's table for memories up to `most_bytes`."""

    chain: Chain
    costs: ChainCosts
    sizes: Sizes
    slots: DiscretisedChain
    table: Floats
    unit: int  # bytes of a slot

    @staticmethod
    def of(chain: Chain, most_bytes: int, slots: int) -> ChainProgram:
        costs = chain_costs(chain)
        parts = discretised(costs, most_bytes, slots)
        return ChainProgram(
            chain, costs, _sizes(chain, costs), parts, cost_table(parts), max(1, -(-most_bytes // slots))
        )

    def rotor(self, first: int, last: int, memory_bytes: Floats) -> tuple[Floats, Ints]:
        """Time of the backward of stages first..last from the state of `first`, and the slots; inf: it does not fit."""
        memory = np.floor_divide(memory_bytes, self.unit).astype(np.int64)
        row = self.table[first, last]
        found = np.where(memory >= 0, row[np.clip(memory, 0, len(row) - 1)], np.inf)
        return found, np.clip(memory, 0, len(row) - 1)


def _sizes(chain: Chain, costs: ChainCosts) -> Sizes:
    count = len(chain.stages)
    full = np.array([chain.bytes(chain.state(k)) for k in range(count + 1)], dtype=np.int64)
    group = full[:count, None] - full[None, :] + costs.state
    before = np.arange(count) - 1
    saved = costs.saved[0, before] - costs.state[before, np.arange(count)]
    saved[0] = 0
    return Sizes(np.stack([full[:count], full[:count] + saved]), group, saved)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Arrays of labels at one stage, and the decision that each comes from."""

    kept: Floats  # A
    leaving: Floats  # df
    back: Floats  # db
    time_ns: Floats
    origin: Ints  # row: stage, bar, label, run_on, moved, slots of rotor

    def at(self, rows: Mask | Ints) -> _Labels:
        return _Labels(self.kept[rows], self.leaving[rows], self.back[rows], self.time_ns[rows], self.origin[rows])


@dataclass(frozen=True, slots=True)
class Schedule:
    """The decisions of a schedule in the order of the forward, and its time beside the first forward."""

    time_ns: float
    choices: tuple[Decision, ...]


def solve_chain(
    program: ChainProgram, link: Link, memory_bytes: int, cells: int, watch: Stopwatch | None = None
) -> Schedule | None:
    """The fastest schedule in `memory_bytes`, or the best so far when the watch has expired; None: there is none.

    cells: per stage one label stays per cell of a grid of (A, df, db), of so many cells in each direction; it keeps its
    exact bytes. A label is dropped where another one of its stage is no worse in every cell and in time.
    """
    return _Run(program, link, memory_bytes, cells).run(watch)


class _Run:
    def __init__(self, program: ChainProgram, link: Link, memory_bytes: int, cells: int) -> None:
        self.program, self.memory_bytes = program, memory_bytes
        self.cell = max(1, -(-memory_bytes // cells))
        self.out_rate = link.to_host_bytes_per_s / NS_PER_S
        self.back_rate = link.to_device_bytes_per_s / NS_PER_S
        chain, costs = program.chain, program.costs
        self.count = len(chain.stages)
        forward = [sum(chain.problem.ops[op].time_ns for op in stage.ops) for stage in chain.stages]
        self.starts = np.array([0, *accumulate(forward)], dtype=np.float64)  # of each stage in the first forward
        self.all_peak = costs.save_peak[0] + costs.first_background
        self.ahead = np.cumsum(costs.backward_ns[0][::-1])[::-1]  # backward of a stage and all later ones
        self.coming: dict[tuple[int, int], list[_Labels]] = {}
        self.labels: dict[tuple[int, int], _Labels] = {}
        self.best: tuple[float, tuple[int, int, int], bool, int] | None = None  # time, label, run_on, slots

    def run(self, watch: Stopwatch | None) -> Schedule | None:
        none = np.zeros((1, 6), dtype=np.int64)
        zero = np.zeros(1)
        self.coming[0, 0] = [_Labels(zero, zero, zero, zero, none)]
        for stage in range(self.count):
            if watch is not None and watch.expired:
                break
            for bar in (0, 1):
                if parts := self.coming.pop((stage, bar), None):
                    self.labels[stage, bar] = self._undominated(stage, _joined(parts))
                    if len(self.labels[stage, bar].time_ns):
                        self._save_all(stage, bar)
                        self._run_on(stage, bar)
        return None if self.best is None else Schedule(self.best[0], tuple(self._decisions()))

    def _undominated(self, stage: int, labels: _Labels) -> _Labels:
        """The fastest label per cell, without those that are dominated or cannot become faster than the best."""
        if self.best is not None:
            labels = labels.at(labels.time_ns + self.ahead[stage] < self.best[0])
        if not len(labels.time_ns):
            return labels
        cells = [np.ceil(part / self.cell).astype(np.int64) for part in (labels.kept, labels.leaving, labels.back)]
        shape = tuple(int(c.max()) + 2 for c in cells)
        place = np.ravel_multi_index(tuple(c + 1 for c in cells), shape)
        order = np.lexsort((labels.kept + labels.leaving + labels.back, labels.time_ns, place))
        first = order[np.unique(place[order], return_index=True)[1]]
        grid = np.full(shape, np.inf)
        grid.reshape(-1)[place[first]] = labels.time_ns[first]
        for axis in range(3):
            np.minimum.accumulate(grid, axis=axis, out=grid)
        a, f, b = (c[first] + 1 for c in cells)
        better = np.minimum(np.minimum(grid[a - 1, f, b], grid[a, f - 1, b]), grid[a, f, b - 1])
        return labels.at(first[labels.time_ns[first] < better])

    def _save_all(self, stage: int, bar: int) -> None:
        """F_all of the stage; at the loss this ends the forward."""
        costs = self.program.costs
        labels, room = self._room(stage, bar)
        peak_f, peak_b = int(self.all_peak[stage]), int(costs.back_peak[0, stage])
        fits = max(peak_f, peak_b) <= room
        idle_f = np.maximum(0, peak_f - room + labels.leaving)
        idle_b = np.maximum(0, peak_b - room + labels.back)
        backward = float(costs.backward_ns[0, stage])
        out = self.out_rate * (self.starts[stage + 1] - self.starts[stage]) + idle_f
        pre = self.back_rate * backward + idle_b
        time_ns = labels.time_ns + backward + idle_f / self.out_rate + idle_b / self.back_rate
        if stage == self.count - 1:
            leaving, back = np.maximum(0, labels.leaving - out), np.maximum(0, labels.back - pre)
            self._end(stage, bar, np.where(fits, time_ns + self._exposed(leaving, back), np.inf), False, None)
            return
        self._go_on(stage, stage + 1, bar, labels, fits, out, pre, time_ns, None)

    def _run_on(self, stage: int, bar: int) -> None:
        """Run stages on, keeping only the input of the first; up to the last stage, all is by rotor."""
        program, costs = self.program, self.program.costs
        labels, room = self._room(stage, bar)
        highest = -np.inf
        for end in range(stage + 1, self.count):
            sent = self.out_rate * (self.starts[end - 1] - self.starts[stage])
            peak = float(costs.first_sweep[stage, end])
            highest = max(highest, peak - sent)
            fits = peak <= room
            if not fits.any():
                break
            idle_f = np.maximum(0, highest - room + labels.leaving)
            out = self.out_rate * (self.starts[end] - self.starts[stage]) + idle_f
            for beside in (True, False):  # copies back run beside the recomputation, or after it
                reserve = labels.back if beside else np.zeros_like(labels.back)
                cost, slots = program.rotor(stage, end - 1, room - reserve)
                pre = self.back_rate * np.where(np.isfinite(cost), cost, 0) if beside else labels.back
                idle_b = 0 if beside else labels.back / self.back_rate
                time_ns = labels.time_ns + idle_f / self.out_rate + cost + idle_b
                self._go_on(stage, end, bar, labels, fits & np.isfinite(cost), out, pre, time_ns, slots)
        exposed = self._exposed(labels.leaving, labels.back)
        for reserve in (np.maximum(labels.leaving, labels.back), np.zeros_like(labels.back)):
            cost, slots = program.rotor(stage, self.count - 1, room - reserve)
            after = np.where(reserve > 0, np.maximum(cost, exposed), cost + exposed)
            self._end(stage, bar, labels.time_ns + after, True, slots)

    def _room(self, stage: int, bar: int) -> tuple[_Labels, Floats]:
        """The labels at a stage, and the memory that each leaves beside what it keeps and the stage's input."""
        labels = self.labels[stage, bar]
        return labels, self.memory_bytes - labels.kept - float(self.program.sizes.into[bar, stage])

    def _exposed(self, leaving: Floats, back: Floats) -> Floats:
        exposed: Floats = leaving / self.out_rate + back / self.back_rate
        return exposed

    def _go_on(
        self,
        stage: int,
        end: int,
        bar: int,
        labels: _Labels,
        fits: Mask,
        out: Floats,
        pre: Floats,
        time_ns: Floats,
        slots: Ints | None,
    ) -> None:
        sizes = self.program.sizes
        group = float(sizes.group[stage, end] + bar * sizes.saved[stage])
        for moved in (True, False):
            kept = labels.kept if moved else labels.kept + group
            leaving = np.maximum(0, labels.leaving + moved * group - out)
            back = np.maximum(0, labels.back - pre) + moved * group
            rows = np.flatnonzero(fits & (kept + np.maximum(leaving, back) <= self.memory_bytes))
            if len(rows):
                origin = np.zeros((len(rows), 6), dtype=np.int64)
                origin[:, 0], origin[:, 1], origin[:, 2], origin[:, 4] = stage, bar, rows, moved
                if slots is not None:
                    origin[:, 3], origin[:, 5] = 1, slots[rows]
                new = _Labels(kept[rows], leaving[rows], back[rows], time_ns[rows], origin)
                self.coming.setdefault((end, int(slots is None)), []).append(new)

    def _end(self, stage: int, bar: int, time_ns: Floats, run_on: bool, slots: Ints | None) -> None:
        index = int(np.argmin(time_ns))
        if np.isfinite(time_ns[index]) and (self.best is None or time_ns[index] < self.best[0]):
            self.best = float(time_ns[index]), (stage, bar, index), run_on, 0 if slots is None else int(slots[index])

    def _decisions(self) -> list[Decision]:
        assert self.best is not None
        _, (stage, bar, index), run_on, memory = self.best
        decisions = [Decision(stage, self.count, run_on, bool(bar), False, memory)]
        while stage:
            end = stage
            origin = [int(x) for x in self.labels[stage, bar].origin[index]]
            stage, bar, index = origin[:3]
            decisions.append(Decision(stage, end, bool(origin[3]), bool(bar), bool(origin[4]), origin[5]))
        return decisions[::-1]


def _joined(parts: list[_Labels]) -> _Labels:
    return _Labels(
        np.concatenate([p.kept for p in parts]),
        np.concatenate([p.leaving for p in parts]),
        np.concatenate([p.back for p in parts]),
        np.concatenate([p.time_ns for p in parts]),
        np.concatenate([p.origin for p in parts]),
    )
