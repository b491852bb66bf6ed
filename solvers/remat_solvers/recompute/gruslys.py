"""Gruslys, Munos, Danihelka, Lanctot, Graves: Memory-Efficient Backpropagation Through Time.

NIPS 2016, arXiv 1606.03401.

A recurrent network of t steps has m slots of memory beside the state that enters. C(t, m) is the smallest number of
forward steps, the one inside each backward step included, when the slot of the running state is one of the m:

hidden     Hidden states are stored. A step is recomputed right before its backward, for its internal state:
               C(t, m) = min over 1 <= y < t of   y + C(t - y, m - 1) + C(y, m)
           In closed form t + r t - binom(m + r, m + 1), r the smallest with t <= binom(m + r, m).
internal   The internal state, which the backward of a step needs, is stored when the step is computed:
               C(t, m) = min over 1 <= y <= t of  y + C(t - y, m - 1) + C(y - 1, m)
mixed      Either is stored; a hidden state takes 1 slot, an internal one `internal_size` slots, a:
               C(t, m) = min of  y + C(t - y, m - 1) + C(y, m)      for y < t
                         and     y + C(t - y, m - a) + C(y - 1, m)  for y <= t
    with C(0, m) = 0, nothing stored without a slot left (m <= 0), and C(t, m) <= t (t + 1) / 2, from the start each
    time.

Ties: the smallest y, a hidden state before an internal one. The minimum is over the schedules that keep what they store
until its backward. Dropping it earlier saves nothing with hidden or with internal states, nor with both where a is 1 or
2 (found by search up to 7 steps and 5 slots); with a >= 3 it may (7 steps, 4 slots, a = 3: 13 instead of 14).

On a training step, the steps are the stages of the chain view (cut where the state is renewed; and at the minima,
where that gives another chain). A slot is the largest state; an internal state takes as many slots as the largest saved
set has of these. The stages of a real network differ a little, and its backward needs memory of its own, so the number
of slots is not computed from the budget but searched: the most slots whose replayed peak is within it. The search stops
at the number of smallest states that fit into the budget, bytes counted that the state before does not have. The replay
decides which strategy is fastest. No bound is reported: the method is optimal for equal steps only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import InputError
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.equal_steps import MAX_RUNS, equal_step_chains
from remat_solvers.toolkit.chains.schedule import (
    Advance,
    Back,
    ChainStep,
    Part,
    Save,
    keep_nothing_steps,
    sequence_of,
    unfold,
)
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.trials import TrialMethod, Trials

Strategy: TypeAlias = Literal["hidden", "internal", "mixed"]
Table: TypeAlias = NDArray[np.int32]  # [t, m]: smallest number of forward steps

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MAX_STEPS = 2**14  # the cost of as many steps, each from the start, is below INFEASIBLE
INFEASIBLE = 2**29  # more than any cost, and a sum of three stays below 2**31


def forward_steps(length: int, slots: int, strategy: Strategy = "hidden", internal_size: int = 1) -> int:
    """C(length, slots): all forward steps, the one inside each backward step included.

    Raises InputError for a negative length, fewer than 1 slot, an unknown strategy or an internal size below 1.
    """
    for option, number, minimum in (("length", length, 0), ("slots", slots, 1), ("internal_size", internal_size, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
            raise InputError(f"gruslys: {option} must be an integer of at least {minimum}, not {number!r}")
    if strategy not in STRATEGIES:
        raise InputError(f"gruslys: strategy must be {', '.join(STRATEGIES)}, not {strategy!r}")
    slots, internal_size = _clamped(length, slots, strategy, internal_size)
    return int(steps_table(length, slots, strategy, internal_size)[length, slots])


def _clamped(length: int, slots: int, strategy: Strategy, internal_size: int) -> tuple[int, int]:
    """Slots and an internal size of the same cost, both bounded by the number of steps.

    No more hidden states than steps are held at once. So an internal state that is larger than all of them together may
    be counted as `length` slots, if the remainder that it leaves is counted as at most `length` - 1 slots.
    """
    if strategy == "mixed" and internal_size > length > 0:
        whole, over = divmod(slots, internal_size)
        slots, internal_size = whole * length + min(over, length - 1), length
    return max(1, min(slots, _useful_slots(length, strategy, internal_size))), internal_size


def _useful_slots(length: int, strategy: Strategy, internal_size: int) -> int:
    """The largest number of slots that a schedule can use."""
    return max(1, length * (internal_size if strategy == "mixed" else 1))


def steps_table(length: int, slots: int, strategy: Strategy, internal_size: int = 1) -> Table:
    """C(t, m) for all t up to `length` and m up to `slots`: length by length, over all y and m at once.

    Raises InputError for a length of more than MAX_STEPS.
    """
    if length > MAX_STEPS:
        raise InputError(f"gruslys: at most {MAX_STEPS} steps, not {length}")
    table = np.full((length + 1, slots + 1), INFEASIBLE, dtype=np.int32)
    table[0] = 0
    for t in range(1, length + 1):
        row = table[t, 1:]
        row[:] = t * (t + 1) // 2
        for y, right, left in _splits(table, t, strategy, internal_size):
            costs = right + left
            costs += y
            taken = row[-costs.shape[1] :]
            np.minimum(taken, costs.min(axis=0), out=taken)
    return table


def _splits(table: Table, t: int, strategy: Strategy, internal_size: int) -> Iterator[tuple[Table, Table, Table]]:
    """Per kind of state: the column of y, C(t - y, m - size) and C(y or y - 1, m), for all y and m > size - 1."""
    ys = np.arange(1, t + 1, dtype=np.int32)[:, None]
    if strategy != "internal" and t > 1:
        yield ys[:-1], table[t - 1 : 0 : -1, :-1], table[1:t, 1:]
    size = internal_size if strategy == "mixed" else 1
    if strategy != "hidden" and size < table.shape[1]:
        yield ys, table[t - 1 :: -1, :-size] if t > 1 else table[:1, :-size], table[:t, size:]


def reference_steps(length: int, slots: int, strategy: Strategy, internal_size: int = 1) -> Table:
    """The same table, cell by cell, for tests of `steps_table`."""
    table = np.full((length + 1, slots + 1), INFEASIBLE, dtype=np.int32)
    table[0] = 0
    for t in range(1, length + 1):
        for m in range(1, slots + 1):
            table[t, m] = min(cost for cost, _, _ in _decisions(table, t, m, strategy, internal_size))
    return table


def _decisions(table: Table, t: int, m: int, strategy: Strategy, internal_size: int) -> Iterator[tuple[int, int, bool]]:
    """(cost, y, internal) of every way to begin t steps with m >= 1 slots; y = 0: store nothing."""
    yield t * (t + 1) // 2, 0, False
    size = internal_size if strategy == "mixed" else 1
    for y in range(1, t + 1):
        if strategy != "internal" and y < t:
            yield y + int(table[t - y, m - 1] + table[y, m]), y, False
        if strategy != "hidden" and m >= size:
            yield y + int(table[t - y, m - size] + table[y - 1, m]), y, True


def cheapest_schedule(table: Table, slots: int, strategy: Strategy, internal_size: int = 1) -> list[ChainStep]:
    """The steps of a schedule of cost `table[-1, slots]`; storing is preferred to storing nothing at equal cost."""
    size = internal_size if strategy == "mixed" else 1

    def split(part: Part) -> Sequence[Part | ChainStep]:
        first, t, m = part
        if t == 0:
            return ()
        y, internal = _split(table, t, m, strategy, internal_size)
        if y == 0:
            return keep_nothing_steps(first, first + t)
        at = first + y
        if not internal:
            return Advance(first, at), (at, t - y, m - 1), (first, y, m)
        advance = [Advance(first, at - 1)] if y > 1 else []
        save = Save(at - 1, onward=y < t, alone=y > 1)
        return *advance, save, (at, t - y, m - size), Back(at - 1), (first, y - 1, m)

    return unfold((0, len(table) - 1, slots), split)


def _split(table: Table, t: int, m: int, strategy: Strategy, internal_size: int) -> tuple[int, bool]:
    """The y that C(t, m) is the cost of, and whether the internal state is stored; y = 0: store nothing."""
    for cost, y, internal in _decisions(table, t, m, strategy, internal_size):
        if cost == table[t, m] and y:
            return y, internal
    return 0, False


@dataclass(frozen=True)
class Gruslys(TrialMethod):
    """Store hidden states, internal states or both, by the dynamic program over steps and slots."""

    strategy: Literal["auto", "hidden", "internal", "mixed"] = "auto"  # what is stored; auto: all
    slots: int | None = None  # slots of memory; None: the most that the budget allows
    steps: int = 1024  # most stages of the chain view

    name: ClassVar[str] = "gruslys"
    version: ClassVar[str] = "1"
    ranges: ClassVar[Ranges] = {"steps": (1, MAX_STEPS)}

    def try_plans(self, trials: Trials) -> None:
        """Try the chosen strategies, each with as many slots as fit."""
        for chain in equal_step_chains(trials.problem, self.steps):
            for strategy in STRATEGIES[::-1] if self.strategy == "auto" else (self.strategy,):
                if not trials.expired:
                    self._search(chain, strategy, trials)

    def _search(self, chain: Chain, strategy: Strategy, trials: Trials) -> None:
        length = len(chain.stages)
        size = _internal_size(chain) if strategy == "mixed" else 1
        max_slots = min(_useful_slots(length, strategy, size), slots_within(chain, trials.budget_bytes))
        max_slots = max_slots if self.slots is None else min(max_slots, self.slots)
        table = steps_table(length, max_slots, strategy, size)
        costs = table[-1]
        numbers = [m for m in range(1, max_slots + 1) if m == 1 or costs[m] < costs[m - 1]]
        numbers = [m for m in numbers if costs[m] <= MAX_RUNS * length]
        if self.slots is not None:
            numbers = [max_slots]

        def sequence(count: int) -> list[int]:
            return sequence_of(chain, cheapest_schedule(table, count, strategy, size))

        trials.search(numbers, sequence, f"{strategy} state, slots")


def slots_within(chain: Chain, budget_bytes: int) -> int:
    """The most slots that a schedule within the budget can fill, each with the smallest renewal of a state."""
    renewed = [chain.bytes(set(after.state).difference(stage.state)) for stage, after in pairwise(chain.stages)]
    room_bytes = budget_bytes - chain.problem.static_bytes
    return max(1, room_bytes // max(1, min((size for size in renewed if size), default=1)))


def _internal_size(chain: Chain) -> int:
    """The number of slots, each of the size of the largest state, that the largest saved set takes."""
    state = max((chain.bytes(stage.state) for stage in chain.stages), default=0)
    saved = max((chain.bytes(stage.saved) for stage in chain.stages), default=0)
    return max(1, min(len(chain.stages), -(-saved // max(1, state))))
