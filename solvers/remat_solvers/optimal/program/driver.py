"""The lazy loop, turn by turn: a step of lazy.py for a while, then more moments, or longer where none can be added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from remat_solvers.optimal.program.refinement import LazyStages, Step
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.toolkit.programs.highs import Ended

__all__ = ["Loop", "Question"]

FOREVER = float("inf")
MOST_ANCHORS, MOST_NODES = 8, 5_000  # where nodes count: no clock ends a program that has grown too large
LONGER = 2.0  # times as long for the next, where nothing could be added


@dataclass(frozen=True, slots=True)
class Question:
    """What the loop is asked."""

    problem: Problem
    budget_bytes: int
    order: Order = Order.GIVEN
    within_ns: int | None = None  # see LazyStages
    cuts: bool = True  # interval cuts
    lazy: bool = True  # moments are added

    def stages(self) -> LazyStages:
        """The loop's own."""
        return LazyStages(self.problem, self.budget_bytes, order=self.order, within_ns=self.within_ns, cuts=self.cuts)


class Loop:
    """Steps and refinements in turn, until nothing more can come of them unless a better plan is known."""

    def __init__(self, question: Question, first_slice_s: float, nodes: int | None = None) -> None:
        self.stages = question.stages()
        self.done = False
        self._lazy = question.lazy
        self._slice_s = first_slice_s
        self._nodes = nodes  # of the tree, where they count and not seconds

    def tell(self, sequence: Sequence[int], time_ns: int) -> None:
        """A plan within the budget is known: only faster ones are of interest, and bounds that come near."""
        if self.stages.known_ns is None or time_ns < self.stages.known_ns:
            self.stages.tell(sequence)
            self.done = False

    def turn(self, seconds: float | None = None, on_news: Callable[[Step], bool] | None = None) -> Step:
        """One program, for a while or up to so many seconds; where it is through with, the next has more moments."""
        slice_s = FOREVER if self._nodes else self._slice_s if seconds is None else min(seconds, self._slice_s)
        step = self.stages.step(slice_s, nodes=self._nodes, on_news=on_news)
        intervals = self.stages.intervals
        if step.done:
            self.done = True
        elif step.ended is Ended.LIMIT and step.sequence is None:
            self._longer()
        elif not (self._lazy and self.stages.refine()):
            self.done = step.ended is Ended.COMPLETE  # moments at every op that can be one
            self._longer()
        if self._nodes and len(step.at) > MOST_ANCHORS:
            self.done = True
        return replace(step, done=self.done, intervals=intervals)

    def _longer(self) -> None:
        self._slice_s *= LONGER
        if self._nodes:
            self._nodes = int(LONGER * self._nodes)
            self.done |= self._nodes > MOST_NODES
