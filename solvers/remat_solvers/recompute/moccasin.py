"""Bartan et al.: Moccasin, Efficient Tensor Rematerialization for Neural Networks. ICML 2023.

Constraint programming over retention intervals. Op k may run up to C times; run i starts at event s[k, i], is active
or not, and each value d it makes is retained up to event e[d, i]. In the staged domain, stage j ends with the first run
of op j and holds one event per op 0..j in the input order:

    event(j, k) = j (j + 1) / 2 + k,    s[k, 1] = event(k, k),    s[k, i] in {event(j, k): j > k} for i > 1

minimise the sum of time(k) active[k, i], subject to

    active[k, i+1] => active[k, i],  e[d, i] < s[k, i+1]
    cumulative: retained values and the workspace of the running op never exceed the budget
    precedence: for every active run of op v and every value d it reads, some active run j of d's producer u has
                s[u, j] + 1 <= s[v, i] <= e[d, j]

It needs O(n C) integer variables where Checkmate needs O(n^2). Two phases: the first minimises by how much the peak
exceeds the budget, from the unmodified step, and ends at the first plan within it; the second, from there, minimises
the time.

What is open in the paper, or where an exported graph has more, and what is done here:

- The paper writes precedence as a reservoir; here one Boolean says which run j of u a run of v reads, which holds the
  same solutions (for C = 2 at most four per edge).
- Intervals are per value, runs per op, since an op may make several; workspace is an interval of one event.
- Results of backward are read at a last event; a last stage lets them run again before it. Results of forward are read
  at the first run of the last forward op, retained by the caller from there on, and the fresh copy of a later run
  counts at its own event only. Nothing runs again before the tangents.
- The solver is OR-tools' CP-SAT with one worker. Sizes are divided by their common divisor, and rounded up to UNITS
  parts of the budget where they are still larger.
- What CP-SAT proves holds for C runs per op, one per stage and in the input order. Plans in general may do more, so no
  bound is reported (but that every op runs once), and the reason says what was proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import interruptible
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import plan_from_sequence, tangents_op
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.sequences.pruning import drop_useless

__all__ = ["Moccasin"]

UNITS = 2**30  # of the budget: keeps products of bytes and events within 64 bits
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Moccasin:
    """Retention intervals, up to `runs` per op, by constraint programming."""

    runs: int = 2  # C: how often an op may run, its first run included

    name: ClassVar[str] = "moccasin"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan with up to `runs` runs per op. See `registry.Solver`."""
        search = _Search(self, problem, budget_bytes, Stopwatch(limits), on_progress, seed)
        try:
            search.run()
        except KeyboardInterrupt:
            search.stopped = Stopped.INTERRUPT
        return search.outcome()


class _Search:
    """One question, and the best answer so far."""

    def __init__(
        self,
        options: Moccasin,
        problem: Problem,
        budget_bytes: int,
        watch: Stopwatch,
        report: OnProgress | None,
        seed: int,
    ) -> None:
        self.options = options
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.watch = watch
        self.report = report
        self.seed = seed
        self.best: tuple[int, int, list[int]] | None = None  # time, peak, sequence
        self.smallest: int | None = None
        self.stopped = Stopped.COMPLETE
        self.reason = ""

    def run(self) -> None:
        """Both phases."""
        from ortools.sat.python import cp_model

        most = f"with at most {self.options.runs} runs per op"
        model = _Model(self.problem, self.budget_bytes, self.options.runs, self.watch)
        if not model.complete:
            self.reason, self.stopped = f"the time limit came while the program {most} was written", Stopped.TIME
            return
        model.minimise_excess()
        status = self._phase(model, lambda excess: excess <= 0)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE) or model.excess_found:
            self.reason = f"none {most} fits" if status == cp_model.OPTIMAL else f"none found {most}"
            if status != cp_model.OPTIMAL:
                self.stopped = Stopped.TIME
            return
        model.minimise_time()
        status = self._phase(model, lambda _: False)
        self.reason = f"the best {most}, one per stage" if status == cp_model.OPTIMAL else f"the best found {most}"
        if status != cp_model.OPTIMAL:
            self.stopped = Stopped.TIME

    def _phase(self, model: _Model, enough: Callable[[float], bool]) -> Any:
        from ortools.sat.python import cp_model

        search = self
        failures: list[BaseException] = []

        class Found(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                try:
                    model.remember(self.value)
                    search.offer(model.sequence())
                    if enough(self.objective_value):
                        self.stop_search()
                except BaseException as failure:  # must not pass through the backend
                    failures.append(failure)
                    self.stop_search()

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self.seed % LARGEST_SEED
        solver.parameters.catch_sigint_signal = False
        remaining = self.watch.remaining
        if remaining is not None:
            solver.parameters.max_time_in_seconds = remaining
        status, interrupted = interruptible(lambda: solver.solve(model.model, Found()), solver.stop_search)
        if failures:
            raise failures[0]
        if interrupted:
            raise KeyboardInterrupt
        return status

    def offer(self, sequence: list[int]) -> None:
        """Consider a sequence."""
        sequence = drop_useless(self.problem, sequence)
        timeline = simulate(self.problem, plan_from_sequence(self.problem, sequence))
        time_ns, peak_bytes = timeline.time_ns, timeline.peak_bytes
        self.smallest = peak_bytes if self.smallest is None else min(self.smallest, peak_bytes)
        if peak_bytes <= self.budget_bytes and (self.best is None or (time_ns, peak_bytes) < self.best[:2]):
            self.best = time_ns, peak_bytes, sequence
            if self.report is not None:
                self.report(Progress(self.watch.seconds, time_ns, peak_bytes, None, f"C = {self.options.runs}"))

    def outcome(self) -> Outcome:
        """What is known by now."""
        if self.best is None:
            return Outcome(
                status=Status.NOT_FOUND, reason=self.reason, smallest_peak_bytes=self.smallest, stopped=self.stopped
            )
        time_ns, _, sequence = self.best
        optimal = time_ns == time_bound_ns(self.problem)
        return Outcome(
            status=Status.OPTIMAL if optimal else Status.FEASIBLE,
            plan=plan_from_sequence(self.problem, sequence),
            reason="" if optimal else self.reason,
            bound_ns=time_ns if optimal else None,
            order=Order.FREE if optimal else Order.GIVEN,
            smallest_peak_bytes=self.smallest,
            stopped=Stopped.COMPLETE if optimal else self.stopped,
        )


def _event(stage: int, op: int) -> int:
    return stage * (stage + 1) // 2 + op


class _Model:
    """The constraint program of one problem; the objective is set, and set again, by the phases."""

    def __init__(self, problem: Problem, budget_bytes: int, most: int, watch: Stopwatch) -> None:
        from ortools.sat.python import cp_model

        ops, values = problem.ops, problem.values
        self.problem = problem
        self.model = cp_model.CpModel()
        self.most = most
        self.count = len(ops)
        self.stages = self.count + bool(problem.backward_ops)  # the last one, if any, without a first run
        self.end = _event(self.count + 1, 0)
        self.excess_found = True  # of the latest point
        results = {v for v in problem.results if values[v].kind != "constant"}
        by_forward = {v for v in results if ops[problem.producer[v]].phase == "forward"}
        self.pinned = by_forward if problem.backward_ops else set()
        last_forward = len(problem.forward_ops) - 1
        self.boundary = _event(last_forward, last_forward) if self.pinned else -1
        self.tangents = tangents_op(problem)
        room = budget_bytes - problem.constant_bytes - problem.reserve_bytes
        sizes = [*(v.bytes for v in values if v.kind != "constant"), *(op.workspace_bytes for op in ops)]
        self.unit = gcd(room, *sizes) or 1
        if room // self.unit > UNITS:
            self.unit = -(-room // UNITS)
        self.room = room // self.unit
        self.hints: list[tuple[Any, int]] = []
        self.point: list[tuple[int, int]] = []  # (event, op) of every run
        self.starts: dict[tuple[int, int], Any] = {}  # (op, run)
        self.active: dict[tuple[int, int], Any] = {}
        self.ends: dict[tuple[int, int], Any] = {}  # (value, run)
        self.intervals: list[Any] = []
        self.demands: list[int] = []
        self.complete = False  # until the limit leaves time for all of it
        for op in range(self.count):
            for _ in self._runs(op, most if ops[op].recomputable else 1):
                if watch.expired:
                    return
        for (op, run), start in self.starts.items():
            for value in dict.fromkeys(ops[op].inputs):
                if problem.producer[value] >= 0:
                    self._reads(value, start, self.active[op, run])
            if watch.expired:
                return
        self.complete = True
        final = self.end
        for value in sorted(results):
            self._reads(value, self.boundary if value in self.pinned else final, 1)
            if value in self.pinned and self._units(values[value].bytes):
                length = self.end - self.boundary
                caller = self.model.new_fixed_size_interval_var(self.boundary + 1, length, f"caller_{value}")
                self.intervals.append(caller)
                self.demands.append(self._units(values[value].bytes))
        highest = sum(self.demands)
        self.excess = self.model.new_int_var(0, max(0, highest - self.room), "excess")
        self.model.add_cumulative(self.intervals, self.demands, self.room + self.excess)
        self.time = sum(
            ops[op].time_ns * active for (op, run), active in self.active.items() if run and ops[op].time_ns
        )

    def minimise_excess(self) -> None:
        """The first phase, from the unmodified step."""
        self.model.minimize(self.excess)
        for (_, run), active in self.active.items():
            if run:
                self.model.add_hint(active, 0)

    def minimise_time(self) -> None:
        """The second phase, from the point that was found."""
        self.model.add(self.excess == 0)
        self.model.minimize(self.time)
        self.model.clear_hints()  # type: ignore[no-untyped-call]
        for variable, value in self.hints:
            self.model.add_hint(variable, value)

    def remember(self, value_of: Callable[[Any], int]) -> None:
        """Keep a point: for the sequence it means, and as the start of the next phase."""
        variables = [*self.starts.values(), *self.active.values(), *self.ends.values()]
        self.hints = [(v, int(value_of(v))) for v in variables if not isinstance(v, int)]
        self.excess_found = value_of(self.excess) > 0
        self.point = [
            (start if isinstance(start, int) else int(value_of(start)), op)
            for (op, run), start in self.starts.items()
            if run == 0 or value_of(self.active[op, run])
        ]

    def sequence(self) -> list[int]:
        """The ops of the latest point in execution order."""
        return [op for _, op in sorted(self.point)]

    def _units(self, size: int) -> int:
        return -(-size // self.unit)

    def _runs(self, op: int, most: int) -> Iterator[int]:
        """Write the runs of an op, and how long each retains what it makes; one at a time."""
        from ortools.sat.python import cp_model

        model = self.model
        stages = [j for j in range(op + 1, self.stages) if j != self.tangents]
        later = cp_model.Domain.from_values([_event(j, op) for j in stages])
        for run in range(min(most, 1 + len(stages))):
            if run == 0:
                self.starts[op, 0], self.active[op, 0] = _event(op, op), 1
            else:
                start = model.new_int_var_from_domain(later, f"s_{op}_{run}")
                active = model.new_bool_var(f"a_{op}_{run}")
                self.starts[op, run], self.active[op, run] = start, active
                if run > 1:
                    model.add_implication(active, self.active[op, run - 1])
                    model.add(start > self.starts[op, run - 1]).only_enforce_if(active)
                self._canonical(start, active, _event(stages[0], op))
            self._workspace(op, run)
            for value in self.problem.ops[op].outputs:
                self._retain(value, op, run)
            yield run

    def _canonical(self, start: Any, active: Any, first: int) -> None:
        """A run that does not happen has one place, so that points which mean the same are the same."""
        self.model.add(start == first).only_enforce_if(~active)

    def _workspace(self, op: int, run: int) -> None:
        demand = self._units(self.problem.ops[op].workspace_bytes)
        if demand:
            start, active = self.starts[op, run], self.active[op, run]
            self.intervals.append(self.model.new_optional_fixed_size_interval_var(start, 1, active, f"w_{op}_{run}"))
            self.demands.append(demand)

    def _retain(self, value: int, op: int, run: int) -> None:
        model, start, active = self.model, self.starts[op, run], self.active[op, run]
        end = model.new_int_var(0, self.end, f"e_{value}_{run}")
        self.ends[value, run] = end
        model.add(end >= start)
        if run:
            before = self.ends[value, run - 1]
            model.add(before < start).only_enforce_if(active)
            model.add(end == start).only_enforce_if(~active)
        if value in self.pinned:
            late = model.new_bool_var(f"late_{value}_{run}")
            model.add(end <= self.boundary).only_enforce_if(~late)
            model.add(end == start).only_enforce_if(late)
        demand = self._units(self.problem.values[value].bytes)
        if demand:
            size = model.new_int_var(1, self.end + 1, f"l_{value}_{run}")
            model.add(size == end - start + 1)
            self.intervals.append(model.new_optional_interval_var(start, size, end + 1, active, f"i_{value}_{run}"))
            self.demands.append(demand)

    def _reads(self, value: int, at: Any, active: Any) -> None:
        """Where `active`, some run of the producer came before `at` and is retained up to it, or the caller has it."""
        model = self.model
        producer = self.problem.producer[value]
        choices = []
        for run in range(self.most):
            if (producer, run) not in self.starts:
                break
            chosen = model.new_bool_var("")
            model.add(self.starts[producer, run] <= at).only_enforce_if(chosen)
            model.add(self.ends[value, run] >= at).only_enforce_if(chosen)
            if run:
                model.add_implication(chosen, self.active[producer, run])
            choices.append(chosen)
        if value in self.pinned:
            owned = model.new_bool_var("")
            model.add(at > self.boundary).only_enforce_if(owned)
            choices.append(owned)
        model.add_bool_or(choices if isinstance(active, int) else [*choices, ~active])
