"""Repeats refinement.py's step, then adds a moment, or gives the next step more time where none can be added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from remat_solvers.optimal.program.refinement import Refinement, RefinementStep
from remat_solvers.problem import Problem
from remat_solvers.result import Order
from remat_solvers.toolkit.programs.highs import SolveEnd

FOREVER = float("inf")
MAX_ANCHORS, MAX_NODES = 8, 5_000  # where nodes are counted: no clock ends a program that has grown too large
GROWTH = 2.0  # of the time for the next step, where nothing could be added


@dataclass(frozen=True, slots=True)
class ProgramTask:
    """A problem and a budget for the program, with the options of its refinement."""

    problem: Problem
    budget_bytes: int
    order: Order = Order.GIVEN
    tolerance_ns: int | None = None  # see Refinement
    cuts: bool = True  # interval cuts
    lazy: bool = True  # moments are added

    def refinement(self) -> Refinement:
        """Return a new refinement of the task."""
        return Refinement(
            self.problem, self.budget_bytes, order=self.order, tolerance_ns=self.tolerance_ns, cuts=self.cuts
        )


class RefinementDriver:
    """Alternates steps and refinements, until only a better incumbent could lead to more."""

    def __init__(self, task: ProgramTask, first_slice_s: float, nodes: int | None = None) -> None:
        self.refinement = task.refinement()
        self.done = False
        self._lazy = task.lazy
        self._slice_s = first_slice_s
        self._nodes = nodes  # of branch and bound, where they are counted and not seconds

    def set_incumbent(self, sequence: Sequence[int], time_ns: int) -> None:
        """Take over a plan within the budget: only faster plans, and bounds close to it, are of interest now."""
        if self.refinement.incumbent_ns is None or time_ns < self.refinement.incumbent_ns:
            self.refinement.set_incumbent(sequence)
            self.done = False

    def turn(
        self, seconds: float | None = None, on_news: Callable[[RefinementStep], bool] | None = None
    ) -> RefinementStep:
        """Solve one program for up to `seconds`. Where nothing is left to do in it, the next has more moments."""
        slice_s = FOREVER if self._nodes else self._slice_s if seconds is None else min(seconds, self._slice_s)
        step = self.refinement.step(slice_s, nodes=self._nodes, on_news=on_news)
        intervals = self.refinement.intervals
        if step.done:
            self.done = True
        elif step.ended is SolveEnd.LIMIT and step.sequence is None:
            self._extend_slice()
        elif not (self._lazy and self.refinement.refine()):
            self.done = step.ended is SolveEnd.COMPLETE  # there are anchors at all ops that can be anchors
            self._extend_slice()
        if self._nodes and len(step.anchors) > MAX_ANCHORS:
            self.done = True
        return replace(step, done=self.done, intervals=intervals)

    def _extend_slice(self) -> None:
        self._slice_s *= GROWTH
        if self._nodes:
            self._nodes = int(GROWTH * self._nodes)
            self.done |= self._nodes > MAX_NODES
