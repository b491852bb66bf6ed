"""The smallest peak that can be reached, beside a floor that no plan is below.

Floor. `bounds.peak_bound` proves one for every plan. Without a link certificates over the moments of most memory prove
it again, and sometimes more: where what cannot be computed again is needed for something else that is needed later.

Plan. The search of search.py looks for a plan within a budget; here the budget is what it is led by. Asked for too
little, it piles up recomputations until nothing is cheap any more; asked for a byte less than what it has, it creeps.
So the budget goes round between the floor and the smallest peak met, as CYCLE says, and each round starts another
search, with another seed, in the given and in free order, from the smallest plan so far and from store-all (on
ResNet-50 this reaches 15 to 15.7 % of store-all's peak in 8 s, a budget at the floor 16.6 %). What is left of the time
makes the plan of that peak faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from remat_solvers.bounds import Bottleneck, bottleneck, peak_bound
from remat_solvers.optimal.certify import certify_floor
from remat_solvers.optimal.local_search.annealing import Search, SearchError
from remat_solvers.optimal.warm_starts import METHODS
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.processes.interrupt import import_uninterrupted
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.registry import create, entry
from remat_solvers.result import Certificate, Limits, OnProgress, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate

__all__ = ["MinPeak", "floor_certificate", "minimise_peak"]

CYCLE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)  # of the way from the floor to the smallest peak: budgets in turn
ROUNDS = 8  # through the cycle without a smaller peak, after which nothing more is expected
MOVES_PER_OP = 100  # in a turn
MOST_OP_MOVES = 10**8  # moves of a turn times ops: it takes a fraction of a second on a hundred ops as on thousands
MOMENTS = 8  # that a certificate of the floor is looked for at
STARTS_SHARE = 0.2  # of the time, for other methods' plans where there is a search
PEAK_SHARE = 0.7  # of the time, until the plan is made faster


@dataclass(frozen=True, slots=True)
class MinPeak:
    """The smallest peak found, and the floor under all plans' peaks."""

    plan: Plan  # of that peak; the fastest met
    time_ns: int
    peak_bytes: int
    peak_bound_bytes: int  # no plan's peak is lower
    certificate: (
        Certificate | None
    )  # that no plan fits the budget below that floor; None: the floor needs none, or a link
    bottleneck: Bottleneck  # the moment that sets the general floor
    stopped: Stopped

    @property
    def outcome(self) -> Outcome:
        """The same as a method's answer to a budget of the peak."""
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
    """A plan of the smallest peak that is found within the limits, recomputing only, and the floor of any plan.

    order: whether first computations keep the problem's order (`given`) or may move. Deterministic for a seed where no
    limit of seconds strikes; `limits.work` counts turns. Ends when the peak is at the floor and the plan no faster.
    """
    work = _Work(problem, limits, on_progress, seed, order)
    stopped = Stopped.COMPLETE
    try:
        import_uninterrupted("highspy")
        for turn, _ in enumerate(work.turns(), 1):
            if work.watch.expired or turn == limits.work:
                stopped = Stopped.TIME
                break
    except KeyboardInterrupt:
        stopped = Stopped.INTERRUPT
    if stopped is Stopped.COMPLETE and work.watch.expired:
        stopped = Stopped.TIME
    try:
        hurried = Stopwatch(Limits(0)) if stopped is Stopped.INTERRUPT else work.watch
        certificate = floor_certificate(problem, hurried)
    except KeyboardInterrupt:
        stopped, certificate = Stopped.INTERRUPT, None
    return MinPeak(
        plan=work.plan,
        time_ns=work.time_ns,
        peak_bytes=work.peak_bytes,
        peak_bound_bytes=max(work.floor.bytes, 0 if certificate is None else certificate.budget_bytes + 1),
        certificate=certificate,
        bottleneck=bottleneck(problem, work.floor),
        stopped=stopped,
    )


def floor_certificate(problem: Problem, watch: Stopwatch | None = None) -> Certificate | None:
    """That no plan fits a budget, the largest found; None with a link, or where the floor is 0.

    The first moment is that of most memory, and the only one where the watch has expired.
    """
    if problem.link is not None:
        return None
    largest = sorted(range(len(problem.ops)), key=lambda op: (-_working_set(problem, op), op))[:MOMENTS]
    floors: list[Certificate] = []
    for at in (*((op,) for op in largest), ()):
        floor = certify_floor(problem, order=Order.FREE, at=at)
        floors += [] if floor is None else [floor]
        if floors and watch is not None and watch.expired:
            break
    return max(floors, key=lambda certificate: certificate.budget_bytes, default=None)


def _working_set(problem: Problem, index: int) -> int:
    op = problem.ops[index]
    return sum(problem.values[v].bytes for v in {*op.inputs, *op.outputs}) + op.workspace_bytes


class _Work:
    """The smallest plan so far, and the turns that look for a smaller one."""

    def __init__(
        self, problem: Problem, limits: Limits, on_progress: OnProgress | None, seed: int, order: Order
    ) -> None:
        self.problem, self.seed, self.on_progress = problem, seed, on_progress
        self.free_order = order is Order.FREE
        self.watch, self.limits = Stopwatch(limits), limits
        self.floor = peak_bound(problem)
        count = max(1, len(problem.ops))
        self.moves = min(MOVES_PER_OP * count, MOST_OP_MOVES // count)
        self._set(store_all(problem))

    def turns(self) -> Iterator[None]:
        """Work in turns short enough to look at the clock between them."""
        try:
            self._search(self.floor.bytes, self.seed, free_order=False)
        except SearchError:  # no extension, or sizes beyond its arithmetic
            yield from self._starts(1.0)
            return
        yield from self._starts(STARTS_SHARE)
        yield from self._smaller()
        yield from self._faster()

    def offer(self, plan: Plan, note: str) -> bool:
        """Whether the plan's peak is smaller, or as small and the plan faster."""
        timeline = simulate(self.problem, plan)
        better = (timeline.peak_bytes, timeline.time_ns) < (self.peak_bytes, self.time_ns)
        if better:
            self._set(plan)
            if self.on_progress is not None:
                self.on_progress(Progress(self.watch.seconds, self.time_ns, self.peak_bytes, None, note))
        return better

    def _set(self, plan: Plan) -> None:
        timeline = simulate(self.problem, plan)
        self.plan, self.time_ns, self.peak_bytes = plan, timeline.time_ns, timeline.peak_bytes

    @property
    def sequence(self) -> list[int]:
        return self.plan.sequence

    @property
    def at_floor(self) -> bool:
        return self.peak_bytes <= self.floor.bytes

    def _left(self, share: float) -> float | None:
        """Seconds until that share of the time is over."""
        seconds = self.limits.seconds
        return None if seconds is None else max(0.0, share * seconds - self.watch.seconds)

    # The turns

    def _starts(self, share: float) -> Iterator[None]:
        """Other methods, asked for the floor and then for the smallest peak that they say they reach."""
        for name in METHODS:
            if entry(name).needs_backward and not self.problem.backward_ops:
                continue
            budget_bytes: int | None = self.floor.bytes
            for _ in range(2):
                left = self._left(share)
                if left == 0 or self.at_floor or budget_bytes is None or not 0 < budget_bytes < self.peak_bytes:
                    break
                outcome = create(name).solve(
                    self.problem, budget_bytes, limits=Limits(left), on_progress=None, seed=self.seed
                )
                if outcome.plan is not None:
                    self.offer(outcome.plan, name)
                if outcome.stopped is Stopped.INTERRUPT:
                    raise KeyboardInterrupt
                budget_bytes = None if outcome.plan is not None else outcome.smallest_peak_bytes
                yield

    def _smaller(self) -> Iterator[None]:
        """Searches for budgets between the floor and the smallest peak met."""
        rounds = idle = 0
        while not self.at_floor and idle < ROUNDS:
            search = self._search(self.floor.bytes, self.seed + rounds, free_order=self.free_order and rounds % 2 == 1)
            if rounds % 4 < 2:
                search.offer(self.sequence)
            rounds, idle = rounds + 1, idle + 1
            met = self.peak_bytes
            for part in CYCLE:
                search.set_budget(self.floor.bytes + int(part * (met - self.floor.bytes)))
                left = self._left(PEAK_SHARE)
                if left == 0:
                    return
                search.run(moves=self.moves, seconds=left)
                found = search.smallest
                if found is not None:
                    met = found.peak_bytes
                    if self.offer(plan_from_sequence(self.problem, found.sequence), "smaller"):
                        idle = 0
                yield
                if self.at_floor:
                    break

    def _faster(self) -> Iterator[None]:
        """A search at the smallest peak met."""
        search = self._search(self.peak_bytes, self.seed, free_order=self.free_order)
        search.offer(self.sequence)
        idle = 0
        while idle < ROUNDS and not search.done:
            made = search.run(moves=self.moves, seconds=self.watch.remaining)
            found = search.best
            idle += 1
            if found is not None and self.offer(plan_from_sequence(self.problem, found.sequence), "faster"):
                idle = 0
            yield
            if made == 0:
                return

    def _search(self, budget_bytes: int, seed: int, *, free_order: bool) -> Search:
        return Search(self.problem, budget_bytes, free_order=free_order, seed=seed)
