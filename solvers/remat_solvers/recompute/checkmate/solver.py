"""Jain et al.: Checkmate, Breaking the Memory Wall with Optimal Tensor Rematerialization. MLSys 2020, 1910.02653.

An integer program over stages (section 4): R[t, i] says that op i runs in stage t, S[t, i] that its value is kept from
stage t-1 into t, U[t, k] what is on the device while k runs, FREE[t, i, k] that i goes after k. The cost of all R is
least subject to dependencies, to what can be kept, and to U <= budget. In the frontier-advancing form (section 4.7,
(8a) to (8c)) stage t ends with the first run of op t, which makes the program small. checkmate_model.py has the rows,
and what several outputs per op, workspace, results and ops that run once add to them.

Approximation (section 5, algorithm 2, `rounding=True`): solve the linear relaxation with (1 - epsilon) of the budget,
S = 1 where S* > 0.5, R = the first runs; then, stage by stage, what S keeps must have been there or run before
((1c)), and what runs must have its inputs ((1b), right to left). The authors' code sweeps thresholds from 0.1 to 0.9
where the paper has 0.5; so does this, and keeps the fastest result that fits the budget itself. Where none does, the
relaxation's budget is searched upwards. Above FULL_RELAXATION_OPS ops it has one memory row per stage (see below).

What is open in the paper, and what is done here:

- Backends: the paper uses Gurobi; here HiGHS or CBC, through PuLP.
- Lazy rows (`lazy`): the program is first solved with one memory row per stage, that of its first run. A stage whose
  inside exceeds the budget in the replay gets its full rows (2) and (3), and the program is solved again. When the
  replay fits, the point is an optimum of the full program, of which a part was left out. `lazy=False` writes all rows
  at once.
- Optimality. Checkmate's schedules run an op at most once per stage, in the problem's order inside a stage, so their
  optimum alone does not bound all plans. The program with one row per stage does (checkmate_model.py says why).
  Where it agrees with the plan found, the plan is `optimal` among all plans in the given order; otherwise the bound
  is that of the smaller program, and the reason says that the plan is the best of Checkmate's schedules.
- Infeasible for Checkmate is no proof for plans in another order, and so `not_found` with that reason.
- Larger graphs (more than `exact_ops` ops, or not solved within the time limit): the same program over runs of
  consecutive ops (coarse.py), expanded to the problem's ops and polished (polish.py: repeats that liveness shows
  useless, or that memory has room to avoid, are dropped). The coarse program counts every merged op at its highest,
  so its budget is searched: the largest one whose expanded plan fits. Nothing is proven there, and the reason says so.

With a link (`swap`; POET, Patil et al., ICML 2022, has the variables) values also move to the host. Checkmate's program
with host copies on top is solved over a few moments in place of a stage per op (swap/fluid.py), and what it chooses is
made a plan that is exact in every event and improved by small steps (swap/joint.py). `swap_time` says how the program
counts copies:

- `overlapped`: per stage and direction, copies beyond the time of its compute make it wait, and waits are added
- `additive`: the time of every copy is added, as POET does; its plan is taken as it comes, without small steps

Both are accounts of what the replay counts exactly, and memory is looked at in the moments only, so they prove nothing.
Small problems (up to `exact_moves` ops) are exact all the same, by the clock of the replay, which is the time model
that plans are judged by: what the program and the small steps found is the limit below which every plan in the given
order is searched, whatever it moves and computes again and in whichever order its copies run (brute_force_moves.py).
Either a faster one is found, or what was found is `optimal` among plans in the given order. Larger problems have no
bound with a link, unless nothing runs twice and nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.bounds import time_bound_ns
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.brute_force.states import OutOfReachError
from remat_solvers.recompute.brute_force.states_with_copies import best_moving_plan
from remat_solvers.recompute.checkmate.solve import Solved, solve_exactly, solve_rounded
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.graphs.contraction import contract
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended
from remat_solvers.toolkit.requirements import missing_requirement
from remat_solvers.toolkit.sequences.pruning import drop_useless, keep_where_it_fits

__all__ = ["Checkmate"]

SwapTime: TypeAlias = Literal["overlapped", "additive"]
EXACT_SHARE = 0.6  # of the time limit, where there is one; the rest is for the coarse form
EXACT_SHARE_BESIDE_SWAP = 0.2  # the same where values may move, too
JOINT_SHARE = 0.9  # of the time that is left, for what moves
ROUND_SHARE = 0.4  # of the time that is left, for one program of the coarse form
COARSE_ROUNDS = 6  # of the search for the coarse budget
COARSE_PART = 4  # it goes up by this part of what is left: the best is nearer to the budget than to store-all
COARSE_STEPS = 64  # it ends at this fraction of the budget
MOST_EPSILON = 0.99  # something is left for the relaxation
FULL_RELAXATION_OPS = 100  # rounding: larger problems are relaxed with one memory row per stage

OWN_BEST = "the best of Checkmate's schedules; the bound holds for every plan in the given order"
NONE_FOUND = "none of the schedules found fits"
STRUCK = "a program was ended at its share of the time limit"
NO_SCHEDULE = "none of Checkmate's schedules fits: the program is infeasible"
ROUNDED = "two-phase rounding of the linear relaxation"
EVERY_MOVE = "the search of every plan in the given order"
NONE_MOVING = "no plan in the given order fits, whatever it moves"
INCUMBENT = "the best found in the time that the program had"


@dataclass(frozen=True)
class Checkmate:
    """The integer program of Checkmate, exact where the graph is small enough."""

    backend: Backend = "highs"  # who solves the program
    rounding: bool = False  # two-phase rounding of the linear relaxation in place of the integer program
    epsilon: float = 0.1  # rounding: share of the budget that the relaxation leaves free
    lazy: bool = True  # memory rows inside a stage only where they are needed
    exact_ops: int = 200  # larger problems are coarsened
    coarse_ops: int = 64  # ops of a coarsened problem
    swap: bool | None = None  # move values to the host as well; None: where the problem has a link
    swap_time: SwapTime = "overlapped"  # how the program counts the time of copies
    swap_tries: int = 4000  # small steps after each program
    exact_moves: int = 6  # problems of more ops are not searched for every plan that moves

    name: ClassVar[str] = "checkmate"
    version: ClassVar[str] = "3"

    def __post_init__(self) -> None:
        check_options(self, epsilon=(0, MOST_EPSILON))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest of Checkmate's schedules within the budget. See `registry.Solver`."""
        swap = problem.link is not None if self.swap is None else self.swap
        if swap and (missing := missing_requirement(problem, "checkmate with swap", "link to the host")):
            return missing
        search = _Search(self, problem, budget_bytes, Stopwatch(limits), on_progress)
        try:
            if len(problem.ops) <= self.exact_ops:
                search.directly(EXACT_SHARE_BESIDE_SWAP if swap else EXACT_SHARE)
            if swap and not search.unbeatable:
                search.jointly(seed)
                if len(problem.ops) <= self.exact_moves and self.swap_time == "overlapped":
                    search.exhaustively()
            if not search.settled and not (swap and search.best is not None):
                search.coarsened()
        except KeyboardInterrupt:
            search.stopped = Stopped.INTERRUPT
        return search.outcome()


class _Search:
    """One question, and the best answer so far."""

    def __init__(
        self, options: Checkmate, problem: Problem, budget_bytes: int, watch: Stopwatch, report: OnProgress | None
    ) -> None:
        self.options = options
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = watch
        self.report = report
        self.best: tuple[int, int, Plan] | None = None  # time, peak
        self.sequence: list[int] | None = None  # of the best plan without moves
        self.smallest: int | None = None
        self.bound_ns: int | None = None
        self.moving_bound_ns: int | None = None  # of plans that move, too
        self.settled = False  # the direct form leaves nothing to be tried
        self.stopped = Stopped.COMPLETE
        self.struck = False  # a part of the time limit has ended a program
        self.reason = ""

    @property
    def unbeatable(self) -> bool:
        """Whether nothing runs twice and nobody waits."""
        return self.best is not None and self.best[0] == time_bound_ns(self.problem)

    def directly(self, share: float) -> None:
        """The program over the ops themselves, within a share of the time."""
        solved = self._solve(self.problem, self.budget_bytes, share)
        self.bound_ns = solved.bound_ns
        how = ROUNDED if self.options.rounding else OWN_BEST if solved.ended is Ended.OPTIMAL else INCUMBENT
        for sequence in solved.sequences:
            self._offer(sequence, how)
        if self.options.rounding:
            self.settled = self.best is not None
        else:
            self.settled = solved.ended in (Ended.OPTIMAL, Ended.INFEASIBLE)
            if solved.ended is Ended.INFEASIBLE:
                self.reason = NO_SCHEDULE
            elif not self.settled:
                self.struck = not solved.interrupted
        if solved.interrupted:
            raise KeyboardInterrupt

    def jointly(self, seed: int) -> None:
        """The program over moments, with what moves."""
        from remat_solvers.recompute.checkmate.offload_search import jointly

        options, remaining = self.options, self.watch.remaining
        jointly(
            self.problem,
            self.budget_bytes,
            backend=options.backend,
            swap_time=options.swap_time,
            tries=options.swap_tries if options.swap_time == "overlapped" else 0,
            watch=Stopwatch(self.watch.share(JOINT_SHARE)),
            seed=seed,
            offer=self._offer_plan,
        )
        if remaining is not None and self.watch.remaining is not None:
            self.struck |= self.watch.remaining <= (1 - JOINT_SHARE) * remaining

    def exhaustively(self) -> None:
        """Every plan that moves and is faster than the best so far."""
        best_ns = None if self.best is None else self.best[0]
        try:
            for tangents_first in (True, False):  # the second proves; plans of the first are those that run
                faster = best_moving_plan(
                    self.problem, self.budget_bytes, watch=self.watch, tangents_first=tangents_first, below_ns=best_ns
                )
                if faster is not None and tangents_first:
                    self._offer_plan(faster, EVERY_MOVE)
                    best_ns = self.best[0] if self.best is not None else None
        except OutOfReachError:
            return
        if self.best is None:
            self.reason = NONE_MOVING
        elif faster is None:
            self.moving_bound_ns = self.best[0]

    def coarsened(self) -> None:
        """The program over runs of ops, within the largest coarse budget whose plan, expanded, fits."""
        coarse = contract(self.problem, min(self.options.coarse_ops, len(self.problem.ops)))
        merged = len(coarse.groups) < len(self.problem.ops)
        how = (
            f"{len(self.problem.ops)} ops merged into {len(coarse.groups)}, so nothing is proven" if merged else ROUNDED
        )
        if self.sequence is not None:  # of the direct form, within its limit
            self._offer_polished(self.sequence, self.reason)
        low, high = self.budget_bytes, baseline(coarse.problem).peak_bytes
        budget_bytes = low
        for _ in range(COARSE_ROUNDS):
            if self.watch.expired:
                break
            solved = self._solve(coarse.problem, budget_bytes, ROUND_SHARE)
            peaks = [self._offer_polished(coarse.expand(s), how) for s in solved.sequences]
            if solved.interrupted:
                raise KeyboardInterrupt
            if solved.ended is Ended.UNKNOWN or (solved.ended is Ended.FEASIBLE and not self.options.rounding):
                self.struck = True
            if peaks and min(peaks) > self.budget_bytes:
                high = budget_bytes
            else:
                low = budget_bytes
            if high - low <= self.budget_bytes // COARSE_STEPS:
                break
            budget_bytes = low + max(1, (high - low) // COARSE_PART)
        if self.best is None and not self.reason:
            self.reason = f"{how}: none of the schedules found fits" if merged else NONE_FOUND

    def outcome(self) -> Outcome:
        """What is known by now."""
        stopped, reason = self.stopped, self.reason
        if stopped is Stopped.COMPLETE and self.watch.expired:
            stopped = Stopped.TIME
        elif stopped is Stopped.COMPLETE and self.struck:
            reason = "; ".join(filter(None, [reason, STRUCK]))
        if self.best is None:
            return Outcome(Status.NOT_FOUND, reason=reason, smallest_peak_bytes=self.smallest, stopped=stopped)
        time_ns, _, plan = self.best
        bound_ns, order = self.bound_ns, Order.GIVEN
        if time_ns == time_bound_ns(self.problem):
            bound_ns, order = time_ns, Order.FREE
        elif self.problem.link is not None:
            bound_ns = self.moving_bound_ns  # the other one is on plans without offload
        optimal = bound_ns is not None and bound_ns >= time_ns
        return Outcome(
            status=Status.OPTIMAL if optimal else Status.FEASIBLE,
            plan=plan,
            reason="" if optimal else reason,
            bound_ns=bound_ns,
            order=order,
            smallest_peak_bytes=self.smallest,
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

    def _offer_polished(self, sequence: list[int], how: str) -> int:
        """Consider a sequence and, where it fits, the same with what need not run again left out; the first's peak."""
        sequence = drop_useless(self.problem, sequence)
        peak_bytes = self._offer(sequence, how)
        if peak_bytes <= self.budget_bytes:
            self._offer(keep_where_it_fits(self.problem, sequence, self.budget_bytes, self.watch), how)
        return peak_bytes

    def _offer(self, sequence: list[int], how: str) -> int:
        """Consider a sequence of the problem's ops; its peak."""
        before = self.best
        peak_bytes = self._offer_plan(plan_from_sequence(self.problem, sequence), how)
        if self.best is not before:
            self.sequence = sequence
        return peak_bytes

    def _offer_plan(self, plan: Plan, how: str) -> int:
        """Consider a plan; its peak."""
        timeline = simulate(self.problem, plan)
        time_ns, peak_bytes = timeline.time_ns, timeline.peak_bytes
        self.smallest = peak_bytes if self.smallest is None else min(self.smallest, peak_bytes)
        if peak_bytes <= self.budget_bytes and (self.best is None or (time_ns, peak_bytes) < self.best[:2]):
            self.best = time_ns, peak_bytes, plan
            self.reason = how
            if self.report is not None:
                bound_ns = self.bound_ns if self.problem.link is None else None  # it is on plans without offload
                self.report(Progress(self.watch.seconds, time_ns, peak_bytes, bound_ns, how))
        return peak_bytes
