"""Solves one of Checkmate's programs: exactly, with rows added where they are needed, or by two-phase rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from remat_solvers.plan import Compute
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.recompute.checkmate.program import Amounts, CheckmateProgram, Retained, stage_sequence
from remat_solvers.result import Limits
from remat_solvers.schedule import plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.pulp_backend import Answer, Backend, Ended, minimise
from remat_solvers.toolkit.sequences.pruning import drop_useless

THRESHOLDS = (0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # the paper's, then those of the authors' code


@dataclass(frozen=True, slots=True)
class Solved:
    """The result of a program."""

    ended: Ended  # for Checkmate's schedules
    sequences: tuple[list[int], ...] = ()  # op sequences to be replayed: the optimum, the incumbent or the rounded ones
    bound_ns: int | None = None  # for all plans in the given order without offload
    interrupted: bool = False


def solve_exactly(
    problem: Problem,
    budget_bytes: int,
    backend: Backend,
    *,
    lazy: bool,
    seconds: float | None,
    retained: Retained | None = None,
) -> Solved:
    """The fastest of Checkmate's schedules, or the best one found by the time limit."""
    watch = Stopwatch(Limits(seconds))
    program = CheckmateProgram(problem, budget_bytes, moments=lazy, retained=retained)
    if not lazy:
        for stage in range(program.stages):
            program.add_stage_memory(stage)
    bound_ns: int | None = None
    while True:
        answer = minimise(program.program, backend, seconds=watch.remaining)
        proven = program.bound_ns(answer)
        if lazy and not program.stages_with_memory:
            bound_ns = proven
        solved = Solved(answer.ended, (), bound_ns, answer.interrupted)
        if answer.ended in (Ended.INFEASIBLE, Ended.UNKNOWN):
            return solved
        sequence = drop_useless(problem, program.sequence())
        crowded = crowded_stages(problem, sequence, budget_bytes) - program.stages_with_memory
        if answer.ended is Ended.OPTIMAL and crowded and lazy:
            for stage in sorted(crowded):
                program.add_stage_memory(stage)
            if proven is not None:
                program.add_time_bound(proven)
            continue
        solved = replace(solved, sequences=(sequence,))
        if lazy or answer.ended is not Ended.OPTIMAL:
            return solved
        return replace(solved, bound_ns=_certificate(problem, budget_bytes, backend, watch, retained))


def _certificate(
    problem: Problem, budget_bytes: int, backend: Backend, watch: Stopwatch, retained: Retained | None
) -> int | None:
    """The bound for all plans in the given order: the optimum of the program with nothing but moments."""
    program = CheckmateProgram(problem, budget_bytes, moments=True, retained=retained)
    return program.bound_ns(minimise(program.program, backend, seconds=watch.remaining))


def crowded_stages(problem: Problem, sequence: list[int], budget_bytes: int) -> set[int]:
    """The stages of `sequence` that exceed the budget when it is replayed."""
    plan = plan_from_sequence(problem, sequence)
    timeline = simulate(problem, plan)
    held = problem.static_bytes
    crowded: set[int] = set()
    seen: set[int] = set()
    for action, after in zip(plan, timeline.memory_bytes.tolist(), strict=True):
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            during = held + sum(problem.values[v].bytes for v in op.outputs) + op.workspace_bytes
            if during > budget_bytes:
                crowded.add(len(seen))
            seen.add(action.op)
        held = after
    # An op that the program computes before the tangents, the plan computes after them.
    return crowded | {stage - 1 for stage in crowded if stage and not problem.ops[stage - 1].inputs}


def solve_rounded(
    problem: Problem, budget_bytes: int, backend: Backend, *, lazy: bool, epsilon: float, seconds: float | None
) -> Solved:
    """Two-phase rounding: the relaxation within (1 - epsilon) of the budget, then algorithm 2 for every threshold."""
    program = CheckmateProgram(problem, int((1 - epsilon) * budget_bytes), moments=lazy)
    if not lazy:
        for stage in range(program.stages):
            program.add_stage_memory(stage)
    answer: Answer = minimise(program.program, backend, seconds=seconds, relaxed=True)
    if answer.ended is not Ended.OPTIMAL:
        return Solved(answer.ended, (), None, answer.interrupted)
    _, kept = program.amounts()
    sequences = tuple(repair(problem, kept, threshold, program.stages) for threshold in THRESHOLDS)
    return Solved(Ended.FEASIBLE, sequences, None, answer.interrupted)


def repair(problem: Problem, kept: Amounts, threshold: float, stages: int) -> list[int]:
    """Algorithm 2: the cheapest schedule that keeps the values whose amount in `kept` is above `threshold`.

    Outputs of ops that cannot be recomputed are kept wherever they would be missing.
    """
    ops, producer = problem.ops, problem.producer
    keeps = {key for key, amount in kept.items() if amount > threshold}
    runs: set[tuple[int, int]] = set()
    for stage in range(1, stages + 1):  # (1c): kept into a stage means kept into, or computed in, the one before
        for value in sorted(v for s, v in keeps if s == stage):
            op = producer[value]
            if (stage - 1, value) not in keeps and op < stage - 1 and ops[op].recomputable:
                runs.add((stage - 1, op))
    for stage in range(stages):  # (1b), from the last op of a stage to its first
        for op in range(min(stage, len(ops) - 1), -1, -1):
            if op != stage and (stage, op) not in runs:
                continue
            for value in ops[op].inputs:
                source = producer[value]
                if source >= 0 and (stage, value) not in keeps and ops[source].recomputable and source < stage:
                    runs.add((stage, source))
    return drop_useless(problem, stage_sequence(problem, runs))
