"""Chooses one implementation per op where there are several, as moDNN does for convolution algorithms.

In the manner of Chen, Chen, Hu: moDNN, DATE 2018 (see `modnn`): per op the fastest implementation whose workspace fits
the memory that is free at that op in the schedule; where none fits, the one of the smallest workspace, and other data
makes room for it.

SuperNeurons and vDNN choose for a given plan (`choose_workspaces_for_plan`): whatever a plan moves or recomputes, per
op the fastest implementation whose workspace fits the bytes that the plan leaves free at that step.

A problem's op has one time and one workspace. The caller states the alternatives by op index or by target, each as
(time_ns, workspace_bytes); the result is a new problem, for any solver:

    workspaces = {"convolution": ((900_000, 0), (400_000, 64 << 20)), 17: ((250_000, 0),)}
    problem = choose_workspaces(problem, budget_bytes, workspaces)
    result = solve(problem, budget_bytes, solver="modnn")

With a link, free memory is that of modnn's schedule; without one that of the unmodified step.
`choose_workspaces_for_plan(problem, result.plan, budget_bytes, workspaces)` keeps the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from remat_solvers.errors import InputError
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Link, Problem
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.transfers.demand_paging import DemandPaging, movable_values
from remat_solvers.toolkit.transfers.profile import StepProfile

Implementation: TypeAlias = tuple[int, int]  # time_ns, workspace_bytes
Workspaces: TypeAlias = Mapping[str | int, Sequence[Implementation]]


def fastest_within(implementations: Sequence[Implementation], free_bytes: int) -> Implementation:
    """The fastest implementation whose workspace fits (of two equally fast, the smaller); else the smallest workspace.

    So more free memory never makes an op slower.
    """
    fitting = [i for i in implementations if i[1] <= free_bytes]
    return min(fitting) if fitting else min(implementations, key=lambda i: (i[1], i[0]))


def choose_workspaces(problem: Problem, budget_bytes: int, workspaces: Workspaces) -> Problem:
    """`problem` with the time and workspace of the implementation chosen for each op that has alternatives.

    An index goes before the target of its op. Ops after one that does not fit at all get their smallest workspace.
    Raises InputError for an op or a target that the problem does not have, and for no or impossible alternatives.
    """
    alternatives = alternatives_of(problem, workspaces)
    linked = problem if problem.link is not None else replace(problem, link=Link(1, 1))
    movable = movable_values(problem, range(len(problem.ops))) if problem.link is not None else ()
    profile = StepProfile.of(linked, range(len(problem.ops)))
    execution = _ChoosingExecution(profile, movable, budget_bytes, alternatives)
    execution.run()
    smallest = {op: fastest_within(a, -1) for op, a in alternatives.items()}
    return with_implementations(problem, smallest | execution.chosen)


def choose_workspaces_for_plan(problem: Problem, plan: Plan, budget_bytes: int, workspaces: Workspaces) -> Problem:
    """`problem` with the implementations that fit beside what `plan` has on the device; the plan stays valid for it.

    An op that is computed several times has one implementation: the one for the time with least memory left. Where the
    smallest workspaces fit, so does the choice. Raises InputError as `choose_workspaces`, PlanError as `simulate`.
    """
    free = {op: budget_bytes - used for op, used in _without_workspace(problem, plan).items()}
    alternatives = alternatives_of(problem, workspaces)
    return with_implementations(problem, {op: fastest_within(a, free[op]) for op, a in alternatives.items()})


def _without_workspace(problem: Problem, plan: Plan) -> dict[int, int]:
    """Op -> most bytes on the device while it is computed, its workspace left out."""
    held = problem.static_bytes
    used: dict[int, int] = {}
    for action, after in zip(plan, simulate(problem, plan).memory_bytes, strict=True):
        if isinstance(action, Compute):
            now = held + sum(problem.values[v].bytes for v in problem.ops[action.op].outputs)
            used[action.op] = max(now, used.get(action.op, 0))
        held = int(after)
    return used


def with_implementations(problem: Problem, chosen: Mapping[int, Implementation]) -> Problem:
    """`problem` with these times and workspaces: op -> its implementation."""
    ops = list(problem.ops)
    for op, (time_ns, workspace_bytes) in chosen.items():
        ops[op] = replace(ops[op], time_ns=time_ns, workspace_bytes=workspace_bytes)
    return replace(problem, ops=tuple(ops))


class _ChoosingExecution(DemandPaging):
    """modnn's schedule; it chooses the implementation of each op when the op runs."""

    def __init__(
        self,
        profile: StepProfile,
        movable: Iterable[int],
        budget_bytes: int,
        alternatives: Mapping[int, Sequence[Implementation]],
    ) -> None:
        super().__init__(profile, movable, budget_bytes, "farthest")
        self.alternatives = alternatives
        self.chosen: dict[int, Implementation] = {}

    def op_bytes(self, position: int) -> int:
        op = self.profile.sequence[position]
        implementations = self.alternatives.get(op)
        if implementations is None:
            return super().op_bytes(position)
        return self._outputs_bytes(op) + min(workspace_bytes for _, workspace_bytes in implementations)

    def op_time_ns(self, position: int) -> int:
        op = self.profile.sequence[position]
        implementations = self.alternatives.get(op)
        if implementations is None:
            return super().op_time_ns(position)
        free_bytes = self.budget_bytes - self.held_bytes - self._outputs_bytes(op)
        self.chosen[op] = fastest_within(implementations, free_bytes)
        return self.chosen[op][0]

    def _outputs_bytes(self, op: int) -> int:
        return sum(self.size_bytes[v] for v in self.profile.problem.ops[op].outputs)


def alternatives_of(problem: Problem, workspaces: Workspaces) -> dict[int, Sequence[Implementation]]:
    """Op -> its implementations. An index goes before the target of its op; InputError as for `choose_workspaces`."""
    found: dict[int, Sequence[Implementation]] = {}
    for key, implementations in sorted(workspaces.items(), key=lambda item: isinstance(item[0], int)):
        if not implementations or any(min(i) < 0 for i in implementations):
            raise InputError(f"workspaces[{key!r}] must be one or more (time_ns, workspace_bytes), none negative")
        ops = [i for i, op in enumerate(problem.ops) if key == i or key == op.target]
        if not ops:
            raise InputError(f"workspaces[{key!r}]: the problem has no such op, nor an op of such a target")
        found.update(dict.fromkeys(ops, implementations))
    return found
