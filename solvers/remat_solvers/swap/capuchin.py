"""Peng et al.: Capuchin: Tensor-based GPU Memory Management for Deep Learning. ASPLOS 2020.

Capuchin measures one iteration and then evicts tensors between two of their accesses, by swapping or by recomputing.
This file has its recomputation, which needs no link (swap off):

- The accesses of a tensor are its making and its readers. Candidates have more than one, and are alive in the peak
  period, while memory is above the budget. Of its pairs of adjacent accesses a candidate is evicted between the two
  around (part of) the peak period that lie farthest apart in time: after the evicted-access, until the back-access.
- MSPS, memory saving per second = bytes / recomputation time. To recompute T at its back-access is to run its lineage
  from what is then in memory, its sources. The candidate of the largest MSPS is taken, until the bytes taken make up
  for the peak's excess over the budget.
- Each choice changes the others (algorithm 2). When T is taken, with S -> X: "S is among the sources of X":
      for every taken X with T -> X:  T's sources replace T; time(X) += time(T); T is computed once more for it
      for every candidate X with T -> X:  T's sources replace T; time(X) += time(T); ext(X) = time(X) * (number of
                                          taken ones that have X as a source)
      for every candidate X with X -> T:  ext(X) = time(X) * (1 + number of taken ones that needed T)
  and MSPS = bytes / (time + ext), ext being the time of recomputing it for others.
- Recomputation is on demand, right before the back-access. What is computed on the way and was evicted itself is kept
  from there on ("collective recomputation"), the rest is dropped.

Sources: the paper's abstract, and detailed notes of others on its rules. The exact updates of algorithm 2 (sources,
time for others) follow such secondary notes too, since the paper's own text of it was not at hand.

Where the paper leaves more open, and what is done here: memory is not measured while recomputing, so a plan may still
be above the budget; then the excess that the replay shows is added to the saving that is asked for, and more candidates
are taken, until it fits, none is left or the step takes MOST_TIMES as long. Results and outputs of ops that are not
recomputable are no candidates. An op of 0 ns counts 1 ns. Keeping or dropping what was evicted itself and is computed
on the way are both tried. There is no bound.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

from remat_solvers.clock import Stopwatch
from remat_solvers.problem import Problem
from remat_solvers.recompute.attempts import Attempts
from remat_solvers.result import Limits, OnProgress, Outcome, Stopped
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate

__all__ = ["Candidate", "Capuchin", "Choice", "candidates_of"]

MOST_TIMES = 6  # as much recomputation as the step has work: beyond that more candidates help nobody


@dataclass(frozen=True)
class Capuchin:
    """Recompute what saves the most memory per second."""

    collective: bool | None = None  # keep what was evicted itself and is computed on the way; None: both are tried

    name: ClassVar[str] = "capuchin"
    version: ClassVar[str] = "1"

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """More and more candidates until the plan fits. See `registry.Solver`."""
        attempts = Attempts(problem, budget_bytes, limits, on_progress)
        with attempts:
            attempts.fits(range(len(problem.ops)), "0 recomputed")
            for collective in (True, False) if self.collective is None else (self.collective,):
                _choose_until_it_fits(problem, budget_bytes, attempts, collective)
        return attempts.outcome()


@dataclass
class Candidate:
    """A tensor that may be evicted after one access and recomputed before the next."""

    value: int
    size_bytes: int
    evicted_access: int  # op
    back_access: int  # op
    sources: set[int]  # values in memory at the back-access from which it is computed
    time_ns: int  # of computing it from the sources
    ext_ns: int = 0  # of computing it for others

    @property
    def msps(self) -> float:
        """Bytes saved per ns of recomputation."""
        return self.size_bytes / max(1, self.time_ns + self.ext_ns)


def _choose_until_it_fits(problem: Problem, budget_bytes: int, attempts: Attempts, collective: bool) -> None:
    unmodified = simulate(problem, store_all(problem)).peak_bytes
    choice = Choice(candidates_of(problem, budget_bytes))
    asked = unmodified - budget_bytes
    saved = 0
    while choice.open and not attempts.expired:
        while saved < asked and choice.open:
            saved += choice.take().size_bytes
        sequence = _Guided(problem, choice.taken, collective, attempts.watch).run()
        if sequence is None:
            if attempts.watch.expired:
                attempts.stopped = Stopped.TIME
            return
        if attempts.fits(sequence, f"{len(choice.taken)} recomputed"):
            return
        peak_bytes = simulate(problem, plan_from_sequence(problem, sequence)).peak_bytes
        asked = saved + max(1, peak_bytes - budget_bytes)


class Choice:
    """Algorithm 2: the candidates, those taken so far, and what each means for the others."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.open = {c.value: c for c in candidates}
        self.taken: dict[int, Candidate] = {}
        self.dependents: dict[int, set[int]] = {}  # source -> candidates and taken ones that have it
        for candidate in candidates:
            for source in candidate.sources:
                self.dependents.setdefault(source, set()).add(candidate.value)
        self._heap = [(-c.msps, c.value) for c in candidates]
        heapq.heapify(self._heap)

    def take(self) -> Candidate:
        """Take the open candidate of the largest MSPS, the first in the order of values where several have it."""
        while True:
            negative, value = heapq.heappop(self._heap)
            if value in self.open and -negative == self.open[value].msps:
                break
        target = self.open.pop(value)
        dependents = self.dependents.pop(value, set())
        needed_again = 0
        for name in dependents & self.taken.keys():
            self._through(self.taken[name], target)
            needed_again += 1
        self.taken[value] = target
        for name in dependents & self.open.keys():
            candidate = self.open[name]
            self._through(candidate, target)
            times = len(self.dependents.get(name, set()) & self.taken.keys())
            self._change(candidate, candidate.time_ns * times)
        for name in target.sources & self.open.keys():
            candidate = self.open[name]
            self._change(candidate, candidate.time_ns * (1 + needed_again))
        return target

    def _through(self, candidate: Candidate, target: Candidate) -> None:
        """`candidate` is computed through `target`, which is no longer in memory."""
        candidate.sources.discard(target.value)
        candidate.sources |= target.sources
        candidate.time_ns += target.time_ns
        for source in target.sources:
            self.dependents.setdefault(source, set()).add(candidate.value)

    def _change(self, candidate: Candidate, ext_ns: int) -> None:
        candidate.ext_ns = ext_ns
        heapq.heappush(self._heap, (-candidate.msps, candidate.value))


def candidates_of(problem: Problem, budget_bytes: int) -> list[Candidate]:
    """The tensors that can be evicted in the peak period of the unmodified step."""
    above = _above(problem, budget_bytes)
    if not above:
        return []
    crowded = list(accumulate((op in above for op in range(len(problem.ops))), initial=0))
    starts = list(accumulate((max(1, op.time_ns) for op in problem.ops), initial=0))
    last = [max(readers, default=-1) for readers in problem.consumers]
    found: list[Candidate] = []
    for value, tensor in enumerate(problem.values):
        producer = problem.producer[value]
        if producer < 0 or not tensor.bytes or value in problem.results or not problem.ops[producer].recomputable:
            continue
        accesses = (producer, *problem.consumers[value])
        gaps = [(a, b) for a, b in pairwise(accesses) if crowded[b] > crowded[a + 1]]
        if gaps:
            evicted, back = max(gaps, key=lambda gap: starts[gap[1]] - starts[gap[0]])
            sources, time_ns = _lineage(problem, value, back, last)
            if sources is not None:
                found.append(Candidate(value, tensor.bytes, evicted, back, sources, time_ns))
    return found


def _above(problem: Problem, budget_bytes: int) -> set[int]:
    """The ops during which the unmodified step is above the budget."""
    ends: list[list[int]] = [[] for _ in problem.ops]
    kept = set(problem.results)
    for value, readers in enumerate(problem.consumers):
        if problem.producer[value] >= 0 and value not in kept:
            ends[max((problem.producer[value], *readers))].append(value)
    held = problem.constant_bytes + problem.reserve_bytes
    above: set[int] = set()
    for index, op in enumerate(problem.ops):
        held += sum(problem.values[v].bytes for v in op.outputs)
        if held + op.workspace_bytes > budget_bytes:
            above.add(index)
        held -= sum(problem.values[v].bytes for v in ends[index])
    return above


def _lineage(problem: Problem, value: int, back: int, last: list[int]) -> tuple[set[int] | None, int]:
    """What is in memory at op `back` from which `value` is computed, and the time; None: it cannot be computed."""
    results = set(problem.results)
    sources: set[int] = set()
    ops = {problem.producer[value]}
    stack = list(ops)
    while stack:
        op = stack.pop()
        if not problem.ops[op].recomputable:
            return None, 0
        for read in problem.ops[op].inputs:
            producer = problem.producer[read]
            if producer < 0:
                continue
            if last[read] >= back or read in results:
                sources.add(read)
            elif producer not in ops:
                ops.add(producer)
                stack.append(producer)
    return sources, max(1, sum(problem.ops[op].time_ns for op in ops))


class _Guided:
    """One guided execution: the problem's order, with the taken ones recomputed at their back-access."""

    def __init__(self, problem: Problem, taken: dict[int, Candidate], collective: bool, watch: Stopwatch) -> None:
        self.problem = problem
        self.taken = taken
        self.collective = collective
        self.watch = watch
        self.here: set[int] = set()
        self.sequence: list[int] = []
        self.spent_ns = 0

    def run(self) -> list[int] | None:
        """The ops in execution order; None: it takes too long."""
        problem, here = self.problem, self.here
        most_ns = MOST_TIMES * sum(op.time_ns for op in problem.ops)
        leaves: list[list[int]] = [[] for _ in problem.ops]
        results = set(problem.results)
        for value, readers in enumerate(problem.consumers):
            producer = problem.producer[value]
            if value not in results and producer >= 0 and problem.ops[producer].recomputable:
                leaves[max((producer, *readers))].append(value)
            if value in self.taken:
                leaves[self.taken[value].evicted_access].append(value)
        for index, op in enumerate(problem.ops):
            self._restore([v for v in op.inputs if v not in here and problem.producer[v] >= 0])
            if self.spent_ns > most_ns or self.watch.expired:
                return None
            self.sequence.append(index)
            here.update(op.outputs)
            here.difference_update(leaves[index])
        return self.sequence

    def _restore(self, missing: list[int]) -> None:
        problem, here = self.problem, self.here
        stack, needed = list(missing), set[int]()
        while stack:
            op = problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in problem.ops[op].inputs if v not in here and problem.producer[v] >= 0)
        self.sequence += sorted(needed)
        self.spent_ns += sum(problem.ops[op].time_ns for op in needed)
        here.update(missing)
        if self.collective:
            here.update(v for op in needed for v in problem.ops[op].outputs if v in self.taken)
