"""`auto` with a link: warm-starts the search over recomputation and offloading with plans that are known without it."""

from __future__ import annotations

from collections.abc import Sequence

from remat_solvers.optimal.incumbents import Incumbents
from remat_solvers.optimal.local_search.annealing import SearchError
from remat_solvers.optimal.offload.driver import solve_jointly
from remat_solvers.optimal.warm_starts import OFFLOAD_METHODS, warm_starts
from remat_solvers.plan import Plan
from remat_solvers.result import Order, Outcome, Stopped


def solve_with_link(
    incumbents: Incumbents,
    without_link: Outcome,
    starts: Sequence[Plan],
    *,
    methods: bool,
    seed: int,
    work: int | None,
) -> None:
    """Improve the plan and the bound of `incumbents` until they meet, nothing is left to try, or the time is up.

    `without_link` is the outcome for the same problem without its link: its plan is a warm start, as are `starts` and,
    with `methods`, the plans of published methods that offload. `work` limits slices of search (`Limits.work`). Raises
    KeyboardInterrupt; what was found until then stays in `incumbents`.
    """
    plans = list(starts)

    def take(outcome: Outcome, message: str) -> None:
        incumbents.observe_peak(outcome.smallest_peak_bytes)
        if outcome.plan is not None:
            incumbents.offer(outcome.plan, message)
            plans.append(outcome.plan)

    take(without_link, "recompute only")
    if without_link.stopped is Stopped.INTERRUPT:
        raise KeyboardInterrupt
    problem, budget_bytes, watch = incumbents.problem, incumbents.budget_bytes, incumbents.watch
    for name, outcome in warm_starts(problem, budget_bytes, watch, seed, OFFLOAD_METHODS) if methods else ():
        take(outcome, name)
    try:
        bound_ns = solve_jointly(
            problem,
            budget_bytes,
            watch=watch,
            seed=seed,
            offer=incumbents.offer,
            prove=lambda bound_ns, message: incumbents.raise_bound(bound_ns, Order.GIVEN, message),
            starts=plans,
            within_ns=incumbents.within_ns,
            work=work,
        )
    except SearchError:  # no extension, or sizes beyond its arithmetic: the plans so far are the answer
        return
    if bound_ns is None:
        incumbents.prove_infeasible(Order.GIVEN)
    incumbents.out_of_time()
