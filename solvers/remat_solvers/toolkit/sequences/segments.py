"""Segments of the forward pass: what is kept between them, and the op sequence that recomputes them.

A tree of segments over the forward ops in their order. Opening a segment makes what its cuts keep available (the
outputs of the op at the cut, or all that crosses it); its parts lie between the cuts. The whole forward pass is the
root, open from the start. When backward first reads a dropped value, the segments around it are opened from the
outside in, each at most once:

- an inner segment runs again as far as its last cut, keeps what its cuts keep and drops the rest;
- an innermost one runs again whatever backward reads of it, and keeps that for backward.

Only ops that are needed run again: those from which the wanted values follow, back to values that are available.
A value that enters a segment from further back than its kept start, as a skip connection does, is computed again
along with it. Outputs of ops that are not recomputable and the forward's results are always available.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from remat_solvers.problem import Problem

__all__ = ["Segment", "flat", "recompute_sequence", "recursive"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Forward ops `first` to `end` (positions among the forward ops, end excluded)."""

    first: int
    end: int
    cuts: tuple[int, ...] = ()  # positions of the ops after which it is cut
    parts: tuple[Segment, ...] = ()  # between the cuts, in order; empty: an innermost segment


def flat(size: int, cuts: Iterable[int]) -> Segment:
    """One level: a forward pass of `size` ops, cut after the ops at positions `cuts`."""
    ordered = tuple(sorted(set(cuts)))
    edges = [0, *(cut + 1 for cut in ordered), size]
    return Segment(0, size, ordered, tuple(Segment(a, b) for a, b in pairwise(edges) if a < b))


def recursive(size: int, candidates: Sequence[int], k: int) -> Segment:
    """Chen's recursion g(n) = k + g(n / (k + 1)): k cuts, evenly spread over the candidates, in every segment."""
    root = _recursive(0, size, list(candidates), k)
    if candidates and candidates[-1] not in root.cuts:
        root = Segment(root.first, root.end, (*root.cuts, candidates[-1]), root.parts)
    return root


def _recursive(first: int, end: int, candidates: list[int], k: int) -> Segment:
    """`candidates` are those inside; the last of them is the segment's own end, kept outside."""
    count = len(candidates)
    k = min(k, max(1, count))  # more have every candidate for a cut
    marks = sorted({round(j * count / (k + 1)) for j in range(1, k + 1)} - {0, count})
    if not marks:
        return Segment(first, end)
    cuts = tuple(candidates[mark - 1] for mark in marks)
    starts = (first, *(cut + 1 for cut in cuts))
    ends = (*(cut + 1 for cut in cuts), end)
    inside = [candidates[a:b] for a, b in zip([0, *marks], [*marks, count], strict=True)]
    parts = tuple(_recursive(a, b, c, k) for a, b, c in zip(starts, ends, inside, strict=True))
    return Segment(first, end, cuts, parts)


def recompute_sequence(
    problem: Problem, root: Segment, keeps: Mapping[int, Sequence[int]], *, keep_last: bool, on_demand: bool
) -> list[int]:
    """The op sequence of one step under the segmentation `root`: forward, then backward with what it recomputes.

    keeps: for the position of each cut, the values it keeps.
    keep_last: the last part of the root is not dropped (backward needs it at once).
    on_demand: an innermost segment runs again op by op as backward reads its values, each op once (Chen's mirrored
    nodes), not as a whole when backward first reads one of them.
    """
    return _Recompute(problem, root, keeps, on_demand).run(keep_last)


class _Recompute:
    def __init__(self, problem: Problem, root: Segment, keeps: Mapping[int, Sequence[int]], on_demand: bool) -> None:
        self.problem = problem
        self.root = root
        self.keeps = keeps
        self.on_demand = on_demand
        self.forward = problem.forward_ops
        self.position = {op: k for k, op in enumerate(self.forward)}
        self.sequence = list(self.forward)
        dropped = [False] * len(problem.values)
        for op in self.forward:
            if problem.ops[op].recomputable:
                for value in problem.ops[op].outputs:
                    dropped[value] = True
        for value in problem.results:
            dropped[value] = False
        self.dropped = dropped  # values that must be computed again before they can be read
        self.wanted = [any(problem.ops[c].phase == "backward" for c in readers) for readers in problem.consumers]

    def run(self, keep_last: bool) -> list[int]:
        self._keep(self._kept_by(self.root))
        if keep_last:
            last = self.root.parts[-1] if self.root.parts else self.root
            self._keep(self._outputs(self.forward[last.first : last.end]))
        for op in self.problem.backward_ops:
            inputs = self.problem.ops[op].inputs
            for value in sorted((v for v in inputs if self.dropped[v]), key=self.problem.producer.__getitem__)[::-1]:
                if self.dropped[value]:  # one opened for another input may have brought it
                    self._open_around(value)
            self.sequence.append(op)
        return self.sequence

    def _open_around(self, value: int) -> None:
        """Open the segments around `value`, from the outside in, until it is available."""
        position = self.position[self.problem.producer[value]]
        segment = self.root
        while segment.parts:
            segment = next(part for part in segment.parts if position < part.end)
            if segment.parts:
                kept = self._kept_by(segment)
                self.sequence += self._needed(kept)  # nothing where it was opened before
                self._keep(kept)
                if not self.dropped[value]:
                    return
        targets = [value]
        if not self.on_demand:
            inside = self._outputs(self.forward[segment.first : segment.end])
            targets = [v for v in inside if self.wanted[v]]
        run = self._needed(targets)
        self.sequence += run
        self._keep(self._outputs(run))

    def _kept_by(self, segment: Segment) -> list[int]:
        return [v for cut in segment.cuts for v in self.keeps[cut]]

    def _outputs(self, ops: Iterable[int]) -> list[int]:
        return [v for op in ops for v in self.problem.ops[op].outputs]

    def _needed(self, targets: Iterable[int]) -> list[int]:
        """The ops from which `targets` follow, back to available values, in the problem's order."""
        problem, dropped = self.problem, self.dropped
        stack = [v for v in targets if dropped[v]]
        needed: set[int] = set()
        while stack:
            op = problem.producer[stack.pop()]
            if op not in needed:
                needed.add(op)
                stack.extend(v for v in problem.ops[op].inputs if dropped[v])
        return sorted(needed)

    def _keep(self, values: Iterable[int]) -> None:
        for value in values:
            self.dropped[value] = False
