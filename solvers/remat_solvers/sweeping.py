"""`sweep`: the Pareto curve of time against peak, from the smallest reachable peak to store-all.

Two facts join the results of single budgets to one curve, whatever the solver. A plan fits every budget that its peak
does not exceed. And the plans within a budget are among those within any larger one, so a bound on their times, or a
proof that no plan fits, holds for every smaller budget too. Each point therefore uses all that is known: the fastest of
all plans that fit, and the largest bound proven at its budget or above. So times fall and bounds fall as budgets rise.
If plan and bound meet at a budget before the solver has run for it, the solver does not run for it.

A warm-started solver (registry.WarmStarted) starts from the plans known on both sides of the budget, and from the plan
of the smallest peak, which leads to one that fits.

If no budgets are given they are chosen: half of them evenly from the smallest peak that is found to store-all, the
others one by one where the curve is least certain. Between neighbours (b, t) and (b', t'), where p' <= b' is the peak
of the second plan, the fastest plan is somewhere in the rectangle from (b, t) to (p', t'), since times only fall; the
largest rectangle is halved. Its height is measured in speed, 1/t' - 1/t: the last bytes before the smallest peak can
cost ten times the step, which would draw all points to that end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from remat_solvers.bounds import peak_bound
from remat_solvers.errors import InputError
from remat_solvers.pareto import Point, Sweep
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import FindsMinPeak, Solver, create, with_starts
from remat_solvers.result import Limits, OnProgress, Order, Progress, Result, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order
from remat_solvers.solving import solve
from remat_solvers.units import parse_budget

DEFAULT_POINTS = 10
DEFAULT_SECONDS = 300.0
NOT_SOLVED = "the sweep ended before its turn"

OnPoint = Callable[[Point], None]


def sweep(
    problem: Problem,
    *,
    budgets: Sequence[int | str] | None = None,
    points: int = DEFAULT_POINTS,
    solver: str | Solver = "auto",
    limits: Limits = Limits(DEFAULT_SECONDS),  # noqa: B008  (frozen)
    on_progress: OnProgress | None = None,
    on_point: OnPoint | None = None,
    seed: int = 0,
) -> Sweep:
    """The fastest plans that `solver` finds for `budgets`, or for `points` budgets that the sweep chooses.

    Args:
        budgets: bytes, "8GiB", "60%" (of store-all's peak, constants included), in any order; a point for each.
        points: how many budgets to choose if none are given, at least 2. Fewer are solved once the curve is exact.
        limits: for the whole sweep. Each budget in turn has an even share of the remaining time.
        on_progress: called with the solver's progress at each budget.
        on_point: called with every point as soon as it exists; later points may improve it.

    After Ctrl-C the points so far are returned. Given budgets that were not reached have points from the known plans.
    Raises BudgetError for a budget that does not parse, InputError for a bad number of points or an unknown solver.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise InputError(f"points is how many budgets to choose, at least 2, not {points!r}")
    if budgets is not None and (isinstance(budgets, str) or not budgets):
        raise InputError(f"budgets is a sequence of one or more budgets, such as ('90%', '60%'), not {budgets!r}")
    curve = _Curve(problem, create(solver) if isinstance(solver, str) else solver, limits, on_progress, on_point, seed)
    given = None if budgets is None else [parse_budget(b, curve.store_all_peak_bytes) for b in budgets]
    try:
        if given is None:
            _choose(curve, points)
        else:
            wanted = sorted(set(given), reverse=True)
            for left, budget in zip(range(len(wanted), 0, -1), wanted, strict=True):
                curve.solve(budget, left)
    except KeyboardInterrupt:
        curve.stopped = Stopped.INTERRUPT
    return curve.sweep(sorted(set(given)) if given is not None else curve.budgets())


def _choose(curve: _Curve, points: int) -> None:
    """Solve at store-all's peak, at the smallest peak, evenly between them, and then in the largest rectangles."""
    top = max(1, curve.store_all_peak_bytes)  # a budget of less than one byte is none
    curve.solve(top, 1)
    low = curve.lowest(points)
    steps = max(1, (points - 1) // 2)
    grid = {low + (top - low) * step // steps for step in range(steps)} - curve.solved.keys()
    for done, budget in enumerate(sorted(grid, reverse=True)):
        curve.solve(budget, points - 1 - done)
    for left in range(points - len(curve.budgets()), 0, -1):
        middle = curve.largest_gap()
        if middle is None:
            return
        if curve.watch.expired:
            curve.stopped = Stopped.TIME
            return
        curve.solve(middle, left)


@dataclass(frozen=True)
class _Solved:
    """The solver's result for one budget."""

    seconds: float
    result: Result | None  # None: known plans and bounds settled the budget, so the solver did not run


@dataclass
class _Curve:
    """The results so far, and the point of the curve that they imply at any budget."""

    problem: Problem
    solver: Solver
    limits: Limits
    on_progress: OnProgress | None
    on_point: OnPoint | None
    seed: int
    solved: dict[int, _Solved] = field(default_factory=dict)  # by budget
    min_peak_plan: Plan | None = None  # the plan of the smallest peak, if the solver has a search for it
    stopped: Stopped = Stopped.COMPLETE

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.limits)
        unmodified = baseline(self.problem)
        self.store_all_peak_bytes, self.store_all_time_ns = unmodified.peak_bytes, unmodified.time_ns
        self.floor_bytes = peak_bound(self.problem).bytes

    def results(self) -> list[tuple[int, Result]]:
        """The solver's results with their budgets, in ascending order."""
        return [(b, s.result) for b, s in sorted(self.solved.items()) if s.result is not None]

    def budgets(self) -> list[int]:
        """The budgets of the curve's points: those solved for that have a plan."""
        return [budget for budget in sorted(self.solved) if self.point(budget).plan is not None]

    def solve(self, budget: int, left: int) -> Point:
        """Return the point at `budget`, the first of `left` budgets that share the remaining time."""
        known = self.point(budget)
        if budget in self.solved:
            return known
        proven = known.status is Status.OPTIMAL and known.order is Order.FREE
        settled = proven or known.status is Status.INFEASIBLE
        self.solved[budget] = _Solved(0.0, None) if settled else self._run_solver(budget, left)
        point = self.point(budget)
        if self.on_point is not None:
            self.on_point(point)
        if point.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt  # the solver returned its best plan; the sweep ends
        if point.stopped is Stopped.TIME:
            self.stopped = Stopped.TIME
        return point

    def _run_solver(self, budget: int, left: int) -> _Solved:
        watch = Stopwatch(Limits(None))
        result = solve(
            self.problem,
            budget,
            solver=self._warm_started(budget),
            limits=self._share(left),
            on_progress=self._on_progress,
            seed=self.seed,
        )
        return _Solved(watch.seconds, result)

    def _on_progress(self, progress: Progress) -> None:
        """Pass the solver's report on, with the time since the sweep began."""
        if self.on_progress is not None:
            self.on_progress(replace(progress, seconds=self.watch.seconds))

    def lowest(self, left: int) -> int:
        """The smallest budget that the solver finds a plan for.

        A solver without a search for the smallest peak, and any solver with a link, solves for the floor under every
        plan's peak, and reports the smallest peak that it reaches.
        """
        if isinstance(self.solver, FindsMinPeak) and self.problem.link is None:
            found = self.solver.solve_min_peak(
                self.problem, limits=self._share(left + 1), on_progress=self._on_progress, seed=self.seed
            )
            self.min_peak_plan = found.plan
            if found.stopped is Stopped.INTERRUPT:
                raise KeyboardInterrupt
            return max(1, found.smallest_peak_bytes or self.store_all_peak_bytes)
        floor = max(1, self.floor_bytes)
        if self.solve(floor, left + 1).plan is not None:
            return floor
        return min(result.smallest_peak_bytes or self.store_all_peak_bytes for _, result in self.results())

    def largest_gap(self) -> int | None:
        """The budget in the middle of the largest rectangle between neighbours; None if all are empty."""
        points = [self.point(budget) for budget in self.budgets()]
        best, middle = 0.0, None
        for below, above in pairwise(points):
            if above.peak_bytes is None or below.time_ns is None or above.time_ns is None:
                raise AssertionError("a point of the curve without a plan")
            width = above.peak_bytes - below.budget_bytes
            area = width * (1 / max(1, above.time_ns) - 1 / max(1, below.time_ns))
            if width > 1 and area > best:
                best, middle = area, below.budget_bytes + width // 2
        return middle

    def point(self, budget: int) -> Point:
        """The point at `budget` that follows from all results."""
        fitting = [r for _, r in self.results() if r.peak_bytes is not None and r.peak_bytes <= budget]
        best = min(fitting, key=lambda r: (r.time_ns, r.peak_bytes), default=None)
        above = [(b, r) for b, r in self.results() if b >= budget]
        impossible = next((r for _, r in above if r.status is Status.INFEASIBLE), None)
        solved = self.solved.get(budget)
        own = None if solved is None else solved.result
        reason = NOT_SOLVED
        if best is not None:
            status, reason = Status.FEASIBLE, best.reason if best is own else ""
        elif impossible is not None:
            status, reason = Status.INFEASIBLE, impossible.reason
        elif own is not None:
            status, reason = own.status, own.reason
        else:
            status = Status.NOT_FOUND
        if best is not None and impossible is not None:
            raise AssertionError(f"{self.solver.name}: infeasible at {budget} bytes, where there is a plan")
        plan = None if best is None else best.plan
        time_ns = None if best is None else best.time_ns
        bound_ns, order = _bound([r for _, r in above], plan)
        gap = None
        if time_ns is not None and bound_ns is not None:
            if bound_ns > time_ns:
                raise AssertionError(f"{self.solver.name}: a bound of {bound_ns} ns above a plan's {time_ns} ns")
            gap = (time_ns - bound_ns) / max(1, self.store_all_time_ns)
            status = Status.OPTIMAL if bound_ns == time_ns else status
        return Point(
            budget_bytes=budget,
            status=status,
            stopped=self._stopped(own, reached=solved is not None),
            peak_bytes=None if best is None else best.peak_bytes,
            time_ns=time_ns,
            overhead=None if time_ns is None else time_ns / max(1, self.store_all_time_ns) - 1,
            bound_ns=bound_ns,
            order=order,
            gap=gap,
            seconds=0.0 if solved is None else solved.seconds,
            reason=reason,
            plan=plan,
        )

    def sweep(self, budgets: list[int]) -> Sweep:
        """The sweep with a point for each of `budgets`."""
        results = [result for _, result in self.results()]
        return Sweep(
            problem=self.problem.fingerprint,
            name=self.problem.name,
            solver=self.solver.name,
            solver_version=self.solver.version,
            seed=self.seed,
            link=self.problem.link,
            stopped=self.stopped,
            seconds=self.watch.seconds,
            store_all_peak_bytes=self.store_all_peak_bytes,
            store_all_time_ns=self.store_all_time_ns,
            smallest_peak_bytes=min(
                (r.smallest_peak_bytes for r in results if r.smallest_peak_bytes is not None),
                default=self.store_all_peak_bytes,
            ),
            peak_bound_bytes=max((r.peak_bound_bytes for r in results), default=self.floor_bytes),
            points=tuple(self.point(budget) for budget in budgets),
        )

    def _stopped(self, own: Result | None, *, reached: bool) -> Stopped:
        if own is not None:
            return own.stopped
        return Stopped.COMPLETE if reached else self.stopped

    def _warm_started(self, budget: int) -> Solver:
        """The solver, which starts from the plans known around `budget` if it can be warm-started."""
        below = [r.plan for b, r in self.results() if b < budget and r.plan is not None]
        above = [r.plan for b, r in self.results() if b > budget and r.plan is not None]
        lowest = [] if self.min_peak_plan is None else [self.min_peak_plan]
        return with_starts(self.solver, (*below[-1:], *above[:1], *lowest))

    def _share(self, left: int) -> Limits:
        """The limits for one of `left` budgets: an even share of the remaining time."""
        remaining = self.watch.remaining
        return replace(self.limits, seconds=None if remaining is None else remaining / left)


def _bound(results: list[Result], plan: Plan | None) -> tuple[int | None, Order | None]:
    """The largest of the bounds of `results` that hold for `plan`, and the order that it is for.

    A bound for the given order does not hold for a plan that reorders first computations. One for every order holds for
    any plan.
    """
    free = [r.bound_ns for r in results if r.bound_ns is not None and r.order is Order.FREE]
    given = [r.bound_ns for r in results if r.bound_ns is not None and r.order is Order.GIVEN]
    if given and max(given) > max(free, default=-1) and (plan is None or keeps_order(plan)):
        return max(given), Order.GIVEN
    return (max(free), Order.FREE) if free else (None, None)
