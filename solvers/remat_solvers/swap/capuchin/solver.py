"""Peng et al.: Capuchin: Tensor-based GPU Memory Management for Deep Learning. ASPLOS 2020.

Capuchin measures one iteration and then evicts tensors between two of their accesses, by swapping or by recomputing.
Without a link to the host it recomputes only.

Measured execution, the first iteration, is passive: where memory is short, tensors are swapped out from the start of
the list of accesses until it suffices, and an access to one that is swapped out swaps it in; compute waits for both.
The accesses get timestamps from which waits are subtracted: here the problem's times, in the problem's order.

Guided execution. The accesses of a tensor are its computation and its readers. Candidates have more than one, and are
alive in the peak period, while memory is above the budget. Of its pairs of adjacent accesses a candidate is evicted
between the two around (part of) the peak period that lie farthest apart in time: after the evicted-access e, until the
back-access b.

- SwapTime = bytes / bandwidth; SwapOutEnd = t_e + SwapTime, SwapInStart = t_b - SwapTime, and the free time
  FT = SwapInStart - SwapOutEnd. Negative: so much of the transfers is exposed.
- Swapping out starts at e and takes its time; compute waits for it only where an op would not fit otherwise. Swapping
  in starts at the in-trigger: the last access before SwapInStart, walking back from b. One transfer runs at a time per
  direction, so of two that collide the earlier one is shifted earlier. An in-trigger inside the peak period of a b
  behind it moves to its end.
- Feedback: a tensor that is still swapping in at its back-access gets its in-trigger 5 % of SwapTime earlier in the
  next iteration.
- MSPS, memory saving per second = bytes / recomputation time. To recompute T at its back-access, its lineage
  runs from the tensors then in memory, its sources. It is on demand, right before the back-access: nothing overlaps it.
  Tensors computed on the way that were evicted themselves are kept from there on ("collective recomputation"), the
  others are dropped.
- The hybrid policy evicts until the bytes evicted make up for the peak's excess over the budget: first swaps in the
  order of falling FT while that is not negative, however cheap recomputing would be; then, for each of the others, the
  form with the smaller overhead: the exposed part of the swap, or the recomputation.
- Each recomputation changes the others (algorithm 2). When T is taken, with S -> X: "S is among the sources of X":
      for every taken X with T -> X:  T's sources replace T; time(X) += time(T); T is computed once more for it
      for every candidate X with T -> X:  T's sources replace T; time(X) += time(T); ext(X) = time(X) * (number of
                                          taken ones that have X as a source)
      for every candidate X with X -> T:  ext(X) = time(X) * (1 + number of taken ones that needed T)
  and MSPS = bytes / (time + ext), ext being the time of recomputing it for others.

Sources: the paper's abstract, and detailed notes of others on its rules. The exact updates of algorithm 2 (sources,
time for others) follow such secondary notes too, since the paper's own text of it was not at hand.

What else is open in the paper, and what is done here:

- Memory is not measured while recomputing, so a plan may still be above the budget; then the excess in the replay
  is added to the target saving, and more candidates are evicted, until the plan fits, none is left or the step takes
  MOST_TIMES as long.
- A swap is free where, with all swaps chosen so far on the lanes, none is exposed. Of the others the next is the one
  that saves the most per ns of its smaller overhead: by MSPS where that is recomputation.
- A source that is swapped out counts as in memory: it comes back for the recomputation, and may leave again.
- Latency is no part of SwapTime; feedback makes up for it. A tensor that was late once may come in during the peak
  period as well. Feedback ends when no tensor is late, after ROUNDS, or when PATIENCE of them brought nothing; the
  fastest iteration is returned.
- A swap-in for which there is no room up to the back-access waits until there is.
- Results are not evicted in guided execution, outputs of ops that are not recomputable are swapped only. An op of 0 ns
  counts 1 ns where pairs are compared.
- FT does not tell whether a tensor is off the device by the time its bytes are needed, so swaps that are free by it
  may still make compute wait. So most_swaps=None tries the policy as it is, then with half as many swaps, and so on
  down to none.
- collective=None tries both, keeping and dropping the evicted tensors that are computed on the way. The fastest
  plan is returned. There is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import ClassVar

from remat_solvers.problem import Problem
from remat_solvers.schedule import baseline, tangents_first
from remat_solvers.swap.capuchin.guided import GuidedSequence, GuidedSwaps
from remat_solvers.swap.capuchin.policy import Candidate, EvictionPolicy, Lanes, candidates_of
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.transfers.demand_paging import (
    DemandPaging,
    PagedPlan,
    movable_values,
    smallest_paging_budget,
)
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.trials import TrialMethod, Trials

MOST_TIMES = 6  # as much recomputation as the step has work: beyond that, more candidates do not help
ROUNDS = 20  # of feedback, each 5 % of SwapTime
PATIENCE = 5


@dataclass(frozen=True)
class Capuchin(TrialMethod):
    """Swap where it costs nothing; of the other tensors, evict those that save the most memory per second."""

    collective: bool | None = None  # keep evicted tensors that are computed on the way; None: both are tried
    most_swaps: int | None = None  # over a link; 0: recomputation alone; None: tried, see above

    name: ClassVar[str] = "capuchin"
    version: ClassVar[str] = "2"
    requires = ()
    ranges: ClassVar[Ranges] = {"most_swaps": (0, inf)}

    def try_plans(self, trials: Trials) -> None:
        """Evict more and more candidates until the plan fits."""
        problem = trials.problem
        trials.fits(range(len(problem.ops)), "0 recomputed")
        candidates = candidates_of(problem, trials.budget_bytes)
        swap_limits: list[int | None] = [0]
        if problem.link is not None and self.most_swaps != 0:
            if problem.link.host_bytes is None:
                order = tangents_first(problem, range(len(problem.ops)))
                trials.observe_peak(smallest_paging_budget(problem, order, movable_values(problem, order)))
            paged = passive(problem, trials.budget_bytes)
            if isinstance(paged, PagedPlan):
                trials.replay(paged.plan, "passive")
            swap_limits = [self.most_swaps]
        collectives = (True, False) if self.collective is None else (self.collective,)
        while swap_limits and not trials.expired and not trials.cannot_improve(range(len(problem.ops))):
            most_swaps = swap_limits.pop()
            swapped = [_evict_until_it_fits(trials, candidates, c, most_swaps) for c in collectives]
            if self.most_swaps is None and (most_swaps is None or most_swaps > 0):
                swap_limits.append(max(swapped) // 2)


def passive(problem: Problem, budget_bytes: int) -> PagedPlan | Overflow:
    """Run the measured execution; return its result, or the first op that does not fit."""
    profile = StepProfile.of(problem, range(len(problem.ops)))
    return DemandPaging(profile, movable_values(problem, profile.sequence), budget_bytes, "list").run()


def _evict_until_it_fits(trials: Trials, candidates: list[Candidate], collective: bool, most_swaps: int | None) -> int:
    """Evict more and more candidates until the plan fits; return the number of those swapped."""
    problem, budget_bytes = trials.problem, trials.budget_bytes
    swap = problem.link is not None and most_swaps != 0
    fresh = [replace(c, sources=set(c.sources)) for c in candidates if swap or c.recomputable]
    policy = EvictionPolicy(fresh, Lanes(problem) if swap else None, most_swaps)
    unmodified = baseline(problem).peak_bytes
    target_bytes = unmodified - budget_bytes
    saved_bytes = 0
    most_ns = MOST_TIMES * sum(op.time_ns for op in problem.ops)
    while policy.open and not trials.expired:
        while saved_bytes < target_bytes and (target := policy.take()) is not None:
            saved_bytes += target.size_bytes
        sequence = GuidedSequence(problem, policy.taken, collective, most_ns, trials.watch).run()
        if sequence is None:
            trials.out_of_time()  # it may be the reason
            break
        if trials.cannot_improve(sequence):
            break  # more candidates would make it slower still
        form = f"{len(policy.swapped)} swapped, {len(policy.taken)} recomputed"
        if policy.swapped:
            excess = _guide(GuidedSwaps(problem, sequence, policy.swapped, budget_bytes), trials, form)
        else:
            excess = trials.replay_sequence(sequence, form).peak_bytes - budget_bytes
        if excess <= 0:
            break
        target_bytes = saved_bytes + excess
    return len(policy.swapped)


def _guide(swaps: GuidedSwaps, trials: Trials, form: str) -> int:
    """Run guided iterations with feedback; return the excess in bytes, 0 if a plan fits."""
    if swaps.excess_bytes > 0:
        return swaps.excess_bytes
    best_ns, iterations_since = None, 0
    for plan in islice(swaps.iterations(), ROUNDS):
        if isinstance(plan, Overflow):
            return plan.excess_bytes if best_ns is None else 0
        time_ns = trials.replay(plan, form).time_ns
        if best_ns is None or time_ns < best_ns:
            best_ns, iterations_since = time_ns, 0
        iterations_since += 1
        if iterations_since > PATIENCE or trials.expired:
            break
    return 0
