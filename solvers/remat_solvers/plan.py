"""A plan: the order in which a training step computes, forgets and moves values.

A plan is a tuple of four kinds of small actions, read from left to right; `simulate` says what each
costs and `validate` says when one is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Compute:
    """Run op `op`. Every input must be on the device; its outputs are there afterwards."""

    op: int  # index into Problem.ops


@dataclass(frozen=True, slots=True)
class Free:
    """Drop the device copy of `value`. Waits for a copy of that value under way, in either direction."""

    value: int  # index into Problem.values


@dataclass(frozen=True, slots=True)
class Offload:
    """Start copying `value` to the host. Its device bytes stay until a Free; the host copy stays to the end."""

    value: int  # index into Problem.values


@dataclass(frozen=True, slots=True)
class Fetch:
    """Start copying `value` back from the host. Its device bytes count at once; readers wait for the arrival."""

    value: int  # index into Problem.values


Action: TypeAlias = Compute | Free | Offload | Fetch


class Plan(tuple[Action, ...]):
    """The actions of one training step, forward and backward, in order."""

    __slots__ = ()

    @property
    def sequence(self) -> list[int]:
        """The ops in the order in which they are computed, repeats included."""
        return [action.op for action in self if isinstance(action, Compute)]

    @property
    def moves(self) -> bool:
        """Whether a value is offloaded or fetched."""
        return any(isinstance(action, Offload | Fetch) for action in self)

    def __repr__(self) -> str:
        return f"Plan({len(self)} actions)"
