"""Checks a plan against every rule, independently of the replay: lists each action that is not allowed, and why.

This file shares no code with the replay that prices plans nor with any solver, so a mistake there cannot hide here. The
replay keeps a running total of bytes. Here every stay of a value on the device is an interval of actions, and the bytes
during an action are those of the intervals that cover it.

A plan may break many rules, so the check does not stop at the first: it records each violation, then treats the action
as allowed (a missing input counts as resident from then on), and continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, TypeAlias

from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem

Rule: TypeAlias = Literal[
    "action",  # not one of the four kinds
    "index",  # an op or value the problem does not have
    "input",  # an op runs while something it reads is not on the device
    "twice",  # an op that is not recomputable is computed again
    "never",  # an op of the problem is never computed
    "phase",  # a backward op runs before the forward is complete
    "order",  # first computations of ops with an effect in another order than the problem's
    "constant",  # a constant is freed, offloaded or fetched
    "free",  # a value that is not on the device is freed
    "boundary",  # a forward result is not on the device at the boundary, or is freed after it
    "result",  # a result is not on the device at the end
    "link",  # the problem has no link
    "offload",  # a value that is not on the device is offloaded
    "fetch",  # no host copy to fetch, or the value is on the device already
    "host",  # more bytes on the host than the link allows
    "peak",  # more bytes on the device than the budget
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which a plan breaks the rules."""

    action: int | None  # index into the plan; None: about the plan as a whole or its end
    rule: Rule  # short word for programs
    message: str  # sentence for people; names the op or value

    def __str__(self) -> str:
        where = "plan" if self.action is None else f"action {self.action}"
        return f"{where}: {self.rule}: {self.message}"


def validate(problem: Problem, plan: Plan, budget_bytes: int | None = None) -> list[Violation]:
    """Every violation of `plan`, by action; those of the whole plan last. An empty list means that the plan is valid.

    With `budget_bytes`, a peak above it (constants and reserve included) is a violation too.
    """
    reading = _Reading(problem, plan)
    for index, action in enumerate(plan):
        reading.read(index, action)
    reading.finish()
    if budget_bytes is not None:
        reading.check_peak(budget_bytes)
    return sorted(reading.found, key=lambda v: len(plan) if v.action is None else v.action)


@dataclass
class _Reading:
    """The state after the actions read so far, and the violations found."""

    problem: Problem
    plan: Plan
    found: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem, plan = self.problem, self.plan
        self.since = {v: 0 for v, value in enumerate(problem.values) if value.kind == "constant"}  # on the device
        self.steps = [0] * (len(plan) + 1)  # bytes that come (+) or go (-) with each action
        self.passing = [0] * len(plan)  # bytes that exist only during each action
        self.left: dict[int, int] = {}  # value -> action that last freed it
        self.on_host: set[int] = set()
        self.host_bytes = 0
        self.first: dict[int, int] = {}  # op -> action of its first computation
        self.last_effect: int | None = None  # latest op with an effect that was computed for the first time
        self.absent: set[int] = set()  # results already reported as missing
        self.forward_end = _forward_end(problem, plan)  # first action that is not part of the forward
        self.boundary = self.forward_end
        while self.boundary < len(plan) and isinstance(plan[self.boundary], Free | Offload):
            self.boundary += 1
        self.forward_results = {r: None for r in problem.results if _is_forward(problem, r)}  # an ordered set

    def report(self, action: int | None, rule: Rule, message: str) -> None:
        self.found.append(Violation(action, rule, message))

    def op(self, index: int) -> str:
        return f"op {index} '{self.problem.ops[index].name}'"

    def value(self, index: int) -> str:
        return f"value {index} '{self.problem.values[index].name}'"

    # The four actions

    def read(self, i: int, action: object) -> None:
        if i == self.boundary:
            self.cross_boundary()
        match action:
            case Compute(op):
                if self.in_range(i, "op", op, len(self.problem.ops)):
                    self.compute(i, op)
            case Free(value) | Offload(value) | Fetch(value):
                if self.in_range(i, "value", value, len(self.problem.values)):
                    self.move(i, action, value)
            case _:
                self.report(i, "action", f"{action!r} is none of Compute, Free, Offload, Fetch.")

    def in_range(self, i: int, what: str, index: object, size: int) -> bool:
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < size:
            return True
        self.report(i, "index", f"There is no {what} {index!r}: the problem has {size} {what}s, counted from 0.")
        return False

    def compute(self, i: int, index: int) -> None:
        op = self.problem.ops[index]
        for value in dict.fromkeys(op.inputs):
            if value not in self.since:
                self.report(i, "input", f"{self.op(index)} reads {self.value(value)}, which is not on the device.")
                self.arrive(i, value)
        if index in self.first:
            if not op.recomputable:
                before = self.first[index]
                self.report(i, "twice", f"{self.op(index)} is not recomputable and ran at action {before} already.")
        else:
            self.first[index] = i
            self.check_effects(i, index)
        if op.phase == "backward" and i < self.forward_end:
            late = f"the forward is complete only after action {self.forward_end - 1}"
            self.report(i, "phase", f"{self.op(index)} belongs to the backward, but {late}.")
        self.passing[i] += op.workspace_bytes
        for value in op.outputs:
            if value in self.since:
                self.passing[i] += self.problem.values[value].bytes
            else:
                self.arrive(i, value)

    def check_effects(self, i: int, index: int) -> None:
        if not self.problem.ops[index].effects:
            return
        if self.last_effect is not None and index < self.last_effect:
            later = self.op(self.last_effect)
            message = (
                f"{self.op(index)} has an effect: its first computation must be before that of {later}, not after it."
            )
            self.report(i, "order", message)
        self.last_effect = index

    def move(self, i: int, action: Free | Offload | Fetch, value: int) -> None:
        verb = type(action).__name__.lower()
        if self.problem.values[value].kind == "constant":
            self.report(i, "constant", f"Cannot {verb} {self.value(value)}: it is a constant, always on the device.")
        elif isinstance(action, Free):
            self.free(i, value)
        elif isinstance(action, Offload):
            self.offload(i, value)
        else:
            self.fetch(i, value)

    def free(self, i: int, value: int) -> None:
        if value not in self.since:
            self.report(i, "free", f"Cannot free {self.value(value)}: it is not on the device.")
        elif i >= self.boundary and value in self.forward_results:
            self.report(i, "boundary", f"{self.value(value)} is a result of the forward: it belongs to the caller now.")
        else:
            self.leave(i, value)

    def offload(self, i: int, value: int) -> None:
        link = self.problem.link
        if link is None:
            self.report(i, "link", f"Cannot offload {self.value(value)}: the problem has no link to the host.")
        if value not in self.since:
            self.report(i, "offload", f"Cannot offload {self.value(value)}: it is not on the device.")
        if value in self.on_host:
            return
        self.on_host.add(value)
        self.host_bytes += self.problem.values[value].bytes
        if link is not None and link.host_bytes is not None and self.host_bytes > link.host_bytes:
            over = f"the host's {link.host_bytes} bytes are exceeded by {self.host_bytes - link.host_bytes}"
            self.report(i, "host", f"Cannot offload {self.value(value)}: {over}.")

    def fetch(self, i: int, value: int) -> None:
        if value in self.since:
            self.report(i, "fetch", f"Cannot fetch {self.value(value)}: it is on the device already.")
            return
        if value not in self.on_host:
            self.report(i, "fetch", f"Cannot fetch {self.value(value)}: there is no host copy of it.")
        self.arrive(i, value)

    # Stays on the device

    def arrive(self, i: int, value: int) -> None:
        self.since[value] = i
        self.steps[i] += self.problem.values[value].bytes

    def leave(self, i: int, value: int) -> None:
        del self.since[value]
        self.left[value] = i
        self.steps[i] -= self.problem.values[value].bytes

    # The plan as a whole

    def cross_boundary(self) -> None:
        for value in self.forward_results:
            if value not in self.since and self.problem.producer[value] in self.first:
                self.absent.add(value)
                message = f"{self.value(value)} is a result of the forward, but is not on the device when it ends."
                self.report(self.left[value], "boundary", message)

    def finish(self) -> None:
        if self.boundary == len(self.plan):
            self.cross_boundary()
        for index in range(len(self.problem.ops)):
            if index not in self.first:
                self.report(None, "never", f"{self.op(index)} is never computed.")
        for value in self.problem.results:
            never = self.problem.producer[value] not in self.first
            if value not in self.since and value not in self.absent and not never:
                self.report(None, "result", f"{self.value(value)} is a result, but is not on the device at the end.")

    def check_peak(self, budget_bytes: int) -> None:
        constants = sum(value.bytes for value in self.problem.values if value.kind == "constant")
        floor = constants + self.problem.reserve_bytes
        stays = list(accumulate(self.steps[:-1], initial=floor))[1:]
        during = [stay + passing for stay, passing in zip(stays, self.passing, strict=True)]
        peak = max(during, default=floor)
        if floor > budget_bytes:
            over = floor - budget_bytes
            message = f"Constants and reserve alone take {floor} bytes, {over} over the budget of {budget_bytes}."
            self.report(None, "peak", message)
        elif peak > budget_bytes:
            where = during.index(peak)
            over = peak - budget_bytes
            action = self.plan[where]  # the first with the peak, so it adds bytes
            doing = self.op(action.op) if isinstance(action, Compute) else self.value(action.value)
            message = f"With {doing} the device holds {peak} bytes, {over} over the budget of {budget_bytes}."
            self.report(where, "peak", message)


def _forward_end(problem: Problem, plan: Plan) -> int:
    """The action after the last first computation of a forward op; 0 where none is computed."""
    end = 0
    seen: set[int] = set()
    for i, action in enumerate(plan):
        op = action.op if isinstance(action, Compute) else None
        if type(op) is not int or op in seen or not 0 <= op < len(problem.ops):
            continue
        seen.add(op)
        if problem.ops[op].phase == "forward":
            end = i + 1
    return end


def _is_forward(problem: Problem, value: int) -> bool:
    """Whether a forward op computes `value`; no op computes a constant."""
    producer = problem.producer[value]
    return producer >= 0 and problem.ops[producer].phase == "forward"
