"""`auto`: a program that proves, a search that finds, side by side, from the plans of the quick published methods.

    chains.py      a uniform chain is recognised, and answered exactly
    layered.py     networks of many alike layers: bounds and plans in a second
    starts.py      the plans of published methods
    search.py      local search over op sequences, on this core
    bounding.py    the lazy coarse-stage program (lazy.py), on the other core
    standing.py    the best plans and bounds, and what they prove
    moving.py      all of this where there is a link to the host

Each hears of what the others find: a plan of the search cuts the program's tree off, a point of the program is where
the search goes on. The end is reached when the plan is within `within` of the bound, when nothing is left to try, or at
the limit. docs/optimal.md tells more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from remat_solvers.bounds import time_bound_ns
from remat_solvers.clock import Stopwatch
from remat_solvers.optimal.bounding import Bounder, Bounding
from remat_solvers.optimal.chains import solve_chain
from remat_solvers.optimal.layered import layered_steps
from remat_solvers.optimal.lazy import Step
from remat_solvers.optimal.search import AVAILABLE, Search, SearchError
from remat_solvers.optimal.standing import Standing
from remat_solvers.optimal.starts import starts
from remat_solvers.options import check_options
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.schedule import keeps_order, plan_from_sequence
from remat_solvers.simulate import simulate

__all__ = ["Auto"]

SLICE_S = 0.1  # of search, before the program is asked again
SELDOM = 4  # one slice in so many goes to the search that has found less
PATIENCE = 2_000  # moves per op without a better plan, after which the search has nothing more to say
LAYERED_SHARE = 0.2  # of the time
POLL_S = 0.5  # of the program, where it is in this process or nothing else is at work
SMALL_OPS = 60  # up to so many, the program runs in this process, which spares .5 s, and needs no help


@dataclass(frozen=True)
class Auto:
    """The best the library has. Options but `order` and `within` switch a part off, to see what it is worth."""

    order: Literal["any", "given", "free"] = "any"  # of first computations; any: they may move
    within: float = 5e-4  # of store-all's time: a plan so near to the bound ends it
    chains: bool = True
    repeats: bool = True
    methods: bool = True  # plans of published methods to start from
    search: bool = True
    program: bool = True
    cuts: bool = True  # interval cuts in the program
    lazy: bool = True  # moments are added to the program
    apart: bool = True  # the program in a process of its own, on the other core
    starts: tuple[Plan, ...] = field(default=(), repr=False, metadata={"option": False})  # more plans to start from
    name: ClassVar[str] = "auto"
    version: ClassVar[str] = "2"

    def __post_init__(self) -> None:
        check_options(self, within=(0, 1))

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """Anytime: the best plan and bound when the limit or Ctrl-C comes. See `registry.Solver`."""
        if problem.link is not None:
            return self._with_link(problem, budget_bytes, limits, on_progress, seed)
        standing = Standing(problem, budget_bytes, self.within, Stopwatch(limits), on_progress)
        stopped = Stopped.COMPLETE
        with closing(_Work(self, standing, seed)) as work:
            try:
                for _ in work.turns():
                    if standing.closed:
                        break
                    if standing.watch.expired:
                        stopped = Stopped.TIME
                        break
            except KeyboardInterrupt:
                stopped = Stopped.INTERRUPT
        return standing.outcome(stopped)

    def _with_link(
        self, problem: Problem, budget_bytes: int, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        alone = replace(problem, link=None)
        outcome = self.solve(alone, budget_bytes, limits=limits, on_progress=on_progress, seed=seed)
        if outcome.plan is None:
            return Outcome(Status.NOT_FOUND, smallest_peak_bytes=outcome.smallest_peak_bytes, stopped=outcome.stopped)
        status = (
            Status.OPTIMAL if simulate(problem, outcome.plan).time_ns <= time_bound_ns(problem) else Status.FEASIBLE
        )
        return replace(outcome, status=status, bound_ns=time_bound_ns(problem), order=Order.FREE)


class _Work:
    """The parts at work on one problem; they meet in `standing`."""

    def __init__(self, asked: Auto, standing: Standing, seed: int) -> None:
        self.asked = asked
        self.standing = standing
        self.problem, self.budget_bytes, self.watch = standing.problem, standing.budget_bytes, standing.watch
        self.seed = seed
        self.searches = self._new_searches()
        self.idle = dict.fromkeys(Order, 0)  # per search, moves since anything found a better plan
        self.turn = 0
        self.order = Order.FREE if asked.order == "free" else Order.GIVEN  # of the program
        self.program = self._new_program() if asked.program else None

    def close(self) -> None:
        """End the program's process."""
        if self.program is not None:
            self.program.close()

    def turns(self) -> Iterator[None]:
        """Turn after turn, until nothing is left to try; what there is is known after each."""
        asked, problem = self.asked, self.problem
        for plan in asked.starts:
            self._offer(plan, "given")
            yield
        if asked.chains:
            self._chain()
            yield
        if asked.repeats and len(problem.ops) > SMALL_OPS:
            for step in layered_steps(problem, self.budget_bytes, watch=self._share(LAYERED_SHARE)):
                self._take(step, Order.GIVEN, "layers")
                yield
        methods = starts(problem, self.budget_bytes, self.watch, self.seed) if asked.methods else iter(())
        asking = True
        while asking or self.searching or self.proving:
            asking = self._ask(methods)
            self._search()
            self._prove()
            yield

    @property
    def searching(self) -> list[Order]:
        """The searches that may find something yet."""
        patience = PATIENCE * len(self.problem.ops)
        return [order for order, search in self.searches.items() if not search.done and self.idle[order] < patience]

    @property
    def proving(self) -> bool:
        """Whether the program may prove something yet."""
        return self.program is not None and self.program.busy

    def _new_program(self) -> Bounder | Bounding:
        """The program for the order at hand, told of the best plan so far."""
        apart = self.asked.apart and len(self.problem.ops) > SMALL_OPS
        kind = Bounder if apart else Bounding
        program = kind(self.problem, self.budget_bytes, order=self.order, within_ns=self.standing.within_ns)
        if isinstance(program, Bounder):
            program.start()
        best = self.standing.best if self.order is Order.FREE else self.standing.best_ordered
        if best is not None:
            program.tell(best.sequence, best.time_ns)
        return program

    def _new_searches(self) -> dict[Order, Search]:
        """One that keeps the order, for only its plans are held against the stronger bound, and one that does not."""
        orders = {"given": [Order.GIVEN], "free": [Order.FREE], "any": [Order.GIVEN, Order.FREE]}[self.asked.order]
        if not (self.asked.search and AVAILABLE):
            return {}
        try:
            return {
                order: Search(self.problem, self.budget_bytes, free_order=order is Order.FREE, seed=self.seed)
                for order in orders
            }
        except SearchError:  # sizes beyond its arithmetic
            return {}

    def _share(self, part: float) -> Stopwatch:
        return Stopwatch(Limits(None if self.watch.remaining is None else part * self.watch.remaining))

    def _chain(self) -> None:
        answer = solve_chain(self.problem, self.budget_bytes)
        if answer is not None:
            sequence, bound_ns = answer
            self.standing.offer_sequence(sequence, "chain")
            self.standing.prove(bound_ns, Order.FREE, "chain")

    def _ask(self, methods: Iterator[tuple[str, Outcome]]) -> bool:
        """One more published method; whether there was one."""
        answer = next(methods, None)
        if answer is None:
            return False
        name, outcome = answer
        self.standing.saw(outcome.smallest_peak_bytes)
        if outcome.plan is not None:
            self._offer(outcome.plan, name)
        return True

    def _search(self) -> None:
        """A slice of search; in free order now and then, and mostly where that has paid."""
        searching = self.searching
        if not searching:
            return
        self.turn += 1
        best, ordered = self.standing.best, self.standing.best_ordered
        pays = best is not None and (ordered is None or ordered.time_ns - best.time_ns > self.standing.within_ns)
        seldom = self.turn % SELDOM == 0
        order = Order.FREE if pays is not seldom else Order.GIVEN
        order = order if order in searching else searching[0]
        search = self.searches[order]
        left = self.watch.remaining
        seconds = SLICE_S if left is None else min(SLICE_S, left)
        self.idle[order] += search.run(moves=PATIENCE * len(self.problem.ops), seconds=seconds)
        found = search.best
        known = self.standing.best_ordered if order is Order.GIVEN else self.standing.best
        if found is not None and (known is None or found.time_ns < known.time_ns):
            self._offer(plan_from_sequence(self.problem, found.sequence), "search")
        smallest = search.smallest
        self.standing.saw(None if smallest is None else smallest.peak_bytes)

    def _prove(self) -> None:
        """What the program has found meanwhile."""
        if self.program is None:
            return
        waits = not self.searching or isinstance(self.program, Bounding)
        left = self.watch.remaining
        for step in self.program.poll(0 if not waits else POLL_S if left is None else min(POLL_S, left)):
            self._take(step, self.order, "program")
        if self.asked.order == "any" and self.order is Order.GIVEN and self._settled():
            self.program.close()
            self.order = Order.FREE
            self.program = self._new_program()

    def _settled(self) -> bool:
        """Whether no more can come of the given order: another has a faster plan, this one has none, or is done."""
        best, standing = self.standing.best, self.standing
        reorders = best is not None and best.time_ns < standing.bounds[Order.GIVEN] - standing.within_ns
        return reorders or standing.infeasible[Order.GIVEN] or not self.proving

    def _take(self, step: Step, order: Order, note: str) -> None:
        """What a step of a program says; a sequence beyond the budget is where the search goes on."""
        self.standing.prove(step.bound_ns, order, note)
        if step.infeasible:
            self.standing.prove_infeasible(order)
        if step.sequence is not None and not self._offer(plan_from_sequence(self.problem, step.sequence), note):
            self._go_on_from(step.sequence)

    def _offer(self, plan: Plan, note: str) -> bool:
        """Whether it is better than those before; then the others are told."""
        better = self.standing.offer(plan, note)
        if better:
            sequence = [action.op for action in plan if isinstance(action, Compute)]
            self._go_on_from(sequence)
            if self.program is not None and (self.order is Order.FREE or keeps_order(plan)):
                self.program.tell(sequence, sum(self.problem.ops[op].time_ns for op in sequence))
        return better

    def _go_on_from(self, sequence: Sequence[int]) -> None:
        self.idle = dict.fromkeys(Order, 0)
        ordered = keeps_order(plan_from_sequence(self.problem, sequence))
        for order, search in self.searches.items():
            if ordered or order is Order.FREE:
                search.offer(sequence)
