"""Binomial checkpointing (revolve): the optimal schedules for chains of equal steps, in closed form.

Griewank: Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation.
Optimization Methods and Software 1, 1992. Griewank, Walther: Algorithm 799: revolve. ACM TOMS 26(1), 2000.

With s snapshots (the one of the start included) and every step advanced at most r times, beta(s, r) = binom(s + r, s)
steps can be reversed. l steps, beta(s, r - 1) < l <= beta(s, r), take r l - beta(s + 1, r - 1) advances, which is the
minimum; with the one inside each backward step

    l + r l - binom(s + r, s + 1)

The place of the next snapshot has a closed form (`advance_length`): with l steps ahead and s snapshots free, the one of
the start included, advance by the number of steps with which both parts can be reversed with their repetitions,

    beta(s, r - 2)                         if l <= beta(s, r - 1) + beta(s - 2, r - 1)
    beta(s, r - 1)                         if l >= beta(s, r) - beta(s - 3, r)
    l - beta(s - 1, r - 1) - beta(s - 2, r - 1)      otherwise
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from remat_solvers.errors import InputError
from remat_solvers.toolkit.chains.schedule import Advance, ChainStep, Part, keep_nothing_steps, unfold


def forward_steps(steps: int, snapshots: int) -> int:
    """Forward steps of the whole schedule, the one inside each backward step included.

    Raises InputError for a negative number of steps or fewer than 1 snapshot.
    """
    for option, number, minimum in (("steps", steps, 0), ("snapshots", snapshots, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
            raise InputError(f"revolve: {option} must be an integer of at least {minimum}, not {number!r}")
    r = repetitions(steps, snapshots)
    return steps + r * steps - comb(snapshots + r, snapshots + 1)


def repetitions(steps: int, snapshots: int) -> int:
    """The smallest r with steps <= beta(snapshots, r)."""
    r = 0
    reversible = 1
    while reversible < steps:
        r += 1
        reversible = reversible * (snapshots + r) // r
    return r


def _beta(s: int, r: int) -> int:
    """The number of steps that s snapshots reverse with at most r repetitions."""
    return comb(s + r, s) if s >= 0 and r >= 0 else 0


def advance_length(steps: int, snapshots: int) -> int:
    """Steps to advance before the next snapshot; `steps` and `snapshots` (the start's included) are at least 2."""
    s, r = snapshots, repetitions(steps, snapshots)
    if steps <= _beta(s, r - 1) + _beta(s - 2, r - 1):
        return _beta(s, r - 2)
    if steps >= _beta(s, r) - _beta(s - 3, r):
        return _beta(s, r - 1)
    return steps - _beta(s - 1, r - 1) - _beta(s - 2, r - 1)


def binomial_schedule(steps: int, snapshots: int) -> list[ChainStep]:
    """The schedule of `forward_steps(steps, snapshots)` forward steps, over stages 0..steps-1."""

    def split(part: Part) -> Sequence[Part | ChainStep]:
        first, length, slots = part
        if length <= 1 or slots == 1:
            return keep_nothing_steps(first, first + length)
        advance = advance_length(length, slots)
        end = first + advance
        return Advance(first, end), (end, length - advance, slots - 1), (first, advance, slots)

    return unfold((0, steps, snapshots), split)
