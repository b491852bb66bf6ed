"""Searches for the plan of the smallest peak, and proves a floor under the peak of every plan.

Floor. `bounds.peak_bound` proves one for every plan. Without a link, certificates over the moments of most memory prove
it again, and sometimes more: where a value that cannot be computed again is needed for another that is needed later.

Plan. The search of local_search/annealing.py looks for a fast plan within a target budget, and so drives its peak
towards that target. Far below the smallest peak so far it does not converge: it adds recomputations until none of them
is cheap. One byte below that peak it is slow. So the target cycles (CYCLE) from the floor to the smallest peak found,
and each round starts another search, with another seed, in the given and in free order, from the smallest plan so far
and from store-all (on ResNet-50 this reaches 15 to 15.7 % of store-all's peak in 8 s, a target at the floor 16.6 %).
The rest of the time makes the plan of that peak faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from remat_solvers.bounds import Bottleneck, bottleneck, peak_bound
from remat_solvers.optimal.certify import certify_floor
from remat_solvers.optimal.local_search.annealing import SearchError, SequenceSearch
from remat_solvers.optimal.warm_starts import METHODS
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import import_uninterrupted
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import create, entry
from remat_solvers.result import Certificate, Limits, OnProgress, Order, Outcome, Status, Stopped
from remat_solvers.schedule import baseline, store_all
from remat_solvers.toolkit.trials import BestPlan, Incumbent

CYCLE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)  # targets in turn: 0 is the floor, 1 the smallest peak found
IDLE_ROUNDS = 8  # rounds through the cycle without a smaller peak, after which the search ends
MOVES_PER_OP = 100  # in a turn
MAX_OP_MOVES = 10**8  # moves of a turn times ops: a turn takes a fraction of a second on a hundred ops as on thousands
CERTIFIED_MOMENTS = 8  # for each of which a certificate of the floor is tried
METHODS_SHARE = 0.2  # of the time, for plans of published methods where the search is available
PEAK_SHARE = 0.7  # of the time, for the search for a smaller peak; the rest is for a faster plan of that peak


@dataclass(frozen=True, slots=True)
class MinPeak:
    """The smallest peak found, and the floor under all plans' peaks."""

    plan: Plan  # the fastest one found of that peak
    time_ns: int
    peak_bytes: int
    peak_bound_bytes: int  # no plan's peak is lower
    certificate: Certificate | None  # no plan fits the budget below that floor; None: with a link, or for the floor 0
    bottleneck: Bottleneck  # the moment that sets the general floor
    stopped: Stopped

    @property
    def outcome(self) -> Outcome:
        """The result as the outcome of a method for a budget of that peak."""
        return Outcome(
            status=Status.FEASIBLE,
            plan=self.plan,
            smallest_peak_bytes=self.peak_bytes,
            peak_bound_bytes=self.peak_bound_bytes,
            stopped=self.stopped,
            certificate=self.certificate,
        )


def minimise_peak(
    problem: Problem,
    *,
    limits: Limits,
    on_progress: OnProgress | None = None,
    seed: int = 0,
    order: Order = Order.FREE,
) -> MinPeak:
    """Find a plan of a small peak within the limits, recomputing only, and the floor under the peak of every plan.

    order: whether first computations keep the problem's order (`given`) or may move. Deterministic for a seed where no
    limit of seconds strikes; `limits.work` counts turns. Ends when the peak is at the floor and the plan no faster.
    """
    search = _PeakSearch(problem, limits, on_progress, seed, free_order=order is Order.FREE)
    with search:
        import_uninterrupted("highspy")
        for turn, _ in enumerate(search.turns(), 1):
            if search.out_of_time():
                break
            if turn == limits.work:
                search.stopped = Stopped.TIME
                break
        search.out_of_time()
    stopped = search.stopped
    try:
        certificate = floor_certificate(problem, Stopwatch(Limits(0)) if stopped is Stopped.INTERRUPT else search.watch)
    except KeyboardInterrupt:
        stopped, certificate = Stopped.INTERRUPT, None
    return MinPeak(
        plan=search.smallest.plan,
        time_ns=search.smallest.time_ns,
        peak_bytes=search.smallest.peak_bytes,
        peak_bound_bytes=max(search.floor_bytes, 0 if certificate is None else certificate.budget_bytes + 1),
        certificate=certificate,
        bottleneck=bottleneck(problem),
        stopped=stopped,
    )


def floor_certificate(problem: Problem, watch: Stopwatch | None = None) -> Certificate | None:
    """A certificate that no plan fits a budget, the largest found; None with a link, or where the floor is 0.

    The moment of most memory is tried first, and is the only one once the watch has expired.
    """
    if problem.link is not None:
        return None
    largest = sorted(range(len(problem.ops)), key=lambda op: (-_working_set_bytes(problem, op), op))
    floors: list[Certificate] = []
    for at in (*((op,) for op in largest[:CERTIFIED_MOMENTS]), ()):
        floor = certify_floor(problem, order=Order.FREE, at=at)
        floors += [] if floor is None else [floor]
        if floors and watch is not None and watch.expired:
            break
    return max(floors, key=lambda certificate: certificate.budget_bytes, default=None)


def _working_set_bytes(problem: Problem, index: int) -> int:
    op = problem.ops[index]
    return sum(problem.values[v].bytes for v in {*op.inputs, *op.outputs}) + op.workspace_bytes


class _PeakSearch(BestPlan):
    """The plan of the smallest peak so far, from store-all on, and the turns that look for a smaller one."""

    def __init__(
        self, problem: Problem, limits: Limits, on_progress: OnProgress | None, seed: int, *, free_order: bool
    ) -> None:
        unmodified = baseline(problem)
        super().__init__(problem, unmodified.peak_bytes, Stopwatch(limits), on_progress)
        self.limits, self.seed, self.free_order = limits, seed, free_order
        self.floor_bytes = peak_bound(problem).bytes
        num_ops = max(1, len(problem.ops))
        self.turn_moves = min(MOVES_PER_OP * num_ops, MAX_OP_MOVES // num_ops)
        self.smallest = Incumbent(store_all(problem), unmodified.time_ns, unmodified.peak_bytes, unmodified.host_bytes)

    def turns(self) -> Iterator[None]:
        """Work in turns, which are short so that the time limit is checked often."""
        try:
            self._new_search(self.floor_bytes, self.seed, free_order=False)
        except SearchError:  # no extension, or sizes beyond its arithmetic
            yield from self._run_methods(1.0)
            return
        yield from self._run_methods(METHODS_SHARE)
        yield from self._lower_peak()
        yield from self._reduce_time()

    def consider(self, new: Incumbent, message: str) -> bool:
        """Keep the plan if its peak is smaller, or as small and the plan faster. Return whether it is kept."""
        smallest = self.smallest
        if (new.peak_bytes, new.time_ns) >= (smallest.peak_bytes, smallest.time_ns):
            return False
        self.smallest = self.best = new
        self.report(message)
        return True

    @property
    def _at_floor(self) -> bool:
        return self.smallest.peak_bytes <= self.floor_bytes

    def _improves(self, sequence: list[int], message: str) -> bool:
        smallest = self.smallest
        self.replay_sequence(sequence, message)
        return self.smallest is not smallest

    def _seconds_until(self, share: float) -> float | None:
        """Seconds until that share of the time is over."""
        seconds = self.limits.seconds
        return None if seconds is None else max(0.0, share * seconds - self.watch.seconds)

    # The turns

    def _run_methods(self, share: float) -> Iterator[None]:
        """Run published methods, each for the floor as its budget and then for the smallest peak that it reports."""
        for name in METHODS:
            if entry(name).needs_backward and not self.problem.backward_ops:
                continue
            budget_bytes: int | None = self.floor_bytes
            for _ in range(2):
                left_s = self._seconds_until(share)
                if left_s == 0 or self._at_floor or budget_bytes is None:
                    break
                if not 0 < budget_bytes < self.smallest.peak_bytes:
                    break
                outcome = create(name).solve(
                    self.problem, budget_bytes, limits=Limits(left_s), on_progress=None, seed=self.seed
                )
                if outcome.plan is not None:
                    self.replay(outcome.plan, name)
                if outcome.stopped is Stopped.INTERRUPT:
                    raise KeyboardInterrupt
                budget_bytes = None if outcome.plan is not None else outcome.smallest_peak_bytes
                yield

    def _lower_peak(self) -> Iterator[None]:
        """Search at targets between the floor and the smallest peak found."""
        rounds = idle_rounds = 0
        while not self._at_floor and idle_rounds < IDLE_ROUNDS:
            free_order = self.free_order and rounds % 2 == 1
            search = self._new_search(self.floor_bytes, self.seed + rounds, free_order=free_order)
            if rounds % 4 < 2:
                search.offer(self.smallest.plan.sequence)
            rounds, idle_rounds = rounds + 1, idle_rounds + 1
            smallest_bytes = self.smallest.peak_bytes
            for part in CYCLE:
                search.set_budget(self.floor_bytes + int(part * (smallest_bytes - self.floor_bytes)))
                left_s = self._seconds_until(PEAK_SHARE)
                if left_s == 0:
                    return
                search.run(moves=self.turn_moves, seconds=left_s)
                found = search.smallest
                if found is not None:
                    smallest_bytes = found.peak_bytes
                    if self._improves(found.sequence, "smaller"):
                        idle_rounds = 0
                yield
                if self._at_floor:
                    break

    def _reduce_time(self) -> Iterator[None]:
        """Search for a faster plan of the smallest peak found."""
        search = self._new_search(self.smallest.peak_bytes, self.seed, free_order=self.free_order)
        search.offer(self.smallest.plan.sequence)
        idle_rounds = 0
        while idle_rounds < IDLE_ROUNDS and not search.done:
            moves = search.run(moves=self.turn_moves, seconds=self.watch.remaining)
            found = search.best
            idle_rounds += 1
            if found is not None and self._improves(found.sequence, "faster"):
                idle_rounds = 0
            yield
            if moves == 0:
                return

    def _new_search(self, budget_bytes: int, seed: int, *, free_order: bool) -> SequenceSearch:
        return SequenceSearch(self.problem, budget_bytes, free_order=free_order, seed=seed)
