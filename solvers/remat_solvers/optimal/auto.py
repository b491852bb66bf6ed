"""`auto`, a portfolio: an integer program proves lower bounds while local search improves plans of published methods.

    options.py        the options
    portfolio.py      the parts without a link, and the schedule of their turns
    offload/          the parts for a link to the host; they start from the plan of the portfolio without the link
    min_peak.py       the search for the smallest peak
    incumbents.py     the best plans and bounds, and what they prove together
    certify_tree.py   the certificate of a bound

It ends when the gap between plan and bound is below `within`, when nothing is left to try, or at the limit.
docs/optimal.md has the mathematics and the measurements.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import ClassVar

from remat_solvers.optimal.certify_tree import certify_tree
from remat_solvers.optimal.incumbents import Incumbents
from remat_solvers.optimal.local_search.annealing import AVAILABLE, NO_SEARCH
from remat_solvers.optimal.min_peak import minimise_peak
from remat_solvers.optimal.offload.solve import solve_with_link
from remat_solvers.optimal.options import AutoOptions
from remat_solvers.optimal.portfolio import Portfolio
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import import_uninterrupted
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Certificate, Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.toolkit.options import check_options

CERTIFY_S = 20.0  # for a certificate, beyond the limit
WITHOUT_LINK_SHARE = 0.3  # of the time for a problem with a link, for a plan that only recomputes


@dataclass(frozen=True)
class Auto(AutoOptions):
    """The library's strongest solver: near-optimal plans within a budget, and a proven bound on every plan's time."""

    name: ClassVar[str] = "auto"
    version: ClassVar[str] = "2"

    def __post_init__(self) -> None:
        check_options(self, within=(0, 1))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The best plan and bound found until the limit or Ctrl-C. See `registry.Solver`."""
        incumbents = Incumbents(problem, budget_bytes, self.within, Stopwatch(limits), on_progress)
        with incumbents:
            if problem.link is None:
                self._run_portfolio(incumbents, seed, limits.work)
            else:
                recomputing = tuple(plan for plan in self.starts if not plan.moves)
                without_link = replace(self, certify=False, starts=recomputing).solve(
                    replace(problem, link=None),
                    budget_bytes,
                    limits=limits.share(WITHOUT_LINK_SHARE),
                    on_progress=None,
                    seed=seed,
                )
                solve_with_link(
                    incumbents, without_link, self.starts, methods=self.methods, seed=seed, work=limits.work
                )
        outcome = incumbents.outcome("" if AVAILABLE else NO_SEARCH)
        if not self.certify or problem.link is not None or incumbents.stopped is Stopped.INTERRUPT:
            return outcome
        try:
            return replace(outcome, certificate=_certificate(incumbents, outcome))
        except KeyboardInterrupt:
            return replace(outcome, stopped=Stopped.INTERRUPT)

    def solve_min_peak(self, problem: Problem, *, limits: Limits, on_progress: OnProgress | None, seed: int) -> Outcome:
        """The plan of the smallest peak found, recomputing only. See `registry.FindsMinPeak`."""
        order = Order.GIVEN if self.order == "given" else Order.FREE
        return minimise_peak(problem, limits=limits, on_progress=on_progress, seed=seed, order=order).outcome

    def _run_portfolio(self, incumbents: Incumbents, seed: int, work: int | None) -> None:
        """Work until the gap is closed, nothing is left to try, or the limit is reached."""
        import_uninterrupted("highspy")
        with closing(Portfolio(self, incumbents, seed, by_work=work is not None)) as portfolio:
            for _ in portfolio.turns():
                if incumbents.closed and (incumbents.order is Order.FREE or portfolio.tried_reordering):
                    return
                if incumbents.out_of_time():
                    return
                if portfolio.turn == work:
                    incumbents.stopped = Stopped.TIME
                    return


def _certificate(incumbents: Incumbents, outcome: Outcome) -> Certificate | None:
    """The certificate of the outcome's bound, or of as much of it as a small tree over the program's moments proves."""
    infeasible = outcome.status is Status.INFEASIBLE
    order = Order.FREE if infeasible else outcome.order
    evidence = incumbents.evidence.get(order)
    if evidence is None or (outcome.plan is None and not infeasible):
        return None
    return certify_tree(
        incumbents.problem,
        incumbents.budget_bytes,
        order=order,
        at=evidence.anchors,
        intervals=evidence.intervals,
        target_ns=incumbents.bound_ns,
        seconds=CERTIFY_S,
    )
