"""Jain et al.: Checkmate, Breaking the Memory Wall with Optimal Tensor Rematerialization. MLSys 2020, 1910.02653.

An integer program over stages (section 4): R[t, i] says that op i is computed in stage t, S[t, i] that its value is
kept from stage t-1 into t, U[t, k] is the memory in use while k is computed, FREE[t, i, k] says that i is freed after
k. The program minimises the cost of all R subject to dependencies, to what can be kept, and to U <= budget. In the
frontier-advancing form (section 4.7, (8a) to (8c)) stage t ends with the first computation of op t, which makes the
program small. program.py has the rows, and what several outputs per op, workspace, results and ops that cannot be
recomputed add to them.

Approximation (section 5, algorithm 2, `rounding=True`): solve the linear relaxation with (1 - epsilon) of the budget,
S = 1 where S* > 0.5, R = the first computations; then, stage by stage, what S keeps must have been kept or computed
before ((1c)), and what is computed must have its inputs ((1b), right to left). The authors' code sweeps thresholds from
0.1 to 0.9 where the paper has 0.5; so does this, and keeps the fastest result that fits the budget itself. Where none
does, the relaxation's budget is searched upwards. Above FULL_RELAXATION_OPS ops it has one memory row per stage (see
below).

What is open in the paper, and what is done here:

- Backends: the paper uses Gurobi; here HiGHS or CBC, through PuLP.
- Lazy rows (`lazy`): the program is first solved with one memory row per stage, that of its first computation.
  A stage whose inside exceeds the budget in the replay gets its full rows (2) and (3), and the program is solved again.
  When the replay fits, the point is an optimum of the full program, of which a part was left out. `lazy=False` writes
  all rows at once.
- Optimality. Checkmate's schedules compute an op at most once per stage, in the problem's order inside a stage, so
  their optimum alone does not bound all plans. The program with one row per stage does (program.py says why).
  Where it agrees with the plan found, the plan is `optimal` among all plans in the given order; otherwise the bound
  is that of the smaller program, and the reason says that the plan is the best of Checkmate's schedules.
- Infeasible for Checkmate is no proof for plans in another order, and so `not_found` with that reason.
- Larger graphs (more than `exact_ops` ops, or not solved within the time limit): the same program over runs of
  consecutive ops (toolkit/graphs/contraction), expanded to the problem's ops and pruned
  (toolkit/sequences/pruning: recomputations that nothing reads, or that memory has room to avoid, are dropped). The
  coarse program counts every merged op at its highest, so its budget is searched: the largest one whose expanded plan
  fits. Nothing is proven there, and the reason says so.

With a link (`swap`; POET, Patil et al., ICML 2022, has the variables) values also move to the host. Checkmate's program
with host copies on top is solved over a few moments in place of a stage per op (offload_program.py), and its choice
becomes a plan that is exact in every event and improved by local search (offload_search.py). `swap_time` says how the
program counts copies:

- `overlapped`: per stage and direction, copies beyond the time of its compute make it wait, and waits are added
- `additive`: the time of every copy is added, as POET does; its plan is taken as it is, without local search

Both approximate what the replay counts exactly, and memory is counted in the moments only, so they prove nothing. Small
problems (up to `exact_moves` ops) are exact all the same, by the clock of the replay, which is the time model that
plans are judged by: the best time so far is the limit below which every plan in the given order is searched, whatever
it moves and recomputes and in whichever order its copies run (brute_force/states_with_copies.py). Either a faster one
is found, or the one found before is `optimal` among plans in the given order. Larger problems have no bound with a
link, unless nothing is recomputed and nothing waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.brute_force.states import OutOfReachError
from remat_solvers.recompute.brute_force.states_with_copies import best_moving_plan
from remat_solvers.recompute.checkmate.offload_program import SwapTime
from remat_solvers.recompute.checkmate.offload_search import search_offload_plans
from remat_solvers.recompute.checkmate.solve import Solved, solve_exactly, solve_rounded
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline
from remat_solvers.toolkit.graphs.contraction import contract
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.sequences.pruning import drop_useless, keep_where_it_fits
from remat_solvers.toolkit.trials import BestPlan, Incumbent

EXACT_SHARE = 0.6  # of the time limit, if there is one; the rest is for the coarse form
EXACT_SHARE_BESIDE_SWAP = 0.2  # the same if values may also be offloaded
OFFLOAD_SHARE = 0.9  # of the remaining time, for plans that also offload
ROUND_SHARE = 0.4  # of the remaining time, for one program of the coarse form
COARSE_ROUNDS = 6  # of the search for the coarse budget
COARSE_PART = 4  # it rises by 1 / this of the open range: the best is nearer to the budget than to store-all
COARSE_STEPS = 64  # the search ends when the range is below 1 / this of the budget
MAX_EPSILON = 0.99  # so that the relaxation has a budget
FULL_RELAXATION_OPS = 100  # rounding: larger problems are relaxed with one memory row per stage

OWN_BEST = "the best of Checkmate's schedules; the bound holds for every plan in the given order"
NONE_FOUND = "none of the schedules found fits"
PROGRAM_CUT_SHORT = "a program was ended at its share of the time limit"
NO_SCHEDULE = "none of Checkmate's schedules fits: the program is infeasible"
ROUNDED = "two-phase rounding of the linear relaxation"
EXHAUSTIVE = "the search of every plan in the given order"
NONE_WITH_OFFLOAD = "no plan in the given order fits, even with offloading"
INCUMBENT = "the best found in the time that the program had"


@dataclass(frozen=True)
class Checkmate:
    """The integer program of Checkmate, exact where the graph is small enough."""

    backend: Backend = "highs"  # the solver of the programs
    rounding: bool = False  # two-phase rounding of the linear relaxation in place of the integer program
    epsilon: float = 0.1  # rounding: share of the budget that the relaxation leaves free
    lazy: bool = True  # memory rows inside a stage only if the solution violates them
    exact_ops: int = 200  # larger problems are coarsened
    coarse_ops: int = 64  # ops of a coarsened problem
    swap: bool | None = None  # offload values as well; None: if the problem has a link
    swap_time: SwapTime = "overlapped"  # how the program counts the time of copies
    swap_tries: int = 4000  # random changes after each program
    exact_moves: int = 6  # up to so many ops, every plan that offloads is searched

    name: ClassVar[str] = "checkmate"
    version: ClassVar[str] = "3"

    def __post_init__(self) -> None:
        check_options(self, epsilon=(0, MAX_EPSILON))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest of Checkmate's schedules within the budget. See `registry.Solver`."""
        swap = problem.link is not None if self.swap is None else self.swap
        if swap and (missing := missing_requirement(problem, "checkmate with swap", "link to the host")):
            return missing
        search = _Search(self, problem, budget_bytes, Stopwatch(limits), on_progress)
        with search:
            if len(problem.ops) <= self.exact_ops:
                search.solve_directly(EXACT_SHARE_BESIDE_SWAP if swap else EXACT_SHARE)
            if swap and not search.unbeatable:
                search.offload(seed)
                if len(problem.ops) <= self.exact_moves and self.swap_time == "overlapped":
                    search.search_exhaustively()
            if not search.settled and not (swap and search.best is not None):
                search.coarsen()
        return search.conclusion()


class _Search(BestPlan):
    """The phases of the method for one problem and one budget, with the bounds that they have proved."""

    def __init__(
        self, options: Checkmate, problem: Problem, budget_bytes: int, watch: Stopwatch, on_progress: OnProgress | None
    ) -> None:
        super().__init__(problem, budget_bytes, watch, on_progress)
        self.options = options
        self.sequence: list[int] | None = None  # of the best plan without offload
        self.bound_ns: int | None = None  # of plans without offload
        self.offload_bound_ns: int | None = None  # of plans that may also offload
        self.settled = False  # after the direct form, no other needs to be tried
        self.cut_short = False  # whether a program ended at its share of the time limit
        self.reason = ""

    @property
    def unbeatable(self) -> bool:
        """Whether the best plan recomputes nothing and never waits."""
        return self.best is not None and self.best.time_ns == time_bound_ns(self.problem)

    def consider(self, new: Incumbent, message: str) -> bool:
        """Keep a plan within the budget if it is the best; then `message`, on how it was found, is the reason."""
        improved = super().consider(new, message)
        if improved:
            self.reason = message
        return improved

    def progress(self, message: str) -> Progress:
        """A report of the best plan so far; with a link it has no bound, since that does not hold for offloading."""
        return replace(super().progress(message), bound_ns=self.bound_ns if self.problem.link is None else None)

    def solve_directly(self, share: float) -> None:
        """Solve the program over the ops themselves, within a share of the time."""
        solved = self._solve(self.problem, self.budget_bytes, share)
        self.bound_ns = solved.bound_ns
        reason = ROUNDED if self.options.rounding else OWN_BEST if solved.ended is Ended.OPTIMAL else INCUMBENT
        for sequence in solved.sequences:
            self._replay_sequence(sequence, reason)
        if self.options.rounding:
            self.settled = self.best is not None
        else:
            self.settled = solved.ended in (Ended.OPTIMAL, Ended.INFEASIBLE)
            if solved.ended is Ended.INFEASIBLE:
                self.reason = NO_SCHEDULE
            elif not self.settled:
                self.cut_short = not solved.interrupted
        if solved.interrupted:
            raise KeyboardInterrupt

    def offload(self, seed: int) -> None:
        """Solve the program over moments that also offloads, and improve its plan by local search."""
        options, remaining = self.options, self.watch.remaining
        search_offload_plans(
            self.problem,
            self.budget_bytes,
            backend=options.backend,
            swap_time=options.swap_time,
            tries=options.swap_tries if options.swap_time == "overlapped" else 0,
            watch=Stopwatch(self.watch.share(OFFLOAD_SHARE)),
            seed=seed,
            offer=self.replay,
        )
        if remaining is not None and self.watch.remaining is not None:
            self.cut_short |= self.watch.remaining <= (1 - OFFLOAD_SHARE) * remaining

    def search_exhaustively(self) -> None:
        """Search all plans, those that offload included, which are faster than the best so far."""
        best_ns = None if self.best is None else self.best.time_ns
        try:
            for tangents_first in (True, False):  # the second proves; plans of the first are those that can be executed
                faster = best_moving_plan(
                    self.problem, self.budget_bytes, watch=self.watch, tangents_first=tangents_first, below_ns=best_ns
                )
                if faster is not None and tangents_first:
                    self.replay(faster, EXHAUSTIVE)
                    best_ns = self.best.time_ns if self.best is not None else None
        except OutOfReachError:
            return
        if self.best is None:
            self.reason = NONE_WITH_OFFLOAD
        elif faster is None:
            self.offload_bound_ns = self.best.time_ns

    def coarsen(self) -> None:
        """Solve the program over groups of ops, within the largest coarse budget whose plan, expanded, fits."""
        coarse = contract(self.problem, min(self.options.coarse_ops, len(self.problem.ops)))
        merged = len(coarse.groups) < len(self.problem.ops)
        reason = (
            f"{len(self.problem.ops)} ops merged into {len(coarse.groups)}, so nothing is proven" if merged else ROUNDED
        )
        if self.sequence is not None:  # of the direct form, within its limit
            self._replay_pruned(self.sequence, self.reason)
        low, high = self.budget_bytes, baseline(coarse.problem).peak_bytes
        budget_bytes = low
        for _ in range(COARSE_ROUNDS):
            if self.watch.expired:
                break
            solved = self._solve(coarse.problem, budget_bytes, ROUND_SHARE)
            peaks = [self._replay_pruned(coarse.expand(s), reason) for s in solved.sequences]
            if solved.interrupted:
                raise KeyboardInterrupt
            if solved.ended is Ended.UNKNOWN or (solved.ended is Ended.FEASIBLE and not self.options.rounding):
                self.cut_short = True
            if peaks and min(peaks) > self.budget_bytes:
                high = budget_bytes
            else:
                low = budget_bytes
            if high - low <= self.budget_bytes // COARSE_STEPS:
                break
            budget_bytes = low + max(1, (high - low) // COARSE_PART)
        if self.best is None and not self.reason:
            self.reason = f"{reason}: none of the schedules found fits" if merged else NONE_FOUND

    def conclusion(self) -> Outcome:
        """The outcome with the bound that holds for the plans of this problem."""
        stopped, reason = self.stopped, self.reason
        if stopped is Stopped.COMPLETE and self.watch.expired:
            stopped = Stopped.TIME
        elif stopped is Stopped.COMPLETE and self.cut_short:
            reason = "; ".join(filter(None, [reason, PROGRAM_CUT_SHORT]))
        smallest_bytes = self.smallest_peak_bytes
        if self.best is None:
            return Outcome(Status.NOT_FOUND, reason=reason, smallest_peak_bytes=smallest_bytes, stopped=stopped)
        time_ns, bound_ns, order = self.best.time_ns, self.bound_ns, Order.GIVEN
        if self.unbeatable:
            bound_ns, order = time_ns, Order.FREE
        elif self.problem.link is not None:
            bound_ns = self.offload_bound_ns
        optimal = bound_ns is not None and bound_ns >= time_ns
        return Outcome(
            status=Status.OPTIMAL if optimal else Status.FEASIBLE,
            plan=self.best.plan,
            reason="" if optimal else reason,
            bound_ns=bound_ns,
            order=order,
            smallest_peak_bytes=smallest_bytes,
            stopped=Stopped.COMPLETE if optimal else stopped,
        )

    def _solve(self, problem: Problem, budget_bytes: int, share: float) -> Solved:
        remaining = self.watch.remaining
        seconds = None if remaining is None else share * remaining
        backend, lazy = self.options.backend, self.options.lazy
        if self.options.rounding:
            epsilon = self.options.epsilon
            lazy = len(problem.ops) > FULL_RELAXATION_OPS
            return solve_rounded(problem, budget_bytes, backend, lazy=lazy, epsilon=epsilon, seconds=seconds)
        return solve_exactly(problem, budget_bytes, backend, lazy=lazy, seconds=seconds)

    def _replay_pruned(self, sequence: list[int], reason: str) -> int:
        """Replay a sequence and, if it fits, the same without avoidable recomputations; return the former's peak."""
        sequence = drop_useless(self.problem, sequence)
        peak_bytes = self._replay_sequence(sequence, reason)
        if peak_bytes <= self.budget_bytes:
            self._replay_sequence(keep_where_it_fits(self.problem, sequence, self.budget_bytes, self.watch), reason)
        return peak_bytes

    def _replay_sequence(self, sequence: list[int], reason: str) -> int:
        """Replay a sequence of the problem's ops, and return its peak."""
        before = self.best
        peak_bytes = self.replay_sequence(sequence, reason).peak_bytes
        if self.best is not before:
            self.sequence = sequence
        return peak_bytes
