"""`solve`: the one way to ask any method for a plan.

What holds for every method is settled here: a budget that the unmodified step meets, a budget below the proven
floor, and the replay and the independent validation of every plan before anyone sees it. A plan that is invalid or
over the budget is a bug of ours, raised as AssertionError and never returned.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace

from remat_solvers.bounds import peak_bound, time_bound_ns
from remat_solvers.optimal.forcing import forcing
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import Solver, create
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Result, Status, Stopped
from remat_solvers.schedule import baseline, store_all
from remat_solvers.simulate import Timeline, simulate
from remat_solvers.toolkit.options import option_names
from remat_solvers.units import MIN, format_bytes, read_budget
from remat_solvers.validate import validate

__all__ = ["FITS", "solve"]

FITS = "fits as it is"
VIOLATIONS_SHOWN = 3


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
        limits: how long the solver may work.
        on_progress: called with every report of the solver.
        seed: for solvers that draw random numbers.

    Never returns an invalid plan; without a plan, `status` and `reason` say why. Raises BudgetError for a budget that
    cannot be read, and InputError for an unknown solver.
    """
    method = create(solver) if isinstance(solver, str) else solver
    watch = Stopwatch(limits)
    budget = read_budget(budget_bytes, baseline(problem).peak_bytes)
    if budget == MIN:
        from remat_solvers.least import least

        budget, outcome = least(problem, method, limits=limits, on_progress=on_progress, seed=seed)
        return _Asked(problem, budget, method, seed).answer(outcome, seconds=watch.seconds)
    asked = _Asked(problem, budget, method, seed)
    if asked.unmodified.peak_bytes <= budget:
        return asked.answer(
            Outcome(
                status=Status.OPTIMAL,
                plan=asked.store_all,
                reason=FITS,
                bound_ns=time_bound_ns(problem),
                order=Order.FREE,
                smallest_peak_bytes=asked.unmodified.peak_bytes,
            ),
            seconds=0.0,
        )
    if asked.floor.bytes > budget:
        reason = f"every plan needs {forcing(problem, asked.floor)}"
        return asked.answer(Outcome(status=Status.INFEASIBLE, reason=reason), seconds=0.0)
    outcome = method.solve(problem, budget, limits=limits, on_progress=on_progress, seed=seed)
    return asked.answer(outcome, seconds=watch.seconds)


@dataclass
class _Asked:
    """One question, and what is known about it whatever the method."""

    problem: Problem
    budget_bytes: int
    solver: Solver
    seed: int

    def __post_init__(self) -> None:
        self.store_all = store_all(self.problem)
        self.unmodified = simulate(self.problem, self.store_all)
        self.floor = peak_bound(self.problem)

    def answer(self, outcome: Outcome, seconds: float) -> Result:
        """The outcome of the method, replayed, validated and completed."""
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
        """Replay the outcome's plan; AssertionError where the method claims what does not hold."""
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
            raise AssertionError(f"{name}: optimal is claimed, its bound does not prove it")
        return timeline


def _why_not_found(outcome: Outcome) -> str:
    """The method's own reason and the smallest peak it reached; without either, what stopped it."""
    said = [outcome.reason] if outcome.reason else []
    if outcome.smallest_peak_bytes is not None:
        said.append(f"smallest peak found: {format_bytes(outcome.smallest_peak_bytes)}")
    elif not said and outcome.stopped is not Stopped.COMPLETE:
        said.append(f"{outcome.stopped.sentence.removesuffix('.')} before it had a plan of any size")
    return "; ".join(said)
