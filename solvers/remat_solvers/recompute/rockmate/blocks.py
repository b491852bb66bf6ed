"""Rockmate's blocks: a stage of a chain as a problem of its own, and the options to save it and run its backward.

The block of a stage has its forward ops, an op that stands for the incoming gradients (the tangents, in the last
stage), and its backward ops. The values that it reads from before, the state of the stage above all, are resident and
cost nothing. Gradients that leave are results, and a backward op is computed once. Values and ops are numbered by first
appearance, so that stages with the same ops, sizes and times have equal blocks.

A block is solved for the fastest of Checkmate's schedules under pairs of budgets: one for its peak, and one for the
bytes that its forward leaves to its backward (`checkmate/program.py`, row (5)), in which the state after the block does
not count, since it is kept anyway. Budgets are evenly spaced, as in the authors' code: peaks from the block's floor to
the peak of storing all, or to the memory that is left; saved bytes from nothing to all. A pair whose answer follows
from another is not solved: one for which a schedule found under larger budgets fits, or larger budgets had none.

Blocks of more than `exact_ops` ops are contracted first (`toolkit/graphs/contraction.py`). Their schedules are valid,
but need not be the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remat_solvers.bounds import peak_bound_bytes
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.checkmate.program import Retained
from remat_solvers.recompute.checkmate.solve import Solved, solve_exactly
from remat_solvers.schedule import boundary_of, plan_from_sequence, tangents_op
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.chains.chain import Chain
from remat_solvers.toolkit.chains.schedule import SaveOption, read_before_computed, save_option
from remat_solvers.toolkit.graphs.contraction import contract
from remat_solvers.toolkit.programs.pulp_backend import Backend, Ended
from remat_solvers.toolkit.sequences.pruning import drop_useless


@dataclass(frozen=True, slots=True)
class Block:
    """A stage, without its place in the chain. Identical stages have equal blocks, which are solved once."""

    problem: Problem  # forward ops, the op of the incoming gradients, backward ops
    after: frozenset[int]  # its values in the state after it


@dataclass(frozen=True, slots=True)
class BlockSchedule:
    """A sequence of a block's ops, with its costs."""

    sequence: tuple[int, ...]  # of ops of the block, the op of the incoming gradients included
    time_ns: int
    peak_bytes: int
    saved_bytes: int  # left to the backward, without the state after the block


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
        if (p := problem.producer[v]) >= 0 and problem.ops[p].phase == "backward" and p not in inside
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

    def outlives(value: int) -> bool:
        """Whether a value is needed beyond the block; the chain decides that for droppable ones."""
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
            results=tuple(k for v, k in number.items() if outlives(v)),
        ),
        frozenset(number[v] for v in after if v in number),
    )


def option_of(chain: Chain, stage: int, block: Block, schedule: BlockSchedule) -> SaveOption:
    """The schedule of a block as an option of one of its stages."""
    forward, entry, backward = _ops(chain, stage)
    ops = (*forward, entry, *backward)
    end = boundary_of(block.problem, schedule.sequence)
    run = [op for place in schedule.sequence if (op := ops[place]) is not None and op != entry]
    return save_option(chain, run[:end], [*([] if entry is None else [entry]), *run[end:]])


def _ops(chain: Chain, stage: int) -> tuple[tuple[int, ...], int | None, tuple[int, ...]]:
    """The ops of a stage: forward, the tangents where they are among its ops, backward."""
    ops, backward = chain.stages[stage].ops, chain.stages[stage].backward
    tangents = tangents_op(chain.problem)
    if tangents is None or tangents not in backward:
        return ops, None, backward
    return ops, tangents, tuple(op for op in backward if op != tangents)


def _uncounted(block: Block) -> frozenset[int]:
    """The values that do not count as saved: the state after the block, results, and values that stay anyway."""
    problem = block.problem
    fixed = {v for op in problem.ops if not op.recomputable for v in op.outputs}
    return frozenset({*block.after, *fixed, *problem.results})


def _evenly_spaced(low: int, high: int, count: int) -> list[int]:
    """`count` numbers from `high` down to `low`; `high` alone where count is 1."""
    return list(dict.fromkeys(high - (high - low) * k // max(1, count - 1) for k in range(count)))


def scheduled(block: Block, sequence: Sequence[int]) -> BlockSchedule:
    """The schedule of a sequence, with the costs that its replay gives."""
    problem = block.problem
    saved = read_before_computed(problem, sequence[boundary_of(problem, sequence) :]) - _uncounted(block)
    timeline = simulate(problem, plan_from_sequence(problem, sequence))
    saved_bytes = sum(problem.values[v].bytes for v in saved)
    return BlockSchedule(tuple(sequence), timeline.time_ns, timeline.peak_bytes, saved_bytes)


class BlockSearch:
    """The schedules of one block, found for one pair of budgets after the other. The first schedule stores all."""

    def __init__(self, block: Block, backend: Backend, exact_ops: int) -> None:
        self.block = block
        self.backend = backend
        self.schedules = [scheduled(block, range(len(block.problem.ops)))]
        self.programs = 0  # that were solved
        self.unproven = 0  # of these, stopped by their time limit
        self.interrupted = False
        self._coarse = contract(block.problem, exact_ops) if len(block.problem.ops) > exact_ops else None
        self._problem = block.problem if self._coarse is None else self._coarse.problem
        self._answers: list[tuple[int, int, BlockSchedule | None]] = []  # (peak, saved, the fastest)

    def pairs(self, room_bytes: int, peaks: int, saves: int) -> list[tuple[int, int]]:
        """Budgets (peak, saved) from the largest to the smallest, with at most `room_bytes` for the peak."""
        unmodified = self.schedules[0]
        low, high = peak_bound_bytes(self._problem), min(unmodified.peak_bytes, room_bytes)
        if self.contracted:
            high = max(low, high)  # the contracted problem counts more than the block needs
        if high < low:
            return []
        unlimited = sum(v.bytes for v in self.block.problem.values)  # also what backward reads through others
        saved = [unlimited, *_evenly_spaced(0, unmodified.saved_bytes, saves)[1:]]
        return [(peak, saved_bytes) for peak in _evenly_spaced(low, high, peaks) for saved_bytes in saved]

    @property
    def contracted(self) -> bool:
        """Whether the programs are those of a contracted block."""
        return self._coarse is not None

    def solve(self, peak_bytes: int, saved_bytes: int, seconds: float | None) -> None:
        """Find the fastest schedule within both budgets, unless it is known."""
        if self._answered(peak_bytes, saved_bytes):
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
            schedule = scheduled(self.block, sequence)
            if solved.ended is Ended.OPTIMAL:
                self._answers.append((peak_bytes, saved_bytes, schedule))
            if schedule not in self.schedules:
                self.schedules.append(schedule)

    def _answered(self, peak_bytes: int, saved_bytes: int) -> bool:
        best = self.schedules[0]
        if best.peak_bytes <= peak_bytes and best.saved_bytes <= saved_bytes:
            return True
        return any(
            found is None or (found.peak_bytes <= peak_bytes and found.saved_bytes <= saved_bytes)
            for peak, saved, found in self._answers
            if peak >= peak_bytes and saved >= saved_bytes
        )

    def _program(self, peak_bytes: int, saved_bytes: int, seconds: float | None) -> Solved:
        of_block = _uncounted(self.block)
        uncounted = frozenset(k for k, value in enumerate(self._problem.values) if int(value.name) in of_block)
        retained = Retained(saved_bytes, uncounted)
        return solve_exactly(self._problem, peak_bytes, self.backend, lazy=True, seconds=seconds, retained=retained)
