"""Replays a plan: the memory and time model that defines the cost of every plan.

One pass over the actions with a compute clock `t`, two copy queues and the set of values on the device:

    Compute(op)   starts at max(t, arrivals of the fetched inputs); while it runs, the device holds all of its
                  outputs and its workspace on top; afterwards the workspace and the fresh copy of any output
                  that was on the device already are gone, and t is its end
    Free(v)       t = max(t, end of every copy of v under way); the bytes go
    Offload(v)    the copy runs from max(t, to-host queue free, arrival of v if it is being fetched)
    Fetch(v)      the bytes count at once; the copy runs from max(t, to-device queue free); its host copy is
                  complete by then, since the Free that came between waited for it

A copy takes latency + ceil(bytes * 1e9 / rate) ns. The step ends when compute is through all actions and every
result has arrived. docs/memory-model.md explains the model, with the choices and their reasons.

This file only replays. `validate`, which shares no code with it, checks whether a plan keeps the rules of a training
step: every op computed, the boundary, ops that may not be recomputed, the host limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remat_solvers.errors import PlanError
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import MAX_INT, Link, Problem

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The cost of a plan. Bytes on the device include constants and the reserve."""

    peak_bytes: int  # most bytes on the device at any moment
    time_ns: int  # compute through all actions and every result arrived; = op times + wait_ns
    memory_bytes: NDArray[np.int64]  # per action: bytes on the device after it
    peak_action: int  # index of the first action during which the peak occurs; -1 for an empty plan
    boundary: int  # number of actions that run inside the first (forward) call
    wait_ns: int  # compute, or the end of the step, waiting for copies
    host_bytes: int  # sum of distinct offloaded values


def copy_ns(size_bytes: int, bytes_per_s: int, latency_ns: int) -> int:
    """Time of one copy: latency + ceil(size_bytes * 1e9 / bytes_per_s), exact in integers."""
    return latency_ns - (-size_bytes * NS_PER_S // bytes_per_s)


def simulate(problem: Problem, plan: Plan) -> Timeline:
    """Replay `plan` on `problem`.

    Raises PlanError with the index of the action where the plan cannot be replayed: an index out of range, an input
    that is not on the device, a Free of a constant or of a value that is not on the device, an Offload of a constant
    or without a link, a Fetch without a host copy or of a value that is on the device, or 2**63 bytes or more on the
    device. Raises it with index None where a result is not on the device at the end.
    """
    return _Replay(problem).run(plan)


class _Replay:
    """The state of one replay: flat lists indexed by value."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.size = [v.bytes for v in problem.values]
        self.constant = [v.kind == "constant" for v in problem.values]
        self.on_device = self.constant.copy()
        self.arrival = [0] * len(self.size)  # when the latest fetch of a value ends
        self.copied = [0] * len(self.size)  # when the latest copy to the host ends
        self.host: set[int] = set()  # values with a host copy, complete or under way
        self.now = 0
        self.wait = 0
        self.to_host_free = 0
        self.to_device_free = 0
        self.held = problem.static_bytes

    def run(self, plan: Plan) -> Timeline:
        ops = self.problem.ops
        memory: list[int] = []
        peak, peak_action = -1, -1
        boundary, at_boundary = 0, False
        computed = [False] * len(ops)
        for index, action in enumerate(plan):
            during = self.held
            if isinstance(action, Compute):
                during = self._compute(index, action.op)
                first = not computed[action.op]
                computed[action.op] = True
                at_boundary = first and ops[action.op].phase == "forward"
            elif isinstance(action, Free):
                self._free(index, action.value)
            elif isinstance(action, Offload):
                self._offload(index, action.value)
            elif isinstance(action, Fetch):
                self._fetch(index, action.value)
                during = self.held
                at_boundary = False
            else:
                raise PlanError(index, f"{action!r} is not an action")
            if at_boundary:
                boundary = index + 1
            if during > peak:
                if during > MAX_INT:
                    raise PlanError(index, f"the device would hold {during} bytes, more than 2**63 - 1")
                peak, peak_action = during, index
            memory.append(self.held)
        self._finish()
        return Timeline(
            peak_bytes=peak if plan else self.held,
            time_ns=self.now,
            memory_bytes=np.array(memory, dtype=np.int64),
            peak_action=peak_action,
            boundary=boundary,
            wait_ns=self.wait,
            host_bytes=sum(self.size[v] for v in self.host),
        )

    def _compute(self, index: int, op_index: int) -> int:
        """Run one op; the bytes on the device while it runs."""
        if type(op_index) is not int or not 0 <= op_index < len(self.problem.ops):
            raise PlanError(index, f"there is no op {op_index!r}; ops are numbered 0 to {len(self.problem.ops) - 1}")
        op = self.problem.ops[op_index]
        on_device = self.on_device
        start = self.now
        for value in op.inputs:
            if not on_device[value]:
                raise PlanError(
                    index, f"op {op_index} ({_label(op.name, op.module)}) reads {self._name(value)}, not on the device"
                )
            if self.arrival[value] > start:
                start = self.arrival[value]
        fresh = stays = 0
        for value in op.outputs:
            fresh += self.size[value]
            if not on_device[value]:
                stays += self.size[value]
                on_device[value] = True
        during = self.held + fresh + op.workspace_bytes
        self.held += stays
        self.wait += start - self.now
        self.now = start + op.time_ns
        return during

    def _free(self, index: int, value: int) -> None:
        self._check_value(index, value)
        if self.constant[value]:
            raise PlanError(index, f"{self._name(value)} is a constant and is never freed")
        if not self.on_device[value]:
            raise PlanError(index, f"{self._name(value)} is not on the device, so it cannot be freed")
        self._wait_until(max(self.copied[value], self.arrival[value]))
        self.on_device[value] = False
        self.held -= self.size[value]

    def _offload(self, index: int, value: int) -> None:
        self._check_value(index, value)
        link = self._link(index)
        if self.constant[value]:
            raise PlanError(index, f"{self._name(value)} is a constant and is never offloaded")
        if not self.on_device[value]:
            raise PlanError(index, f"{self._name(value)} is not on the device, so it cannot be offloaded")
        start = max(self.now, self.to_host_free, self.arrival[value])
        end = start + copy_ns(self.size[value], link.to_host_bytes_per_s, link.latency_ns)
        self.to_host_free = self.copied[value] = end
        self.host.add(value)

    def _fetch(self, index: int, value: int) -> None:
        self._check_value(index, value)
        link = self._link(index)
        if value not in self.host:
            raise PlanError(index, f"{self._name(value)} has no host copy to fetch")
        if self.on_device[value]:
            raise PlanError(index, f"{self._name(value)} is on the device already")
        start = max(self.now, self.to_device_free)
        end = start + copy_ns(self.size[value], link.to_device_bytes_per_s, link.latency_ns)
        self.to_device_free = self.arrival[value] = end
        self.on_device[value] = True
        self.held += self.size[value]

    def _finish(self) -> None:
        for value in self.problem.results:
            if not self.on_device[value]:
                raise PlanError(None, f"result {self._name(value)} is not on the device")
            self._wait_until(self.arrival[value])

    def _wait_until(self, moment: int) -> None:
        if moment > self.now:
            self.wait += moment - self.now
            self.now = moment

    def _link(self, index: int) -> Link:
        if self.problem.link is None:
            raise PlanError(index, "the problem has no link to the host, so nothing can be offloaded or fetched")
        return self.problem.link

    def _check_value(self, index: int, value: int) -> None:
        if type(value) is not int or not 0 <= value < len(self.size):
            raise PlanError(index, f"there is no value {value!r}; values are numbered 0 to {len(self.size) - 1}")

    def _name(self, value: int) -> str:
        v = self.problem.values[value]
        return f"value {value} ({v.name}, {v.bytes} bytes)"


def _label(name: str, module: str) -> str:
    return f"{name} in {module}" if module else name
