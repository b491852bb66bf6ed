"""Builds the op sequence of a step whose forward pass is cut into segments, each recomputed when backward needs it.

A tree of segments lies over the forward ops in their order. The cuts of a segment say which values stay when it is
opened (the outputs of the op at the cut, or all values that cross it); its parts lie between the cuts. The whole
forward pass is the root, open from the start. When backward first reads a dropped value, the segments around it are
opened from the outside in, each at most once:

- an inner segment is recomputed up to its last cut; it keeps the values of its cuts and drops the rest
- an innermost segment recomputes the values that backward reads of it, and keeps them for backward

Only the ops that these values follow from are recomputed, back to values that are resident. A value that enters a
segment from before its start, as a skip connection does, is recomputed with it unless it is resident. Outputs of ops
that are not recomputable and the results of the forward are always resident.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.dropped_values import droppable, ops_to_restore


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive forward ops, by their positions among the forward ops."""

    first: int
    end: int  # excluded
    cuts: tuple[int, ...] = ()  # positions of the ops after which it is cut
    parts: tuple[Segment, ...] = ()  # the segments between the cuts, in order; empty: an innermost segment


def flat(size: int, cuts: Iterable[int]) -> Segment:
    """One level of segments: a forward pass of `size` ops, cut after the ops at positions `cuts`."""
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
    """The same for the ops `first` to `end`. The last of the `candidates` is the end of the segment, whose values the
    segment around it keeps."""
    count = len(candidates)
    k = min(k, max(1, count))  # as many cuts as candidates already cut at every one
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
    """The op sequence of one step under the segmentation `root`: forward, then backward with its recomputations.

    keeps: the values that each cut keeps, by its position.
    keep_last: the last part of the root is not dropped, since backward needs it at once.
    on_demand: an innermost segment is recomputed op by op as backward reads its values, each op once (the mirrored
    nodes of Chen et al.), not as a whole when backward first reads one of them.
    """
    return _Recomputation(problem, root, keeps, on_demand).sequence_of_step(keep_last)


class _Recomputation:
    def __init__(self, problem: Problem, root: Segment, keeps: Mapping[int, Sequence[int]], on_demand: bool) -> None:
        self.problem = problem
        self.root = root
        self.keeps = keeps
        self.on_demand = on_demand
        self.forward = problem.forward_ops
        self.position = {op: k for k, op in enumerate(self.forward)}
        self.sequence = list(self.forward)
        self.dropped = droppable(problem)  # per value: it must be recomputed before it can be read
        self.backward_reads = [
            any(problem.ops[reader].phase == "backward" for reader in readers) for readers in problem.consumers
        ]

    def sequence_of_step(self, keep_last: bool) -> list[int]:
        self._keep(self._kept_by(self.root))
        if keep_last:
            last = self.root.parts[-1] if self.root.parts else self.root
            self._keep(self._outputs(self.forward[last.first : last.end]))
        for op in self.problem.backward_ops:
            inputs = self.problem.ops[op].inputs
            for value in sorted((v for v in inputs if self.dropped[v]), key=self.problem.producer.__getitem__)[::-1]:
                if self.dropped[value]:  # a segment opened for another input may have restored it
                    self._open_around(value)
            self.sequence.append(op)
        return self.sequence

    def _open_around(self, value: int) -> None:
        """Open the segments around `value`, from the outside in, until it is resident."""
        position = self.position[self.problem.producer[value]]
        segment = self.root
        while segment.parts:
            segment = next(part for part in segment.parts if position < part.end)
            if segment.parts:
                kept = self._kept_by(segment)
                self.sequence += ops_to_restore(self.problem, kept, self.dropped)  # none if it was opened before
                self._keep(kept)
                if not self.dropped[value]:
                    return
        targets = [value]
        if not self.on_demand:
            inside = self._outputs(self.forward[segment.first : segment.end])
            targets = [v for v in inside if self.backward_reads[v]]
        ops = ops_to_restore(self.problem, targets, self.dropped)
        self.sequence += ops
        self._keep(self._outputs(ops))

    def _kept_by(self, segment: Segment) -> list[int]:
        return [v for cut in segment.cuts for v in self.keeps[cut]]

    def _outputs(self, ops: Iterable[int]) -> list[int]:
        return [v for op in ops for v in self.problem.ops[op].outputs]

    def _keep(self, values: Iterable[int]) -> None:
        for value in values:
            self.dropped[value] = False
