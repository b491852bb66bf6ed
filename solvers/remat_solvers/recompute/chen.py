"""Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost. arXiv 1604.06174, 2016.

The forward pass is cut into segments. Only the outputs of the ops at the cuts are kept. Everything between the cuts is
dropped after its last forward use, and recomputed when backward needs it. The published forms are:

sqrt        (section 4.1) n ops in k segments hold about n/k + k values, fewest at k = sqrt(n): 2 sqrt(n) values for
            one extra forward. On a graph every s-th candidate is a cut, s = int(sqrt(number of candidates)), as in
            Checkmate's code of this baseline; `segments` asks for another number of even segments.
recursive   (section 4.3) g(n) = k + g(n / (k + 1)): k cuts in every segment, each segment handled the same way, down
            to segments without a candidate inside. k = 1: log2(n) values, n log2(n) forwards.
budget      (algorithm 3, memory planning with budget b) one scan in topological order: temp += size(v); where v is a
            candidate and temp > b: keep v, x += size kept, y = max(y, temp), temp = 0. x is the size of everything
            kept, y the size of the largest segment. `threshold_bytes` gives b; without it b is searched as in the
            authors' code (mxnet-memonger, search_plan): b = 0 gives (x, y), then b = sqrt(x y / 2), three rounds in
            all, then a grid of 6 from the smallest y seen up to sqrt(2) times the last guess.

The candidates are C(v) in the paper, which leaves their choice to the user:

articulation  the articulation points of the undirected forward graph (Checkmate's generalisation);
              `toolkit/graphs/articulation.py` says which ops count.
linearised    every op: the topological order is taken as a chain. The outputs of the op at a cut are kept, and values
              that jump over a cut are recomputed with the segment that reads them.
crossing      every op, and a cut keeps all values that cross it (computed up to there, read by a forward op after it),
              so that a segment starts from everything it needs. In memonger the user asks for this by marking several
              nodes as one stage: the states of a recurrent network at one time step.

What is open in the paper, and what is done here:

- size(v) of an op = the bytes of all its outputs; constants are not counted, since they stay anyway.
- memonger works in whole MiB; here sizes are in bytes. Its cost is the measured size; here it is the replay's peak.
- A dropped op is recomputed at most once (in the recursive form once per level), and only if one of its outputs is
  needed. Algorithm 1 recomputes a segment as a whole when backward reaches it; algorithm 2 mirrors each node by itself,
  so that it is recomputed when it is first read. `on_demand` False and True; None tries both.
- The last segment: algorithm 1 drops it too; later implementations keep it, since backward needs it at once.
  `keep_last` False and True; None tries both.
- Outputs of ops that are not recomputable are kept where they are needed again.

Every form that the options leave open is built and replayed, and the fastest plan within the budget is returned. The
method proves nothing, so it reports no bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isqrt
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.articulation import articulation_positions
from remat_solvers.toolkit.options import Ranges
from remat_solvers.toolkit.sequences.segments import Segment, flat, recompute_sequence, recursive
from remat_solvers.toolkit.trials import TrialMethod, Trials

Strategy: TypeAlias = Literal["auto", "sqrt", "recursive", "budget"]
Candidates: TypeAlias = Literal["auto", "articulation", "linearised", "crossing"]

Keeps: TypeAlias = Mapping[int, tuple[int, ...]]  # position of a candidate cut -> the values it keeps

STRATEGIES = ("sqrt", "recursive", "budget")
CANDIDATES = ("articulation", "crossing", "linearised")
FIRST_ROUNDS = 3  # called nbegin in memonger's search_plan
GRID = 6  # called ntrial there
FANOUTS = (1, 2, 3)  # k of the recursion when none is given


@dataclass(frozen=True)
class Chen(TrialMethod):
    """Drop between cuts, recompute once: the published forms of sublinear memory cost."""

    strategy: Strategy = "auto"  # which published form; auto: all
    candidates: Candidates = "auto"  # the ops after which a cut may be; auto: all
    segments: int | None = None  # sqrt: number of even segments; None: every int(sqrt(n))-th candidate is a cut
    k: int | None = None  # recursive: cuts per segment; None: 1, 2 and 3
    threshold_bytes: int | None = None  # budget: b of algorithm 3; None: memonger's search
    keep_last: bool | None = None  # whether the last segment is not dropped; None: both
    on_demand: bool | None = None  # recompute op by op (True) or a segment at once (False); None: both

    name: ClassVar[str] = "chen"
    version: ClassVar[str] = "1"
    ranges: ClassVar[Ranges] = {"threshold_bytes": (0, inf)}

    def try_plans(self, trials: Trials) -> None:
        """Try each of the published forms."""
        problem = trials.problem
        for form in self.forms(problem):
            if trials.expired:
                break
            sequence = form.sequence(problem)
            time_ns = sum(problem.ops[op].time_ns for op in sequence)
            if trials.best is None or time_ns <= trials.best.time_ns:  # equally fast: its peak may be smaller
                trials.replay_sequence(sequence, form.name)

    def forms(self, problem: Problem) -> Iterator[Form]:
        """Every form that the options leave open, none twice."""
        seen: list[tuple[Segment, Keeps]] = []
        for name, root, keeps in self._segmentations(problem):
            if (root, keeps) in seen:
                continue
            seen.append((root, keeps))
            for keep_last in (False, True) if self.keep_last is None else (self.keep_last,):
                for on_demand in (False, True) if self.on_demand is None else (self.on_demand,):
                    yield Form(name, root, keeps, keep_last, on_demand)

    def _segmentations(self, problem: Problem) -> Iterator[tuple[str, Segment, Keeps]]:
        size = len(problem.forward_ops)
        for kind in CANDIDATES if self.candidates == "auto" else (self.candidates,):
            keeps = candidate_cuts(problem, kind)
            positions = tuple(keeps)
            for strategy in STRATEGIES if self.strategy == "auto" else (self.strategy,):
                if strategy == "sqrt":
                    yield f"sqrt, {kind}", flat(size, sqrt_cuts(positions, self.segments)), keeps
                elif strategy == "recursive":
                    for k in FANOUTS if self.k is None else (self.k,):
                        yield f"recursive k={k}, {kind}", recursive(size, positions, k), keeps
                else:
                    given = self.threshold_bytes
                    for threshold in search_thresholds(problem, keeps) if given is None else (given,):
                        cuts, _, _ = memory_plan(problem, keeps, threshold)
                        yield f"budget b={threshold}, {kind}", flat(size, cuts), keeps


@dataclass(frozen=True, slots=True)
class Form:
    """One form of the method, ready to be built."""

    name: str  # for people
    root: Segment
    keeps: Keeps
    keep_last: bool
    on_demand: bool

    def sequence(self, problem: Problem) -> list[int]:
        """The ops in the order in which they are computed."""
        return recompute_sequence(problem, self.root, self.keeps, keep_last=self.keep_last, on_demand=self.on_demand)


def sqrt_cuts(candidates: Sequence[int], segments: int | None) -> tuple[int, ...]:
    """Take every int(sqrt(n))-th of the n candidates, or the ends of `segments` even segments, as cuts."""
    count = len(candidates)
    if segments is None:
        step = max(1, isqrt(count))
        return tuple(candidates[step - 1 :: step])
    segments = max(1, min(segments, count))  # with more, every candidate would be an end, too
    return tuple(
        candidates[mark - 1] for mark in sorted({round(j * count / segments) for j in range(1, segments + 1)} - {0})
    )


def memory_plan(problem: Problem, keeps: Keeps, threshold: int) -> tuple[tuple[int, ...], int, int]:
    """Algorithm 3: the cuts for budget b = `threshold`, x (bytes kept) and y (bytes of the largest segment).

    `keeps` are the candidates: per position among the forward ops, the values that a cut there keeps.
    """
    cuts: list[int] = []
    kept: set[int] = set()
    temp = x = y = 0
    for position, op in enumerate(problem.forward_ops):
        temp += sum(problem.values[v].bytes for v in problem.ops[op].outputs)
        if temp > threshold and position in keeps:
            cuts.append(position)
            x += sum(problem.values[v].bytes for v in keeps[position] if v not in kept)
            kept.update(keeps[position])
            y = max(y, temp)
            temp = 0
    return tuple(cuts), x, y


def search_thresholds(problem: Problem, keeps: Keeps) -> tuple[int, ...]:
    """The values of b, in bytes, that memonger's search_plan tries, in its order."""
    tried: list[int] = []
    threshold = 0
    smallest_y: int | None = None
    for _ in range(FIRST_ROUNDS):
        _, x, y = memory_plan(problem, keeps, threshold)
        smallest_y = y if smallest_y is None else min(smallest_y, y)
        tried.append(threshold)
        threshold = isqrt(x * y // 2)
    step = (isqrt(2 * threshold * threshold) - (smallest_y or 0)) // GRID
    if step > 0:
        tried += [(smallest_y or 0) + step * (trial + 1) for trial in range(GRID)]
    return tuple(tried)


def candidate_cuts(problem: Problem, kind: str) -> Keeps:
    """The positions, among the forward ops, after which a cut may be, and the values that a cut there keeps."""
    forward = problem.forward_ops
    if kind == "articulation":
        return {k: problem.ops[forward[k]].outputs for k in articulation_positions(problem)}
    if kind == "linearised":
        return {k: problem.ops[op].outputs for k, op in enumerate(forward)}
    position = {op: k for k, op in enumerate(forward)}
    last_read = [max((position.get(c, -1) for c in readers), default=-1) for readers in problem.consumers]
    crossing: list[int] = []
    keeps: dict[int, tuple[int, ...]] = {}
    for k, op in enumerate(forward):
        outputs = problem.ops[op].outputs
        crossing = [v for v in (*crossing, *outputs) if last_read[v] > k]
        keeps[k] = tuple(dict.fromkeys((*crossing, *outputs)))
    return keeps
