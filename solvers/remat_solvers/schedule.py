"""Turns a sequence of ops into a plan: the method decides what is computed when, liveness decides what is freed when.

A method that only recomputes produces a sequence: op indices in execution order, with repeats. An occurrence of an op
reads the latest instance of each input. An instance lives from its computation to its last reader; a result's last
instance lives to the end. So to keep a value, do not repeat its producer; to drop it and recompute it, repeat the
producer before the next reader. The Frees follow:

- an instance is freed right after its last reader, or right after its computation where it has no reader;
- of the outputs of a repeated op only those stay that are read before the op is repeated again;
- a forward result stays from its last instance before the boundary; later instances are fresh copies that are freed.

This is the smallest memory for the sequence: no instance can be freed earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from remat_solvers.errors import PlanError
from remat_solvers.plan import Action, Compute, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.simulate import Timeline, simulate


def store_all(problem: Problem) -> Plan:
    """The plan of the unmodified step: the problem's order, every value freed after its last use."""
    return plan_from_sequence(problem, range(len(problem.ops)))


def baseline(problem: Problem) -> Timeline:
    """The replay of the store-all plan, computed once per Problem: its peak and its time count as 100 %."""
    facts = vars(problem)  # where a Problem keeps its cached properties
    if "baseline" not in facts:
        facts["baseline"] = simulate(problem, store_all(problem))
    timeline: Timeline = facts["baseline"]
    return timeline


def tangents_op(problem: Problem) -> int | None:
    """The op that stands for the gradients that backward receives: the first backward op, if it has no inputs."""
    if problem.backward_ops:
        first = problem.backward_ops[0]
        op = problem.ops[first]
        if not op.inputs and not op.recomputable:
            return first
    return None


def plan_from_sequence(problem: Problem, sequence: Sequence[int]) -> Plan:
    """The plan that runs `sequence`, with Frees by liveness.

    The tangents, which exist from the moment backward is called, move to the first place after the boundary.
    Raises PlanError (its action is the position in the sequence) where an occurrence reads a value that no earlier one
    computes.
    """
    sequence = tangents_first(problem, sequence)
    ends = _ends(problem, sequence)
    compute = [Compute(op) for op in range(len(problem.ops))]
    free = [Free(value) for value in range(len(problem.values))]
    actions: list[Action] = []
    for position, op in enumerate(sequence):
        actions.append(compute[op])
        actions.extend(map(free.__getitem__, ends[position]))
    return Plan(actions)


def boundary_of(problem: Problem, sequence: Sequence[int]) -> int:
    """Number of occurrences up to the last first-computation of a forward op, that one included."""
    missing = set(problem.forward_ops)
    boundary = 0
    for position, op in enumerate(sequence):
        if op in missing:
            missing.remove(op)
            boundary = position + 1
    return boundary


def keeps_order(plan: Plan) -> bool:
    """Whether the first computations of `plan` are in the problem's order."""
    latest = -1
    for action in plan:
        if isinstance(action, Compute) and action.op > latest:
            if action.op != latest + 1:
                return False
            latest = action.op
    return True


def tangents_first(problem: Problem, sequence: Sequence[int]) -> Sequence[int]:
    """`sequence` with the tangents, if it has any, at the first place after the boundary."""
    tangents = tangents_op(problem)
    if tangents is None or tangents not in sequence:
        return sequence
    boundary = boundary_of(problem, sequence)
    rest = [op for op in sequence[boundary:] if op != tangents]
    return [*sequence[:boundary], tangents, *rest]


def forward_action_count(problem: Problem, plan: Plan) -> int:
    """Number of actions of `plan` that run inside the forward call: all up to the boundary.

    The boundary follows the last first computation of a forward op and the Free and Offload actions directly after it.
    """
    missing = set(problem.forward_ops)
    count = 0
    for position, action in enumerate(plan):
        if isinstance(action, Compute) and action.op in missing:
            missing.remove(action.op)
            count = position + 1
    while count < len(plan) and isinstance(plan[count], Free | Offload):
        count += 1
    return count


def plan_with_tangents_first(problem: Problem, plan: Plan) -> Plan:
    """`plan` as autograd runs it: all tangents exist from the first action of the backward call on."""
    tangents = tangents_op(problem)
    if tangents is None:
        return plan
    compute = Compute(tangents)
    count = forward_action_count(problem, plan)
    return Plan((*plan[:count], compute, *(action for action in plan[count:] if action != compute)))


def _ends(problem: Problem, sequence: Sequence[int]) -> list[list[int]]:
    """Per occurrence, the values whose instance ends with it, in the order of the op's inputs and outputs.

    The pass runs backwards: its first reader of a value after a computation of it is the last reader of the instance.
    """
    ops, values = problem.ops, problem.values
    boundary = boundary_of(problem, sequence)
    constant = [v.kind == "constant" for v in values]
    results = [v for v in problem.results if not constant[v]]
    forward_results = set(problem.forward_results)
    needed = [False] * len(values)  # whether the instance is read or kept later
    for value in results:
        needed[value] = True
    ends: list[list[int]] = [[] for _ in sequence]
    for position in range(len(sequence) - 1, -1, -1):
        op = ops[sequence[position]]
        for value in op.outputs:
            if value in forward_results and position >= boundary:
                continue  # the caller owns an instance already
            if not needed[value]:
                ends[position].append(value)
            needed[value] = False
        for value in dict.fromkeys(op.inputs):
            if not needed[value] and not constant[value]:
                ends[position].append(value)
                needed[value] = True
    for value, missing in enumerate(needed):
        if missing:
            _blame(problem, sequence, value)
    return ends


def _blame(problem: Problem, sequence: Sequence[int], value: int) -> None:
    """Raise PlanError at the first reader of a value that no earlier op computes."""
    name = problem.values[value].name
    for position, op in enumerate(sequence):
        if value in problem.ops[op].inputs:
            raise PlanError(
                position, f"op {op} reads value {value} ({name}), which no earlier op of the sequence computes"
            )
    raise PlanError(None, f"result {value} ({name}) is computed by no op of the sequence")
