"""Rockmate's blocks: a stage of a chain as a problem of its own, and the options to save it and run it back.

The block of a stage has its forward ops, an op that stands for the gradients that come in (the tangents, in the last
stage), and its backward ops.
What is read from before, the state of the stage above all, is there and costs nothing. Gradients that leave are
results; a backward op runs once. Values and ops are numbered by first appearance, so that stages which do the same, at
the same sizes and in the same times, have equal blocks.

A block is asked for the fastest of Checkmate's schedules under pairs of budgets: one for its peak, and one for what
its forward leaves to its backward (checkmate_model.py, row (5)), in which the state after the block does not count,
since it is kept anyway. Budgets lie in even distances, as in the authors' code: peaks from what the block can do with
to what storing all takes, or to what there is; saved bytes from nothing to all. A pair whose answer follows from
another is not solved: where a schedule found under larger budgets fits, and where larger ones had none.

Blocks of more than `exact_ops` ops are contracted first (coarse.py), which leaves the schedules valid, not the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.checkmate.program import Retained
from remat_solvers.recompute.checkmate.solve import Solved, solve_exactly
from remat_solvers.schedule import plan_from_sequence, tangents_op
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.schedule import SaveOption, save_option
from remat_solvers.toolkit.graphs.contraction import contract
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended
from remat_solvers.toolkit.sequences.pruning import drop_useless

__all__ = ["Block", "BlockSearch", "Schedule", "block_of", "option_of"]


@dataclass(frozen=True, slots=True)
class Block:
    """What is the same in all stages that are alike; equal blocks are solved once."""

    problem: Problem  # forward ops, the op of the incoming gradients, backward ops
    after: frozenset[int]  # its values in the state after it


@dataclass(frozen=True, slots=True)
class Schedule:
    """One way through a block."""

    sequence: tuple[int, ...]  # of ops of the block, the gradients' op among them
    time_ns: int
    peak_bytes: int
    saved_bytes: int  # left to the backward, the state after the block not counted


def block_of(chain: Chain, stage: int) -> Block:
    """The block of a stage."""
    problem = chain.problem
    forward, entry, backward = _ops(chain, stage)
    inside = {*forward, entry, *backward}
    end = max(backward, default=-1)
    number: dict[int, int] = {v: k for k, v in enumerate(v for op in forward for v in problem.ops[op].outputs)}
    entering = dict.fromkeys(problem.ops[entry].outputs if entry is not None else ())
    entering |= dict.fromkeys(
        v
        for op in backward
        for v in problem.ops[op].inputs
        if (made := problem.producer[v]) >= 0 and problem.ops[made].phase == "backward" and made not in inside
    )
    for value in (*entering, *(v for op in backward for v in problem.ops[op].outputs)):
        number[value] = len(number)

    def copy(op: int) -> Op:
        given = problem.ops[op]
        return Op(
            name="",
            phase=given.phase,
            inputs=tuple(number[v] for v in dict.fromkeys(given.inputs) if v in number),
            outputs=tuple(number[v] for v in given.outputs),
            time_ns=given.time_ns,
            workspace_bytes=given.workspace_bytes,
            recomputable=given.recomputable and given.phase == "forward",
        )

    def stays(value: int) -> bool:
        """Beyond the block: for droppable values, that is the chain's business."""
        if chain.droppable[value]:
            return False
        of_forward = problem.ops[problem.producer[value]].phase == "forward"
        readers = problem.consumers[value]
        return value in problem.results or any(r not in inside if of_forward else r > end for r in readers)

    gradients = Op("", "backward", (), tuple(number[v] for v in entering), 0, recomputable=False)
    after = chain.state(stage + 1)
    return Block(
        Problem(
            name="block",
            ops=(*map(copy, forward), gradients, *map(copy, backward)),
            values=tuple(Value(str(k), problem.values[v].bytes, problem.values[v].kind) for v, k in number.items()),
            results=tuple(k for v, k in number.items() if stays(v)),
        ),
        frozenset(number[v] for v in after if v in number),
    )


def option_of(chain: Chain, stage: int, block: Block, schedule: Schedule) -> SaveOption:
    """A block's schedule as an option of one of its stages."""
    forward, entry, backward = _ops(chain, stage)
    ops = (*forward, entry, *backward)
    end = _boundary(block, schedule.sequence)
    run = [op for place in schedule.sequence if (op := ops[place]) is not None and op != entry]
    return save_option(chain, run[:end], [*([] if entry is None else [entry]), *run[end:]])


def _ops(chain: Chain, stage: int) -> tuple[tuple[int, ...], int | None, tuple[int, ...]]:
    """The ops of a stage: forward, the tangents where they are in it, backward."""
    here = chain.stages[stage]
    tangents = tangents_op(chain.problem)
    if tangents is None or tangents not in here.backward:
        return here.ops, None, here.backward
    return here.ops, tangents, tuple(op for op in here.backward if op != tangents)


def _boundary(block: Block, sequence: Sequence[int]) -> int:
    """Where the forward ends: after the first run of its last op."""
    last = len(block.problem.forward_ops) - 1
    return sequence.index(last) + 1 if last >= 0 else 0


def _uncounted(block: Block) -> frozenset[int]:
    """The values that no option gives up or need not count: the state after the block, and what cannot run again."""
    problem = block.problem
    fixed = {v for op in problem.ops if not op.recomputable for v in op.outputs}
    return frozenset({*block.after, *fixed, *problem.results})


def _spread(low: int, high: int, count: int) -> list[int]:
    """`count` numbers in even distances from `high` down to `low`; `high` alone where count is 1."""
    return list(dict.fromkeys(high - (high - low) * k // max(1, count - 1) for k in range(count)))


def measured(block: Block, sequence: Sequence[int]) -> Schedule:
    """What a sequence costs."""
    problem, end, uncounted = block.problem, _boundary(block, sequence), _uncounted(block)
    made: set[int] = set()
    saved: set[int] = set()
    for op in sequence[end:]:
        saved.update(v for v in problem.ops[op].inputs if v not in made)
        made.update(problem.ops[op].outputs)
    line = simulate(problem, plan_from_sequence(problem, sequence))
    saved_bytes = sum(problem.values[v].bytes for v in saved - uncounted)
    return Schedule(tuple(sequence), line.time_ns, line.peak_bytes, saved_bytes)


class BlockSearch:
    """The schedules of one block, found one pair of budgets after the other; the first stores all."""

    def __init__(self, block: Block, backend: Backend, exact_ops: int) -> None:
        self.block = block
        self.backend = backend
        self.schedules = [measured(block, range(len(block.problem.ops)))]
        self.programs = 0  # that were solved
        self.unproven = 0  # of these, stopped by their time limit
        self.interrupted = False
        self._coarse = contract(block.problem, exact_ops) if len(block.problem.ops) > exact_ops else None
        self._problem = block.problem if self._coarse is None else self._coarse.problem
        self._answers: list[tuple[int, int, Schedule | None]] = []  # (peak, saved, the fastest)

    def pairs(self, room_bytes: int, peaks: int, saves: int) -> list[tuple[int, int]]:
        """Budgets (peak, saved) from the largest to the smallest, with at most `room_bytes` for the peak."""
        unmodified = self.schedules[0]
        least, most = peak_bound_bytes(self._problem), min(unmodified.peak_bytes, room_bytes)
        if self.contracted:
            most = max(least, most)  # it counts more than the block needs
        if most < least:
            return []
        unlimited = sum(v.bytes for v in self.block.problem.values)  # what backward reads only through others as well
        saved = [unlimited, *_spread(0, unmodified.saved_bytes, saves)[1:]]
        return [(peak, most_saved) for peak in _spread(least, most, peaks) for most_saved in saved]

    @property
    def contracted(self) -> bool:
        """Whether the programs are not about the ops themselves."""
        return self._coarse is not None

    def solve(self, peak_bytes: int, saved_bytes: int, seconds: float | None) -> None:
        """Find the fastest schedule within both budgets, unless it is known."""
        if self._known(peak_bytes, saved_bytes):
            return
        self.programs += 1
        solved = self._program(peak_bytes, saved_bytes, seconds)
        self.interrupted = solved.interrupted
        if solved.ended not in (Ended.OPTIMAL, Ended.INFEASIBLE):
            self.unproven += 1
        if solved.ended is Ended.INFEASIBLE and self._coarse is None:
            self._answers.append((peak_bytes, saved_bytes, None))
        for sequence in solved.sequences:
            if self._coarse is not None:
                sequence = drop_useless(self.block.problem, self._coarse.expand(sequence))
            schedule = measured(self.block, sequence)
            if solved.ended is Ended.OPTIMAL:
                self._answers.append((peak_bytes, saved_bytes, schedule))
            if schedule not in self.schedules:
                self.schedules.append(schedule)

    def _known(self, peak_bytes: int, saved_bytes: int) -> bool:
        best = self.schedules[0]
        if best.peak_bytes <= peak_bytes and best.saved_bytes <= saved_bytes:
            return True
        return any(
            found is None or (found.peak_bytes <= peak_bytes and found.saved_bytes <= saved_bytes)
            for peak, saved, found in self._answers
            if peak >= peak_bytes and saved >= saved_bytes
        )

    def _program(self, peak_bytes: int, saved_bytes: int, seconds: float | None) -> Solved:
        fixed = _uncounted(self.block)
        uncounted = frozenset(k for k, value in enumerate(self._problem.values) if int(value.name) in fixed)
        retained = Retained(saved_bytes, uncounted)
        return solve_exactly(self._problem, peak_bytes, self.backend, lazy=True, seconds=seconds, retained=retained)
