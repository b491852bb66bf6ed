"""Runs the parts of `auto` on one problem without a link, in short turns, so that the time limit is checked often.

    uniform_chain.py  solves uniform chains in closed form
    state_search.py   A* over all states of a small problem
    lagrangian/       bounds and plans for networks of many identical layers, in a second
    warm_starts.py    the plans of published methods
    local_search/     simulated annealing over op sequences, as a whole (annealing.py) and by windows (windows.py)
    program/          the integer program over few moments; in a process of its own unless the problem is small

The parts exchange results through `Incumbents`: an incumbent becomes the cutoff of the program's branch and bound, and
the searches continue from a solution of the program that exceeds the budget.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remat_solvers.optimal.incumbents import Evidence, Incumbents
from remat_solvers.optimal.lagrangian.solve import lagrangian_steps
from remat_solvers.optimal.local_search.annealing import AVAILABLE, SearchError, SequenceSearch
from remat_solvers.optimal.local_search.windows import WindowSearch
from remat_solvers.optimal.options import AutoOptions
from remat_solvers.optimal.program.driver import ProgramTask
from remat_solvers.optimal.program.refinement import RefinementStep
from remat_solvers.optimal.program.worker import InlineWorker, ProcessWorker
from remat_solvers.optimal.state_search import StateSearch
from remat_solvers.optimal.uniform_chain import solve_uniform_chain
from remat_solvers.optimal.warm_starts import warm_starts
from remat_solvers.plan import Plan
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Order, Outcome, Stopped
from remat_solvers.schedule import keeps_order, plan_from_sequence

SEARCH = "search"  # message of plans that a search found


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the schedule, measured on the corpus. Shares are of the time limit, or of the time so far."""

    small_problem_ops: int = 60  # up to so many, the program runs in this process, which saves .5 s

    first_plan_max_slices: int = 10  # of search alone, until a plan is found
    methods_before_lagrangian: int = 2  # so that a good plan is known early
    lagrangian_share: float = 0.3  # for each order of first computations

    search_slice_s: float = 0.1  # before the program is polled again
    search_slice_ops: int = 1000  # on more ops, slices are longer in proportion
    search_slice_moves: int = 50_000  # of a slice if work is limited
    search_min_share: float = 1 / 3  # Lagrangian rounds and methods, which may take seconds each, wait for it
    give_up_after_idle_moves_per_op: int = 20_000  # several restarts without a better plan
    give_up_after_idle_moves_per_op_small: int = 2_000  # the same for small problems

    minority_slice_every_slices: int = 4  # one slice in so many is in the order of first computations that found less
    reordering_min_saving: float = 0.05  # of the overhead: if free order saves more, it has the majority of slices
    reordering_min_moves_per_op: int = 100  # in free order, before a proof for the given order may end the solve
    reordering_min_moves: int = 20_000  # the same in all

    restart_after_idle_moves_per_op: int = 500  # every other slice then goes to a search with another seed
    restart_moves_per_op: int = 2_500  # of each such search

    program_poll_s: float = 0.5  # if the program is in this process, or no search is left
    program_slice_nodes: int = 200  # of branch and bound, if work is limited
    given_order_max_turns: int = 100  # after these, a faster plan in another order switches the program to free order

    states_slice: int = 5_000  # some 25 ms
    states_at_first: int = 20_000  # of a small problem, before everything else
    states_at_last: int = 1_000_000  # in all, if the other parts have not closed the gap


class Portfolio:
    """The parts of `auto` at work on one problem and budget; they exchange results through `incumbents`."""

    def __init__(
        self,
        options: AutoOptions,
        incumbents: Incumbents,
        seed: int,
        *,
        by_work: bool,
        tuning: Tuning = Tuning(),
    ) -> None:
        self.options, self.incumbents, self.tuning = options, incumbents, tuning
        self.problem, self.budget_bytes, self.watch = incumbents.problem, incumbents.budget_bytes, incumbents.watch
        self.seed = seed
        self.by_work = by_work  # slices are counted, not timed, and no other process runs
        self.small = len(self.problem.ops) <= tuning.small_problem_ops
        self.state_search = self._new_state_search(tangents_first=False)
        self.searches = self._new_searches()  # from the best plans, per order of first computations
        self.window_searches: dict[Order, SequenceSearch] = {}  # the same, one window of the sequence after another
        self.restarts: dict[Order, SequenceSearch] = {}  # from store-all, when those from the best plans have stalled
        self.idle_moves = dict.fromkeys(Order, 0)  # per order, since any part found a better plan
        self.slices = dict.fromkeys(Order, 0)  # per order, of search
        self.num_restarts = 0
        self.turn = 0  # slices of search and program
        self.searched_s = 0.0
        self.order = Order.FREE if options.order == "free" else Order.GIVEN  # of the program
        self.program = self._new_program() if options.program else None

    def close(self) -> None:
        """End the program's process."""
        if self.program is not None:
            self.program.close()

    def turns(self) -> Iterator[None]:
        """Work until nothing is left to try. Yields after each turn, when `incumbents` has its results."""
        options, tuning = self.options, self.tuning
        for plan in options.starts:
            self._offer(plan, "given")
            yield
        if options.chains:
            self._solve_uniform_chain()
            yield
        if not options.certify:  # the program comes first: only it has evidence
            yield from self._search_states(tuning.states_at_first)
        while self.incumbents.best is None and self.searching and self.turn < tuning.first_plan_max_slices:
            self.turn += 1
            self._search()
            yield
        starts = warm_starts(self.problem, self.budget_bytes, self.watch, self.seed) if options.methods else iter(())
        for _ in range(tuning.methods_before_lagrangian):
            self._next_warm_start(starts)
            yield
        rounds = self._lagrangian_rounds()
        more = True
        while more or self.searching or self.proving:
            self.turn += 1
            waits = self.incumbents.closed or self._search_is_due()
            more = waits or next(rounds, False) or self._next_warm_start(starts)
            self._search()
            self._poll_program()
            yield
        yield from self._search_states(tuning.states_at_last)

    @property
    def searching(self) -> list[Order]:
        """The orders of first computations in which the search may find something yet."""
        patience = self._patience_moves
        return [
            order for order, search in self.searches.items() if not search.done and self.idle_moves[order] < patience
        ]

    @property
    def proving(self) -> bool:
        """Whether the program may prove something yet."""
        return self.program is not None and self.program.busy

    @property
    def tried_reordering(self) -> bool:
        """Whether the search in free order has run long enough to be judged, or is not to run at all."""
        search, tuning = self.searches.get(Order.FREE), self.tuning
        enough = max(tuning.reordering_min_moves, tuning.reordering_min_moves_per_op * len(self.problem.ops))
        return search is None or search.moves_made >= enough or Order.FREE not in self.searching

    # Parts that run to their end

    def _solve_uniform_chain(self) -> None:
        solution = solve_uniform_chain(self.problem, self.budget_bytes)
        if solution is not None:
            sequence, bound_ns = solution
            self.incumbents.offer_sequence(sequence, "chain")
            self.incumbents.raise_bound(bound_ns, Order.FREE, "chain")

    def _new_state_search(self, *, tangents_first: bool) -> StateSearch | None:
        """A new state search, if the problem is small.

        Without `tangents_first` it proves bounds. With it, it finds plans that fit, if the plan of the other does not.
        """
        if not self.options.state_search or not self.small:
            return None
        order = Order.GIVEN if self.options.order == "given" else Order.FREE
        return StateSearch(self.problem, self.budget_bytes, order=order, tangents_first=tangents_first)

    def _search_states(self, max_states: int) -> Iterator[None]:
        """Search all plans of a small problem, until so many states have been met."""
        while (search := self.state_search) is not None and search.met < max_states:
            incumbents, sequence_before = self.incumbents, search.sequence
            search.run(min(self.tuning.states_slice, max_states - search.met))
            if not search.tangents_first:
                incumbents.raise_bound(search.bound_ns, search.order, "states")
            if search.sequence is not None and search.sequence is not sequence_before:
                self._offer(plan_from_sequence(self.problem, search.sequence), "states")
            if search.done:
                if search.sequence is None and search.tangents_first:
                    incumbents.none_after_tangents = search.order is Order.FREE
                elif search.sequence is None:
                    incumbents.prove_infeasible(search.order)
                reached = incumbents.best is not None and incumbents.best.time_ns <= search.bound_ns
                ended = search.sequence is None or search.tangents_first or reached
                self.state_search = None if ended else self._new_state_search(tangents_first=True)
            yield

    def _lagrangian_rounds(self) -> Iterator[bool]:
        """Rounds for every order of first computations, which prove more, and then for the given order."""
        if self.options.lagrangian and not self.small:
            orders = {"any": (Order.FREE, Order.GIVEN), "free": (Order.FREE,), "given": (Order.GIVEN,)}
            for order in orders[self.options.order]:
                watch = Stopwatch(self.watch.share(self.tuning.lagrangian_share))
                for step in lagrangian_steps(self.problem, self.budget_bytes, watch=watch, order=order):
                    self._apply(step, order, "layers")
                    yield True

    def _next_warm_start(self, starts: Iterator[tuple[str, Outcome]]) -> bool:
        """Run one more published method. Return False when none is left."""
        start = next(starts, None)
        if start is None:
            return False
        name, outcome = start
        self.incumbents.observe_peak(outcome.smallest_peak_bytes)
        if outcome.plan is not None:
            self._offer(outcome.plan, name)
        if outcome.stopped is Stopped.INTERRUPT:
            raise KeyboardInterrupt  # now, for the next method may not be run for long
        return True

    # Local search

    def _new_searches(self) -> dict[Order, SequenceSearch]:
        """A search that keeps the order, whose plans are compared with the stronger bound, and one that does not."""
        orders = {"given": [Order.GIVEN], "free": [Order.FREE], "any": [Order.GIVEN, Order.FREE]}[self.options.order]
        if not (self.options.search and AVAILABLE):
            return {}
        try:
            return {
                order: SequenceSearch(self.problem, self.budget_bytes, free_order=order is Order.FREE, seed=self.seed)
                for order in orders
            }
        except SearchError:  # sizes beyond its arithmetic
            return {}

    @property
    def _patience_moves(self) -> int:
        tuning = self.tuning
        per_op = tuning.give_up_after_idle_moves_per_op_small if self.small else tuning.give_up_after_idle_moves_per_op
        return per_op * len(self.problem.ops)

    def _search_is_due(self) -> bool:
        """Whether Lagrangian rounds and methods, each of which may take seconds, have had more than their share."""
        if self.by_work or not self.searching:
            return False
        return self.searched_s < self.tuning.search_min_share * self.watch.seconds

    def _search(self) -> None:
        """Run a slice of search, mostly in the order of first computations that has found the better plans."""
        searching, incumbents = self.searching, self.incumbents
        if not searching:
            return
        minority = self.turn % self.tuning.minority_slice_every_slices == 0
        order = Order.FREE if self._reordering_pays() is not minority or incumbents.closed else Order.GIVEN
        order = order if order in searching else searching[0]
        search = self._search_for_next_slice(order)
        self.idle_moves[order] += max(1, self._run_slice(search))
        found, known = search.best, incumbents.best_for(order)
        if found is not None and (known is None or found.time_ns < known.time_ns):
            self._offer(plan_from_sequence(self.problem, found.sequence), SEARCH)
        smallest = search.smallest
        incumbents.observe_peak(None if smallest is None else smallest.peak_bytes)

    def _reordering_pays(self) -> bool:
        incumbents = self.incumbents
        best, ordered = incumbents.best, incumbents.best_ordered
        if best is None:
            return self.turn % 2 == 0
        if ordered is None:
            return True
        saved_ns, overhead_ns = ordered.time_ns - best.time_ns, best.time_ns - incumbents.every_op_once_ns
        return saved_ns > max(incumbents.within_ns, self.tuning.reordering_min_saving * overhead_ns)

    def _run_slice(self, search: SequenceSearch) -> int:
        """Run a slice, and return the number of its moves."""
        tuning = self.tuning
        if self.by_work:
            return search.run(moves=min(tuning.search_slice_moves, self._patience_moves))
        begin_s = time.perf_counter()
        longer = 1.0 if self.incumbents.best is None else max(1.0, len(self.problem.ops) / tuning.search_slice_ops)
        moves = search.run(moves=self._patience_moves, seconds=self.watch.at_most(tuning.search_slice_s * longer))
        self.searched_s += time.perf_counter() - begin_s
        return moves

    def _search_for_next_slice(self, order: Order) -> SequenceSearch:
        """Alternate between the searches from the best plans; if these have stalled, every other slice is a restart."""
        self.slices[order] += 1
        stuck = self.idle_moves[order] >= self.tuning.restart_after_idle_moves_per_op * len(self.problem.ops)
        if self.slices[order] % 2 and stuck:
            return self._restart(order)
        best = self.incumbents.best_for(order)
        if not self.options.windows or best is None or self.incumbents.closed or self.slices[order] % 4 < 2:
            return self.searches[order]
        if order not in self.window_searches:
            self.window_searches[order] = self._new_search(order, self.seed)
            self.window_searches[order].offer(best.plan.sequence)
        return self.window_searches[order]

    def _restart(self, order: Order) -> SequenceSearch:
        """A search that starts anew with another seed: if memory is tight, results vary widely with the seed."""
        search = self.restarts.get(order)
        if (
            search is None
            or search.done
            or search.moves_made >= self.tuning.restart_moves_per_op * len(self.problem.ops)
        ):
            self.num_restarts += 1
            search = self.restarts[order] = self._new_search(order, self.seed + self.num_restarts)
        return search

    def _new_search(self, order: Order, seed: int) -> SequenceSearch:
        kind = WindowSearch if self.options.windows else SequenceSearch
        return kind(self.problem, self.budget_bytes, free_order=order is Order.FREE, seed=seed)

    # The program

    def _new_program(self) -> ProcessWorker | InlineWorker:
        """A new program for the current order, with the best plan so far as its incumbent."""
        options, incumbents = self.options, self.incumbents
        task = ProgramTask(
            self.problem, self.budget_bytes, self.order, incumbents.within_ns, cuts=options.cuts, lazy=options.lazy
        )
        if options.subprocess and not self.by_work and not self.small:
            program: ProcessWorker | InlineWorker = ProcessWorker(task)
        else:
            program = InlineWorker(task, self.tuning.program_slice_nodes if self.by_work else None)
        best = incumbents.best_for(self.order)
        if best is not None:
            program.set_incumbent(best.plan.sequence, best.time_ns)
        return program

    def _poll_program(self) -> None:
        """Apply the results that the program has found since; once the given order is settled, switch to free order."""
        if self.program is None:
            return
        waits = not self.searching or isinstance(self.program, InlineWorker)
        for step in self.program.poll(self.watch.at_most(self.tuning.program_poll_s) if waits else 0.0):
            self._apply(step, self.order, "program")
        if self.options.order == "any" and self.order is Order.GIVEN and self._given_order_settled():
            self.program.close()
            self.order = Order.FREE
            self.program = self._new_program()

    def _given_order_settled(self) -> bool:
        """Whether the given order cannot give a better plan: it has none, another order's is faster, or it is done."""
        incumbents, answer = self.incumbents, self.incumbents.answer
        if incumbents.infeasible[Order.GIVEN] or not self.proving:
            return True
        if answer is None or answer.keeps_order:
            return False
        beaten = answer.time_ns < incumbents.bounds[Order.GIVEN] - incumbents.within_ns
        return self.turn > self.tuning.given_order_max_turns or beaten

    # Exchange

    def _apply(self, step: RefinementStep, order: Order, message: str) -> None:
        """Take over the bound and the sequence of a step; the searches continue from a sequence beyond the budget."""
        evidence = Evidence(step.anchors, step.intervals)
        self.incumbents.raise_bound(step.bound_ns, order, message, evidence)
        if step.infeasible:
            self.incumbents.prove_infeasible(order, evidence)
        if step.sequence is not None and not self._offer(plan_from_sequence(self.problem, step.sequence), message):
            self._continue_searches_from(step.sequence)

    def _offer(self, plan: Plan, message: str) -> bool:
        """Offer a plan to the incumbents and, if it is better, to the searches and the program; whether it is."""
        better = self.incumbents.offer(plan, message)
        if better:
            sequence = plan.sequence
            self._continue_searches_from(sequence, found_by_search=message == SEARCH)
            if self.program is not None and (self.order is Order.FREE or keeps_order(plan)):
                self.program.set_incumbent(sequence, sum(self.problem.ops[op].time_ns for op in sequence))
        return better

    def _continue_searches_from(self, sequence: Sequence[int], *, found_by_search: bool = False) -> None:
        """Offer the sequence to the searches.

        One that a search has found goes to the window searches only, so that the long cycles of the others continue.
        """
        self.idle_moves = dict.fromkeys(Order, 0)
        ordered = keeps_order(plan_from_sequence(self.problem, sequence))
        whole_searches = () if found_by_search else self.searches.items()
        for order, search in (*whole_searches, *self.window_searches.items()):
            if ordered or order is Order.FREE:
                search.offer(sequence)
