"""The exact optimum of tiny problems, by exhaustive search: the oracle that other methods are tested against.

Plans without offload are searched op by op (`states.py`). Where there is a link, all plans are searched, with the clock
of the replay in the states (`states_with_copies.py`); that is for even smaller problems, of `max_moving_ops`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.brute_force.states import OrderOption, OutOfReachError, Search
from remat_solvers.recompute.brute_force.states_with_copies import best_moving_plan
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.options import check_options

__all__ = ["BruteForce", "best_moving_plan", "best_sequence", "smallest_peak_bytes"]


@dataclass(frozen=True)
class BruteForce:
    """Exhaustive search for the fastest plan."""

    order: OrderOption = "given"  # of first computations
    max_ops: int = 24  # larger problems are not treated
    max_moving_ops: int = 6  # larger problems with a link are searched for plans without offload

    name: ClassVar[str] = "brute-force"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The optimum, or the proof that there is none. See `registry.Solver`."""
        if len(problem.ops) > self.max_ops:
            reason = f"exhaustive search treats up to {self.max_ops} ops, this problem has {len(problem.ops)}"
            return Outcome(status=Status.NOT_APPLICABLE, reason=reason)
        watch = Stopwatch(limits)
        moving = problem.link is not None and len(problem.ops) <= self.max_moving_ops
        try:
            # A proof includes plans that recompute before the tangents. No executor does, so the plan may need more.
            best = self._fastest(problem, budget_bytes, moving, watch, tangents_first=False)
            fits = best is not None and simulate(problem, best).peak_bytes <= budget_bytes
            plan = best if fits or best is None else self._fastest(problem, budget_bytes, moving, watch)
            if plan is None:
                return self._without_plan(problem, budget_bytes, watch, moving=moving, proven=best is None)
        except OutOfReachError:
            stopped = Stopped.TIME if watch.expired else Stopped.COMPLETE
            return Outcome(status=Status.NOT_FOUND, reason="there are too many states", stopped=stopped)
        except KeyboardInterrupt:
            return Outcome(status=Status.NOT_FOUND, stopped=Stopped.INTERRUPT)
        if problem.link is not None and not moving:  # a plan with offload, which was not searched, may be faster
            return Outcome(status=Status.FEASIBLE, plan=plan)
        assert best is not None
        bound_ns = simulate(problem, best).time_ns
        return Outcome(
            status=Status.OPTIMAL if simulate(problem, plan).time_ns == bound_ns else Status.FEASIBLE,
            plan=plan,
            bound_ns=bound_ns,
            order=Order.GIVEN if self.order == "given" else Order.FREE,
        )

    def _fastest(
        self, problem: Problem, budget_bytes: int, moving: bool, watch: Stopwatch, *, tangents_first: bool = True
    ) -> Plan | None:
        if moving:
            return best_moving_plan(problem, budget_bytes, order=self.order, watch=watch, tangents_first=tangents_first)
        search = Search(problem, budget_bytes, self.order, watch, tangents_first=tangents_first)
        sequence = search.shortest(cheapest=True)
        return None if sequence is None else plan_from_sequence(problem, sequence)

    def _without_plan(
        self, problem: Problem, budget_bytes: int, watch: Stopwatch, *, moving: bool, proven: bool
    ) -> Outcome:
        exhaustive = problem.link is None or moving
        if proven and exhaustive and self.order == "free":
            reason = "every plan was tried"
            return Outcome(status=Status.INFEASIBLE, reason=reason, peak_bound_bytes=budget_bytes + 1)
        kinds = ["with first computations in the problem's order"] if self.order == "given" else []
        kinds += [] if exhaustive else ["without offload"]
        kinds += [] if proven else ["in which nothing is computed between the forward and the tangents"]
        reason = f"every plan {' and '.join(kinds)} was tried"
        if moving:
            return Outcome(Status.NOT_FOUND, reason=reason)
        smallest: int | None = None
        stopped = Stopped.COMPLETE
        try:
            smallest = smallest_peak_bytes(problem, order=self.order, watch=watch)
        except OutOfReachError:
            stopped = Stopped.TIME if watch.expired else Stopped.COMPLETE
        except KeyboardInterrupt:
            stopped = Stopped.INTERRUPT
        return Outcome(status=Status.NOT_FOUND, reason=reason, smallest_peak_bytes=smallest, stopped=stopped)


def best_sequence(
    problem: Problem, budget_bytes: int, *, order: OrderOption = "given", watch: Stopwatch | None = None
) -> list[int] | None:
    """The ops of a fastest plan without offload, in order; None where none fits. May raise OutOfReachError."""
    return Search(problem, budget_bytes, order, watch).shortest(cheapest=True)


def smallest_peak_bytes(problem: Problem, *, order: OrderOption = "given", watch: Stopwatch | None = None) -> int:
    """The smallest peak of any plan without offload, however slow, by bisection. May raise OutOfReachError."""
    low = peak_bound_bytes(problem) if problem.link is None else 0
    high = baseline(problem).peak_bytes
    while low < high:
        middle = (low + high) // 2
        sequence = Search(problem, middle, order, watch).shortest(cheapest=False)
        if sequence is None:
            low = middle + 1
        else:
            high = simulate(problem, plan_from_sequence(problem, sequence)).peak_bytes
    return high
