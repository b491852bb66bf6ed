"""`auto`: a program that proves, a search that finds, side by side, from the plans of the quick published methods.

    chains.py      a uniform chain is recognised, and answered exactly
    states.py      of small problems, every plan
    layered.py     networks of many alike layers: bounds and plans in a second
    starts.py      the plans of published methods
    search.py      local search over op sequences, on this core
    decomposed.py  the same, one stage of the best sequence after another
    bounding.py    the lazy coarse-stage program (lazy.py), on the other core
    standing.py    the best plans and bounds, and what they prove
    with_link.py   all of this where there is a link to the host

Each hears of what the others find: a plan of the search cuts the program's tree off, a point of the program is where
the search goes on. The end is reached when the plan is within `within` of the bound, when nothing is left to try, or at
the limit. docs/optimal.md tells more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from remat_solvers.optimal.certify_tree import certify_tree
from remat_solvers.optimal.incumbents import Evidence, Standing
from remat_solvers.optimal.lagrangian.solve import layered_steps
from remat_solvers.optimal.local_search.annealing import AVAILABLE, NO_SEARCH, Search, SearchError
from remat_solvers.optimal.local_search.windows import Decomposed
from remat_solvers.optimal.min_peak import minimise_peak
from remat_solvers.optimal.offload.solve import solve_with_link
from remat_solvers.optimal.program.driver import Question
from remat_solvers.optimal.program.refinement import Step
from remat_solvers.optimal.program.worker import Bounder, Bounding
from remat_solvers.optimal.state_search import StateSearch
from remat_solvers.optimal.uniform_chain import solve_chain
from remat_solvers.optimal.warm_starts import starts
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import import_whole
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Certificate, Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.schedule import keeps_order, plan_from_sequence
from remat_solvers.toolkit.options import check_options

__all__ = ["Auto"]

SLICE_S, SLICE_OPS = 0.1, 1000  # of search, before the program is asked again; on more ops, longer in proportion
SEARCH_SHARE = 1 / 3  # of the time, at least
SLICE_MOVES, SLICE_NODES = 50_000, 200  # of search and program, where work is limited
TURNS_GIVEN = 100  # after which a faster plan in another order makes the program go over to any order
TRIED, LEAST_TRIED = 100, 20_000  # moves per op, and in all, in free order before a proof for the given one is the end
WORTH = 0.05  # of the overhead, that another order has to save so that most of the search goes there
STUCK = 500  # moves per op that find nothing, after which every other slice goes to a fresh start
FRESH = 2_500  # moves per op of one of these
SELDOM = 4  # one slice in so many goes to the search that has found less
PATIENCE = 20_000  # moves per op, several fresh starts, without a better plan: the search has nothing more to say
PATIENCE_SMALL = 2_000  # where there are few ops
FIRST_TURNS = 10  # of search alone, until there is a plan
AT_ONCE = 2  # methods asked before the layers, so that there is a good plan
LAYERED_FREE_SHARE, LAYERED_SHARE = 0.1, 0.3  # of the time
CERTIFY_S = 20.0  # for a certificate, beyond the limit
POLL_S = 0.5  # of the program, where it is in this process or nothing else is at work
SMALL_OPS = 60  # up to so many, the program runs in this process, which spares .5 s, and needs no help
STATES_AT_ONCE, MOST_STATES = 20_000, 1_000_000  # of a small problem: before all else, and where that was not enough
SLICE_STATES = 5_000  # some 25 ms


@dataclass(frozen=True)
class Auto:
    """The best the library has. Options but `order` and `within` switch a part off, to see what it is worth."""

    order: Literal["any", "given", "free"] = "any"  # of first computations; any: they may move
    within: float = 5e-4  # of store-all's time: a plan so near to the bound ends it
    chains: bool = True
    states: bool = True  # of small problems, every plan is tried
    repeats: bool = True
    methods: bool = True  # plans of published methods to start from
    search: bool = True
    decomposed: bool = True  # half of the search goes stage by stage
    program: bool = True
    cuts: bool = True  # interval cuts in the program
    lazy: bool = True  # moments are added to the program
    apart: bool = True  # the program in a process of its own, on the other core
    certify: bool = False  # evidence for the bound that check_certificate accepts, in some more seconds
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
            return solve_with_link(self, problem, budget_bytes, limits=limits, on_progress=on_progress, seed=seed)
        standing = Standing(problem, budget_bytes, self.within, Stopwatch(limits), on_progress)
        stopped = Stopped.COMPLETE
        try:
            import_whole("highspy")
            with closing(_Work(self, standing, seed, by_work=limits.work is not None)) as work:
                for _ in work.turns():
                    if standing.closed and (standing.order is Order.FREE or work.tried_reordering):
                        break
                    if standing.watch.expired or work.turn == limits.work:
                        stopped = Stopped.TIME
                        break
        except KeyboardInterrupt:
            stopped = Stopped.INTERRUPT
        outcome = standing.outcome(stopped, "" if AVAILABLE else NO_SEARCH)
        if not self.certify or stopped is Stopped.INTERRUPT:
            return outcome
        try:
            return replace(outcome, certificate=_certificate(standing, outcome))
        except KeyboardInterrupt:
            return replace(outcome, stopped=Stopped.INTERRUPT)

    def solve_min_peak(self, problem: Problem, *, limits: Limits, on_progress: OnProgress | None, seed: int) -> Outcome:
        """The plan of the smallest peak found, recomputing only. See `registry.FindsMinPeak`."""
        order = Order.GIVEN if self.order == "given" else Order.FREE
        return minimise_peak(problem, limits=limits, on_progress=on_progress, seed=seed, order=order).outcome


def _certificate(standing: Standing, outcome: Outcome) -> Certificate | None:
    """Evidence for as much of the outcome's bound as a small tree over the program's own moments proves."""
    infeasible = outcome.status is Status.INFEASIBLE
    order = Order.FREE if infeasible else outcome.order
    evidence = standing.evidence.get(order)
    if evidence is None or (outcome.plan is None and not infeasible):
        return None
    return certify_tree(
        standing.problem,
        standing.budget_bytes,
        order=order,
        at=evidence.at,
        intervals=evidence.intervals,
        target_ns=standing.bound_ns,
        seconds=CERTIFY_S,
    )


class _Work:
    """The parts at work on one problem; they meet in `standing`."""

    def __init__(self, asked: Auto, standing: Standing, seed: int, *, by_work: bool) -> None:
        self.asked = asked
        self.standing = standing
        self.problem, self.budget_bytes, self.watch = standing.problem, standing.budget_bytes, standing.watch
        self.seed = seed
        self.by_work = by_work  # slices are counted, not timed, and nothing runs beside them
        self.states = self._new_states(tangents_first=False)
        self.searches = self._new_searches()
        self.idle = dict.fromkeys(Order, 0)  # per search, moves since anything found a better plan
        self.stages: dict[Order, Search] = {}  # from the best plans, one stage after another
        self.fresh: dict[Order, Search] = {}  # from starts of their own, where those from the best plans find nothing
        self.fresh_starts = 0
        self.slices = dict.fromkeys(Order, 0)  # per order, of search
        self.turn = 0  # slices of search and program
        self.searched_s = 0.0
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
        if not asked.certify:  # the program comes first: only it has evidence
            yield from self._try_all(STATES_AT_ONCE)
        while self.standing.best is None and self.searching and self.turn < FIRST_TURNS:
            self.turn += 1
            self._search()
            yield
        methods = starts(problem, self.budget_bytes, self.watch, self.seed) if asked.methods else iter(())
        for _ in range(AT_ONCE):
            self._ask(methods)
            yield
        layers = self._layers()
        left = True
        while left or self.searching or self.proving:
            self.turn += 1
            left = self.standing.closed or self._search_is_due() or next(layers, False) or self._ask(methods)
            self._search()
            self._prove()
            yield
        yield from self._try_all(MOST_STATES)

    def _try_all(self, states: int) -> Iterator[None]:
        """Every plan of a small problem, until so many states have been met."""
        while (search := self.states) is not None and search.met < states:
            standing, before = self.standing, search.sequence
            search.run(min(SLICE_STATES, states - search.met))
            if not search.tangents_first:
                standing.prove(search.bound_ns, search.order, "states")
            if search.sequence is not None and search.sequence is not before:
                self._offer(plan_from_sequence(self.problem, search.sequence), "states")
            if search.done:
                if search.sequence is None and search.tangents_first:
                    standing.none_after_tangents = search.order is Order.FREE
                elif search.sequence is None:
                    standing.prove_infeasible(search.order)
                reached = standing.best is not None and standing.best.time_ns <= search.bound_ns
                over = search.sequence is None or search.tangents_first or reached
                self.states = None if over else self._new_states(tangents_first=True)
            yield

    def _layers(self) -> Iterator[bool]:
        """The rounds of layered.py: for every order, which proves more, and then for the given one."""
        asked = self.asked
        if asked.repeats and len(self.problem.ops) > SMALL_OPS:
            for order in {"any": (Order.FREE, Order.GIVEN), "free": (Order.FREE,), "given": (Order.GIVEN,)}[
                asked.order
            ]:
                watch = Stopwatch(self.watch.share(LAYERED_SHARE))
                for step in layered_steps(self.problem, self.budget_bytes, watch=watch, order=order):
                    self._take(step, order, "layers")
                    yield True

    @property
    def searching(self) -> list[Order]:
        """The searches that may find something yet."""
        patience = self._patience
        return [order for order, search in self.searches.items() if not search.done and self.idle[order] < patience]

    @property
    def _patience(self) -> int:
        ops = len(self.problem.ops)
        return (PATIENCE_SMALL if ops <= SMALL_OPS else PATIENCE) * ops

    @property
    def tried_reordering(self) -> bool:
        """Whether the search in free order had its chance, where there is one."""
        search = self.searches.get(Order.FREE)
        enough = max(LEAST_TRIED, TRIED * len(self.problem.ops))
        return search is None or search.made >= enough or Order.FREE not in self.searching

    @property
    def proving(self) -> bool:
        """Whether the program may prove something yet."""
        return self.program is not None and self.program.busy

    def _new_program(self) -> Bounder | Bounding:
        """The program for the order at hand, told of the best plan so far."""
        asked = self.asked
        question = Question(
            self.problem, self.budget_bytes, self.order, self.standing.within_ns, cuts=asked.cuts, lazy=asked.lazy
        )
        if asked.apart and not self.by_work and len(self.problem.ops) > SMALL_OPS:
            program: Bounder | Bounding = Bounder(question)
        else:
            program = Bounding(question, SLICE_NODES if self.by_work else None)
        best = self.standing.best if self.order is Order.FREE else self.standing.best_ordered
        if best is not None:
            program.tell(best.sequence, best.time_ns)
        return program

    def _new_states(self, *, tangents_first: bool) -> StateSearch | None:
        """Without the tangents first it proves; with them it finds what the other's plan had no room for."""
        if not self.asked.states or len(self.problem.ops) > SMALL_OPS:
            return None
        order = Order.GIVEN if self.asked.order == "given" else Order.FREE
        return StateSearch(self.problem, self.budget_bytes, order=order, tangents_first=tangents_first)

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

    def _left(self, seconds: float) -> float:
        return seconds if self.watch.remaining is None else min(seconds, self.watch.remaining)

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
        if outcome.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt  # now, for the next may not be asked for long
        return True

    def _search(self) -> None:
        """A slice of search; in free order now and then, and mostly where that has paid."""
        searching = self.searching
        if not searching:
            return
        seldom = self.turn % SELDOM == 0
        order = Order.FREE if self._reordering_pays() is not seldom or self.standing.closed else Order.GIVEN
        order = order if order in searching else searching[0]
        search = self._next_search(order)
        self.idle[order] += max(1, self._run(search))
        found = search.best
        known = self.standing.best_ordered if order is Order.GIVEN else self.standing.best
        if found is not None and (known is None or found.time_ns < known.time_ns):
            self._offer(plan_from_sequence(self.problem, found.sequence), "search")
        smallest = search.smallest
        self.standing.saw(None if smallest is None else smallest.peak_bytes)

    def _reordering_pays(self) -> bool:
        best, ordered = self.standing.best, self.standing.best_ordered
        if best is None:
            return self.turn % 2 == 0
        if ordered is None:
            return True
        saved_ns = ordered.time_ns - best.time_ns
        return saved_ns > max(self.standing.within_ns, WORTH * (best.time_ns - self.standing.once_ns))

    def _run(self, search: Search) -> int:
        """A slice; how many moves were made."""
        if self.by_work:
            return search.run(moves=min(SLICE_MOVES, self._patience))
        begin = time.perf_counter()
        first = self.standing.best is None
        slice_s = SLICE_S if first else SLICE_S * max(1.0, len(self.problem.ops) / SLICE_OPS)
        made = search.run(moves=self._patience, seconds=self._left(slice_s))
        self.searched_s += time.perf_counter() - begin
        return made

    def _search_is_due(self) -> bool:
        """Whether layers and methods, a step of which may take seconds, have had more than their part of the time."""
        return bool(self.searching) and not self.by_work and self.searched_s < SEARCH_SHARE * self.watch.seconds

    def _next_search(self, order: Order) -> Search:
        """Which has the next slice: of those from the best plans in turn, and where they are stuck, a fresh start."""
        self.slices[order] += 1
        if self.slices[order] % 2 and self.idle[order] >= STUCK * len(self.problem.ops):
            return self._fresh_start(order)
        best = self.standing.best_ordered if order is Order.GIVEN else self.standing.best
        if not self.asked.decomposed or best is None or self.standing.closed or self.slices[order] % 4 < 2:
            return self.searches[order]
        if order not in self.stages:
            self.stages[order] = self._new_search(order, self.seed)
            self.stages[order].offer(best.sequence)
        return self.stages[order]

    def _fresh_start(self, order: Order) -> Search:
        """A search that starts anew, with another seed: where memory is tight, where it ends is a matter of luck."""
        search = self.fresh.get(order)
        if search is None or search.done or search.made >= FRESH * len(self.problem.ops):
            self.fresh_starts += 1
            search = self.fresh[order] = self._new_search(order, self.seed + self.fresh_starts)
        return search

    def _new_search(self, order: Order, seed: int) -> Search:
        kind = Decomposed if self.asked.decomposed else Search
        return kind(self.problem, self.budget_bytes, free_order=order is Order.FREE, seed=seed)

    def _prove(self) -> None:
        """What the program has found meanwhile."""
        if self.program is None:
            return
        waits = not self.searching or isinstance(self.program, Bounding)
        for step in self.program.poll(self._left(POLL_S) if waits else 0.0):
            self._take(step, self.order, "program")
        if self.asked.order == "any" and self.order is Order.GIVEN and self._settled():
            self.program.close()
            self.order = Order.FREE
            self.program = self._new_program()

    def _settled(self) -> bool:
        """Whether no more can come of the given order: it has no plan, another has a faster one, or it is done."""
        answer, standing = self.standing.answer, self.standing
        if standing.infeasible[Order.GIVEN] or not self.proving:
            return True
        if answer is None or answer.ordered:
            return False
        return self.turn > TURNS_GIVEN or answer.time_ns < standing.bounds[Order.GIVEN] - standing.within_ns

    def _take(self, step: Step, order: Order, note: str) -> None:
        """What a step of a program says; a sequence beyond the budget is where the search goes on."""
        by = Evidence(step.at, step.intervals)
        self.standing.prove(step.bound_ns, order, note, by)
        if step.infeasible:
            self.standing.prove_infeasible(order, by)
        if step.sequence is not None and not self._offer(plan_from_sequence(self.problem, step.sequence), note):
            self._go_on_from(step.sequence)

    def _offer(self, plan: Plan, note: str) -> bool:
        """Whether it is better than those before; then the others are told."""
        better = self.standing.offer(plan, note)
        if better:
            sequence = plan.sequence
            self._go_on_from(sequence, found=note == "search")
            if self.program is not None and (self.order is Order.FREE or keeps_order(plan)):
                self.program.tell(sequence, sum(self.problem.ops[op].time_ns for op in sequence))
        return better

    def _go_on_from(self, sequence: Sequence[int], *, found: bool = False) -> None:
        """Tell the searches; what one of them has found does not break off the long cycles of the others."""
        self.idle = dict.fromkeys(Order, 0)
        ordered = keeps_order(plan_from_sequence(self.problem, sequence))
        for order, search in (*(() if found else self.searches.items()), *self.stages.items()):
            if ordered or order is Order.FREE:
                search.offer(sequence)
