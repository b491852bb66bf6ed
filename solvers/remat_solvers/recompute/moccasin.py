"""Bartan et al.: Moccasin, Efficient Tensor Rematerialization for Neural Networks. ICML 2023.

Constraint programming over retention intervals. Op k may be computed up to C times. Computation i starts at event
s[k, i], is active or not, and each value d that it computes is retained up to event e[d, i]. In the staged domain,
stage j ends with the first computation of op j and holds one event per op 0..j in the input order:

    event(j, k) = j (j + 1) / 2 + k,    s[k, 1] = event(k, k),    s[k, i] in {event(j, k): j > k} for i > 1

minimise the sum of time(k) active[k, i], subject to

    active[k, i+1] => active[k, i],  e[d, i] < s[k, i+1]
    cumulative: retained values and the workspace of the running op never exceed the budget
    precedence: for every active computation i of op v and every value d it reads, some active computation j of d's
                producer u has   s[u, j] + 1 <= s[v, i] <= e[d, j]

It needs O(n C) integer variables where Checkmate needs O(n^2). There are two phases. The first starts from the
unmodified step and minimises the excess of the peak over the budget; it ends at the first plan within the budget. The
second starts from that plan and minimises the time.

What is open in the paper, or where an exported graph has more, and what is done here:

- The paper writes precedence as a reservoir. Here one Boolean says which computation j of u a computation of v reads,
  which has the same solutions (for C = 2 at most four per edge).
- Intervals are per value and computations per op, since an op may have several outputs; workspace is an interval of one
  event.
- Results of backward are read at a last event, and a last stage allows recomputing them before it. Results of forward
  are read at the first computation of the last forward op. From there on the caller retains them, and the fresh copy of
  a later computation counts at its own event only. Nothing is recomputed before the tangents.
- The solver is OR-tools' CP-SAT with one worker. Sizes are divided by their common divisor, and rounded up to UNITS
  parts of the budget where they are still larger.
- A proof of CP-SAT holds for C computations per op, one per stage and in the input order. Plans in general may do more,
  so no bound is reported (except where no op is recomputed: every op must be computed once), and the reason says what
  was proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import run_interruptibly
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.schedule import tangents_op
from remat_solvers.toolkit.options import check_options
from remat_solvers.toolkit.sequences.pruning import drop_useless
from remat_solvers.toolkit.trials import BestPlan

UNITS = 2**30  # of the budget: keeps products of bytes and events within 64 bits
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Moccasin:
    """Retention intervals, up to `runs` per op, by constraint programming."""

    runs: int = 2  # C: most computations of an op, the first included

    name: ClassVar[str] = "moccasin"
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The fastest plan with up to `runs` computations per op. See `registry.Solver`."""
        search = _Search(self.runs, problem, budget_bytes, Stopwatch(limits), on_progress, seed)
        with search:
            search.run()
        return search.outcome(search.reason)


class _Search(BestPlan):
    """Both phases of one solve; it keeps the best plan of all solutions."""

    def __init__(
        self,
        most_runs: int,
        problem: Problem,
        budget_bytes: int,
        watch: Stopwatch,
        on_progress: OnProgress | None,
        seed: int,
    ) -> None:
        super().__init__(problem, budget_bytes, watch, on_progress)
        self.most_runs = most_runs
        self.seed = seed
        self.reason = ""

    def run(self) -> None:
        """Run both phases."""
        from ortools.sat.python import cp_model

        scope = f"with at most {self.most_runs} computations per op"
        model = _Model(self.problem, self.budget_bytes, self.most_runs, self.watch)
        if not model.complete:
            self.reason = f"the time limit was reached before the program {scope} was complete"
            self.stopped = Stopped.TIME
            return
        model.minimise_excess()
        status = self._phase(model, lambda excess: excess <= 0)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE) or model.exceeds:
            self.reason = f"no plan {scope} fits" if status == cp_model.OPTIMAL else f"no plan {scope} was found"
            if status != cp_model.OPTIMAL:
                self.stopped = Stopped.TIME
            return
        model.minimise_time()
        status = self._phase(model, lambda _: False)
        proven = status == cp_model.OPTIMAL
        self.reason = f"the fastest plan {scope}, one per stage" if proven else f"the fastest plan found {scope}"
        if not proven:
            self.stopped = Stopped.TIME

    def _phase(self, model: _Model, enough: Callable[[float], bool]) -> Any:
        """Minimise the objective of `model` until a value of it is `enough`; the status of CP-SAT."""
        from ortools.sat.python import cp_model

        search = self
        failures: list[BaseException] = []

        class OnSolution(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                try:
                    model.remember(self.value)
                    sequence = drop_useless(search.problem, model.sequence())
                    search.replay_sequence(sequence, f"C = {search.most_runs}")
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
        status, interrupted = run_interruptibly(lambda: solver.solve(model.model, OnSolution()), solver.stop_search)
        if failures:
            raise failures[0]
        if interrupted:
            raise KeyboardInterrupt
        return status

    def outcome(self, reason: str = "") -> Outcome:
        """The best plan. Where no op is recomputed it is optimal among all plans."""
        best = self.best
        if best is None or best.time_ns != time_bound_ns(self.problem):
            return super().outcome(reason)
        return Outcome(
            status=Status.OPTIMAL,
            plan=best.plan,
            bound_ns=best.time_ns,
            order=Order.FREE,
            smallest_peak_bytes=self.smallest_peak_bytes,
        )


def _event(stage: int, op: int) -> int:
    return stage * (stage + 1) // 2 + op


class _Model:
    """The constraint program of one problem. Each phase sets its objective."""

    def __init__(self, problem: Problem, budget_bytes: int, most_runs: int, watch: Stopwatch) -> None:
        from ortools.sat.python import cp_model

        ops, values = problem.ops, problem.values
        self.problem = problem
        self.model = cp_model.CpModel()
        self.most_runs = most_runs
        self.count = len(ops)
        self.stages = self.count + bool(problem.backward_ops)  # the last one of these has no first computation
        self.end = _event(self.count + 1, 0)
        self.exceeds = True  # whether the latest solution exceeds the budget
        self.pinned = set(problem.forward_results) if problem.backward_ops else set()  # the caller retains them
        last_forward = len(problem.forward_ops) - 1
        self.boundary = _event(last_forward, last_forward) if self.pinned else -1
        self.tangents = tangents_op(problem)
        room = budget_bytes - problem.static_bytes
        sizes = [*(v.bytes for v in values if v.kind != "constant"), *(op.workspace_bytes for op in ops)]
        self.unit = gcd(room, *sizes) or 1
        if room // self.unit > UNITS:
            self.unit = -(-room // UNITS)
        self.room = room // self.unit
        self.hints: list[tuple[Any, int]] = []
        self.computations: list[tuple[int, int]] = []  # (event, op), of the latest solution
        self.starts: dict[tuple[int, int], Any] = {}  # (op, run)
        self.active: dict[tuple[int, int], Any] = {}
        self.ends: dict[tuple[int, int], Any] = {}  # (value, run)
        self.intervals: list[Any] = []
        self.demands: list[int] = []
        self.complete = False  # set once the whole program is written; the time limit may be reached before
        for op in range(self.count):
            for _ in self._runs(op, most_runs if ops[op].recomputable else 1):
                if watch.expired:
                    return
        for (op, run), start in self.starts.items():
            for value in dict.fromkeys(ops[op].inputs):
                if problem.producer[value] >= 0:
                    self._require(value, start, self.active[op, run])
            if watch.expired:
                return
        self.complete = True
        for value in sorted(v for v in problem.results if values[v].kind != "constant"):
            self._require(value, self.boundary if value in self.pinned else self.end, 1)
            if value in self.pinned and self._units(values[value].bytes):
                length = self.end - self.boundary
                caller = self.model.new_fixed_size_interval_var(self.boundary + 1, length, f"caller_{value}")
                self.intervals.append(caller)
                self.demands.append(self._units(values[value].bytes))
        self.excess = self.model.new_int_var(0, max(0, sum(self.demands) - self.room), "excess")
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
        """The second phase, from the solution of the first."""
        self.model.add(self.excess == 0)
        self.model.minimize(self.time)
        self.model.clear_hints()  # type: ignore[no-untyped-call]
        for variable, value in self.hints:
            self.model.add_hint(variable, value)

    def remember(self, value_of: Callable[[Any], int]) -> None:
        """Keep a solution, for its sequence and as the start of the next phase."""
        variables = [*self.starts.values(), *self.active.values(), *self.ends.values()]
        self.hints = [(v, int(value_of(v))) for v in variables if not isinstance(v, int)]
        self.exceeds = value_of(self.excess) > 0
        self.computations = [
            (start if isinstance(start, int) else int(value_of(start)), op)
            for (op, run), start in self.starts.items()
            if run == 0 or value_of(self.active[op, run])
        ]

    def sequence(self) -> list[int]:
        """The ops of the latest solution in the order in which they are computed."""
        return [op for _, op in sorted(self.computations)]

    def _units(self, size: int) -> int:
        return -(-size // self.unit)

    def _runs(self, op: int, most_runs: int) -> Iterator[int]:
        """Write the computations of an op, with the intervals for which each retains its outputs; yields after each."""
        from ortools.sat.python import cp_model

        model = self.model
        stages = [j for j in range(op + 1, self.stages) if j != self.tangents]
        later = cp_model.Domain.from_values([_event(j, op) for j in stages])
        for run in range(min(most_runs, 1 + len(stages))):
            if run == 0:
                self.starts[op, 0], self.active[op, 0] = _event(op, op), 1
            else:
                start = model.new_int_var_from_domain(later, f"s_{op}_{run}")
                active = model.new_bool_var(f"a_{op}_{run}")
                self.starts[op, run], self.active[op, run] = start, active
                if run > 1:
                    model.add_implication(active, self.active[op, run - 1])
                    model.add(start > self.starts[op, run - 1]).only_enforce_if(active)
                self._fix_inactive(start, active, _event(stages[0], op))
            self._workspace(op, run)
            for value in self.problem.ops[op].outputs:
                self._retain(value, op, run)
            yield run

    def _fix_inactive(self, start: Any, active: Any, first: int) -> None:
        """Fix the start of an inactive computation, so that solutions which mean the same are the same."""
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

    def _require(self, value: int, event: Any, active: Any) -> None:
        """Require, where `active`, that a computation of the producer or the caller retains `value` up to `event`."""
        model = self.model
        producer = self.problem.producer[value]
        choices = []
        for run in range(self.most_runs):
            if (producer, run) not in self.starts:
                break
            chosen = model.new_bool_var("")
            model.add(self.starts[producer, run] <= event).only_enforce_if(chosen)
            model.add(self.ends[value, run] >= event).only_enforce_if(chosen)
            if run:
                model.add_implication(chosen, self.active[producer, run])
            choices.append(chosen)
        if value in self.pinned:
            owned = model.new_bool_var("")
            model.add(event > self.boundary).only_enforce_if(owned)
            choices.append(owned)
        model.add_bool_or(choices if isinstance(active, int) else [*choices, ~active])
