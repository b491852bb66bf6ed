"""`auto` where there is a link: what recomputes only is where the search for what moves, too (moving.py), begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from remat_solvers.optimal.incumbents import Standing
from remat_solvers.optimal.local_search.annealing import AVAILABLE, NO_SEARCH, SearchError
from remat_solvers.optimal.offload.driver import solve_moving
from remat_solvers.optimal.warm_starts import MOVING, starts
from remat_solvers.plan import Fetch, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Stopped

if TYPE_CHECKING:
    from remat_solvers.optimal.auto import Auto

__all__ = ["solve_with_link"]

ALONE_SHARE = 0.3  # of the time, for a plan that only recomputes


def solve_with_link(
    asked: Auto, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
) -> Outcome:
    """What `asked` answers to a problem with a link. See `registry.Solver`."""
    standing = Standing(problem, budget_bytes, asked.within, Stopwatch(limits), on_progress)
    plans = list(asked.starts)
    try:
        still = tuple(plan for plan in plans if not _moves(plan))
        without = replace(asked, certify=False, starts=still).solve(
            replace(problem, link=None), budget_bytes, limits=limits.share(ALONE_SHARE), on_progress=None, seed=seed
        )
        standing.saw(without.smallest_peak_bytes)
        if without.plan is not None:
            standing.offer(without.plan, "recompute only")
            plans.append(without.plan)
        if without.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt
        for name, outcome in starts(problem, budget_bytes, standing.watch, seed, MOVING) if asked.methods else ():
            standing.saw(outcome.smallest_peak_bytes)
            if outcome.plan is not None:
                standing.offer(outcome.plan, name)
                plans.append(outcome.plan)
        bound_ns = solve_moving(
            problem,
            budget_bytes,
            watch=standing.watch,
            seed=seed,
            offer=standing.offer,
            prove=lambda bound_ns, note: standing.prove(bound_ns, Order.GIVEN, note),
            starts=plans,
            within_ns=standing.within_ns,
            work=limits.work,
        )
        if bound_ns is None:
            standing.prove_infeasible(Order.GIVEN)
        stopped = Stopped.TIME if standing.watch.expired else Stopped.COMPLETE
    except SearchError:  # no extension, or sizes beyond its arithmetic: what there is so far
        stopped = Stopped.COMPLETE
    except KeyboardInterrupt:
        stopped = Stopped.INTERRUPT
    return standing.outcome(stopped, "" if AVAILABLE else NO_SEARCH)


def _moves(plan: Plan) -> bool:
    """Whether the plan needs a link."""
    return any(isinstance(action, (Offload, Fetch)) for action in plan)
