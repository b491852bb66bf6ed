"""`solve` runs any method on a problem and a budget, and checks its plan.

All that is common to the methods is done here: a budget that the unmodified step meets, a budget below the proven
floor, the budget "min", and the replay and the independent validation of every plan before it is returned. A plan that
is invalid or over the budget is a bug of ours, raised as AssertionError and never returned.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace

from remat_solvers.bounds import bottleneck, peak_bound, time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import FindsMinPeak, Solver, create, with_starts
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Result, Status, Stopped
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import Timeline, simulate
from remat_solvers.toolkit.options import option_names
from remat_solvers.units import MIN, format_bytes, read_budget
from remat_solvers.validate import validate

FITS = "fits as it is"
VIOLATIONS_SHOWN = 3
PEAK_SHARE = 0.6  # of the time for the budget "min", to find the smallest peak; the rest is for a faster plan of it


def solve(
    problem: Problem,
    budget_bytes: int | str,
    *,
    solver: str | Solver = "auto",
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    on_progress: OnProgress | None = None,
    seed: int = 0,
) -> Result:
    """The fastest plan for `problem` that `solver` finds with a peak of at most `budget_bytes`.

    Args:
        budget_bytes: an int, "8GiB", "800MB", or "60%" (of the store-all peak); constants and reserve are included.
            "min" is the smallest peak that the solver finds a plan for: the result carries it as its budget, and the
            proven floor of every plan as `peak_bound_bytes`.
        solver: a name of the registry, or a solver object with options of its own.
        limits: the time, and the work, that the solver may take.
        on_progress: called with every report of the solver.
        seed: for solvers that draw random numbers.

    Never returns an invalid plan; without a plan, `status` and `reason` say why. Raises BudgetError for a budget that
    cannot be read, and InputError for an unknown solver.
    """
    method = create(solver) if isinstance(solver, str) else solver
    watch = Stopwatch(limits)
    budget = read_budget(budget_bytes, baseline(problem).peak_bytes)
    if budget == MIN:
        budget, outcome = solve_min_budget(problem, method, limits=limits, on_progress=on_progress, seed=seed)
        return _Evaluation(problem, budget, method, seed).result(outcome, seconds=watch.seconds)
    evaluation = _Evaluation(problem, budget, method, seed)
    if evaluation.unmodified.peak_bytes <= budget:
        return evaluation.result(
            Outcome(
                status=Status.OPTIMAL,
                plan=store_all(problem),
                reason=FITS,
                bound_ns=time_bound_ns(problem),
                order=Order.FREE,
                smallest_peak_bytes=evaluation.unmodified.peak_bytes,
            ),
            seconds=0.0,
        )
    if evaluation.floor.bytes > budget:
        reason = f"Every plan needs {bottleneck(problem, evaluation.floor)}"
        return evaluation.result(Outcome(status=Status.INFEASIBLE, reason=reason), seconds=0.0)
    outcome = method.solve(problem, budget, limits=limits, on_progress=on_progress, seed=seed)
    return evaluation.result(outcome, seconds=watch.seconds)


def solve_min_budget(
    problem: Problem, method: Solver, *, limits: Limits, on_progress: OnProgress | None, seed: int
) -> tuple[int, Outcome]:
    """The smallest budget in bytes that `method` finds a plan for, and its outcome for that budget.

    A method with `solve_min_peak` finds the smallest peak first, and then a faster plan of that peak; `limits.work`
    counts for each of the two. Any other method solves for the floor under every plan's peak, and then for the smallest
    peak that it reports, until it has a plan.
    """
    watch = Stopwatch(limits)
    if isinstance(method, FindsMinPeak):
        found = method.solve_min_peak(problem, limits=limits.share(PEAK_SHARE), on_progress=on_progress, seed=seed)
        if found.plan is None or found.smallest_peak_bytes is None:
            raise AssertionError(f"{method.name}: no plan of the smallest peak, though store-all is one")
        if found.stopped is Stopped.INTERRUPT:
            return found.smallest_peak_bytes, found
        started = with_starts(method, (found.plan,))
        left = Limits(watch.remaining, limits.work)
        try:
            outcome = started.solve(problem, found.smallest_peak_bytes, limits=left, on_progress=on_progress, seed=seed)
        except KeyboardInterrupt:  # before the method had a plan
            outcome = replace(found, stopped=Stopped.INTERRUPT)
        outcome = outcome if outcome.plan is not None else found
        return found.smallest_peak_bytes, _with_peak_floor(problem, outcome, found)
    budget_bytes = max(1, peak_bound(problem).bytes)
    while True:
        left = Limits(watch.remaining)
        outcome = method.solve(problem, budget_bytes, limits=left, on_progress=on_progress, seed=seed)
        reached = outcome.smallest_peak_bytes
        if outcome.plan is not None or reached is None or reached <= budget_bytes or watch.expired:
            return budget_bytes, outcome
        budget_bytes = reached


def _with_peak_floor(problem: Problem, outcome: Outcome, found: Outcome) -> Outcome:
    """The outcome with the floor that `found` proves under every plan's peak, its certificate, and its bottleneck."""
    floor_bytes = found.peak_bound_bytes
    reasons = [outcome.reason]
    if floor_bytes is not None:
        at_floor = found.smallest_peak_bytes == floor_bytes
        claim = "has a smaller peak" if at_floor else f"has a peak below {format_bytes(floor_bytes)}"
        reasons = [f"no plan {claim}", f"forced are {bottleneck(problem)}", outcome.reason]
    return replace(
        outcome,
        reason="; ".join(filter(None, reasons)),
        smallest_peak_bytes=found.smallest_peak_bytes,
        peak_bound_bytes=floor_bytes,
        certificate=found.certificate,
        stopped=found.stopped if outcome.stopped is Stopped.COMPLETE else outcome.stopped,
    )


@dataclass
class _Evaluation:
    """Turns the outcome of a method into a checked Result, with the facts of the problem and the budget."""

    problem: Problem
    budget_bytes: int
    solver: Solver
    seed: int

    def __post_init__(self) -> None:
        self.unmodified = baseline(self.problem)
        self.floor = peak_bound(self.problem)

    def result(self, outcome: Outcome, seconds: float) -> Result:
        """The outcome, replayed, validated and completed."""
        timeline = self._check(outcome)
        if outcome.status is Status.NOT_FOUND:
            outcome = replace(outcome, reason=_why_not_found(outcome))
        time_ns = None if timeline is None else timeline.time_ns
        gap = None
        if time_ns is not None and outcome.bound_ns is not None:
            gap = (time_ns - outcome.bound_ns) / max(1, self.unmodified.time_ns)
        peak_bytes = None if timeline is None else timeline.peak_bytes
        reachable = [self.unmodified.peak_bytes, outcome.smallest_peak_bytes, peak_bytes]
        return Result(
            plan=outcome.plan,
            problem=self.problem.fingerprint,
            budget_bytes=self.budget_bytes,
            status=outcome.status,
            stopped=outcome.stopped,
            time_ns=time_ns,
            peak_bytes=peak_bytes,
            bound_ns=outcome.bound_ns,
            order=outcome.order,
            gap=gap,
            smallest_peak_bytes=min(peak for peak in reachable if peak is not None),
            peak_bound_bytes=max(self.floor.bytes, outcome.peak_bound_bytes or 0),
            store_all_time_ns=self.unmodified.time_ns,
            store_all_peak_bytes=self.unmodified.peak_bytes,
            seconds=seconds,
            solver=self.solver.name,
            version=self.solver.version,
            options={name: getattr(self.solver, name) for name in option_names(type(self.solver))}
            if is_dataclass(self.solver)
            else {},
            seed=self.seed,
            reason=outcome.reason,
            certificate=outcome.certificate,
        )

    def _check(self, outcome: Outcome) -> Timeline | None:
        """Replay the outcome's plan. Raises AssertionError for any claim of the method that does not hold."""
        name = self.solver.name
        with_plan = outcome.status in (Status.OPTIMAL, Status.FEASIBLE)
        if with_plan is not (outcome.plan is not None):
            raise AssertionError(f"{name}: status {outcome.status} {'without' if with_plan else 'with'} a plan")
        if outcome.plan is None:
            return None
        violations = validate(self.problem, outcome.plan, self.budget_bytes)
        if violations:
            shown = "; ".join(map(str, violations[:VIOLATIONS_SHOWN]))
            raise AssertionError(f"{name}: an invalid plan ({len(violations)} violations): {shown}")
        timeline = simulate(self.problem, outcome.plan)
        if timeline.peak_bytes > self.budget_bytes:
            raise AssertionError(f"{name}: a plan of {timeline.peak_bytes} bytes for a budget of {self.budget_bytes}")
        if outcome.peak_bound_bytes is not None and outcome.peak_bound_bytes > timeline.peak_bytes:
            raise AssertionError(f"{name}: a floor of {outcome.peak_bound_bytes} bytes above its own plan's peak")
        if outcome.bound_ns is not None and outcome.bound_ns > timeline.time_ns and outcome.order is Order.FREE:
            raise AssertionError(f"{name}: a bound of {outcome.bound_ns} ns above its own plan's {timeline.time_ns} ns")
        if outcome.status is Status.OPTIMAL and (outcome.bound_ns is None or outcome.bound_ns < timeline.time_ns):
            raise AssertionError(f"{name}: status optimal, but its bound does not prove it")
        return timeline


def _why_not_found(outcome: Outcome) -> str:
    """The method's own reason and the smallest peak it reached; without either, the event that stopped it."""
    reasons = [outcome.reason] if outcome.reason else []
    if outcome.smallest_peak_bytes is not None:
        reasons.append(f"smallest peak found: {format_bytes(outcome.smallest_peak_bytes)}")
    elif not reasons and outcome.stopped is not Stopped.COMPLETE:
        reasons.append(f"{outcome.stopped.sentence.removesuffix('.')} before it had a plan of any size")
    return "; ".join(reasons)
