"""The problem: one training step as a graph of ops over storages.

A value is a storage, not a tensor. A view costs nothing and lives as long as its base, so views are contracted before a
problem is built. Ops are in the order in which the unmodified step runs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from remat_solvers.errors import ProblemError

if TYPE_CHECKING:
    import networkx as nx

Kind: TypeAlias = Literal["constant", "activation", "gradient"]
Phase: TypeAlias = Literal["forward", "backward"]
Effect: TypeAlias = Literal["random", "buffer", "collective", "data"]

KINDS: tuple[Kind, ...] = ("constant", "activation", "gradient")
PHASES: tuple[Phase, ...] = ("forward", "backward")
EFFECTS: tuple[Effect, ...] = ("random", "buffer", "collective", "data")
MAX_INT = 2**63 - 1  # replays run on 64-bit arrays

WIRING = ("inputs", "outputs")  # fields of Op that are edges of the networkx graph
GRAPH_FIELDS = ("name", "results", "link", "reserve_bytes", "costs")  # attributes of the graph


@dataclass(frozen=True, slots=True)
class Value:
    """One storage."""

    name: str  # for people
    bytes: int  # size on the device
    kind: Kind  # constant: parameters, buffers, inputs; alive throughout, counted, never freed


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on storages."""

    name: str  # for people
    phase: Phase  # forward ops run in the first call, backward ops after the boundary
    inputs: tuple[int, ...]  # values read
    outputs: tuple[int, ...]  # values created; empty for a buffer update
    time_ns: int  # one execution
    workspace_bytes: int = 0  # alive only while the op runs, beside its outputs
    recomputable: bool = True  # False: computed exactly once
    effects: tuple[Effect, ...] = ()  # first computations of ops with an effect keep the problem's order
    target: str = ""  # `aten.mm.default`
    module: str = ""  # `h.0.mlp.c_fc`
    source: str = ""  # `model.py:41`


@dataclass(frozen=True, slots=True)
class Link:
    """The way to the host: one queue per direction, each copying one value at a time."""

    to_host_bytes_per_s: int  # device to host
    to_device_bytes_per_s: int  # host to device
    latency_ns: int = 0  # added to every copy
    host_bytes: int | None = None  # most bytes of distinct offloaded values; None: unlimited


@dataclass(frozen=True, slots=True)
class Costs:
    """The origin of a problem's times and workspaces, and how far they can be trusted."""

    source: str  # `measure`, or `roofline:NAME`
    device: str  # the device the costs describe
    threads: int  # intra-op threads during measurement; 0 where it does not matter
    torch: str  # version of torch
    workspace: bool  # False: workspace is unknown and counted as 0, so a real peak may be higher
    spread_ns: tuple[int, ...] = ()  # per op: median minus minimum of the timed runs (profile noise)


@dataclass(frozen=True)
class Problem:
    """One training step: ops, values, sizes and times. docs/memory-model.md says what a plan for it costs."""

    name: str
    ops: tuple[Op, ...]  # in the order the unmodified step runs them
    values: tuple[Value, ...]
    results: tuple[int, ...]  # values on the device at the end: outputs and gradients
    link: Link | None = None  # None: no offload
    reserve_bytes: int = 0  # counted as always in use, such as optimizer state
    costs: Costs | None = field(default=None, compare=False)  # provenance of times and workspaces

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def producer(self) -> tuple[int, ...]:
        """Per value: index of the op that creates it, -1 for constants."""
        producer = [-1] * len(self.values)
        for index, op in enumerate(self.ops):
            for value in op.outputs:
                producer[value] = index
        return tuple(producer)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Per value: indices of the ops that read it, ascending."""
        consumers: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.inputs):
                consumers[value].append(index)
        return tuple(tuple(c) for c in consumers)

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(v.bytes for v in self.values if v.kind == "constant")

    @cached_property
    def static_bytes(self) -> int:
        """Bytes in use at every moment of every plan: the constants and the reserve."""
        return self.constant_bytes + self.reserve_bytes

    @cached_property
    def forward_ops(self) -> tuple[int, ...]:
        """Indices of the forward ops, in order."""
        return tuple(i for i, op in enumerate(self.ops) if op.phase == "forward")

    @cached_property
    def backward_ops(self) -> tuple[int, ...]:
        """Indices of the backward ops, in order."""
        return tuple(i for i, op in enumerate(self.ops) if op.phase == "backward")

    @cached_property
    def forward_results(self) -> tuple[int, ...]:
        """Results that forward ops create, in the order of `results`. The caller owns them from the boundary on."""
        producer = self.producer
        return tuple(v for v in self.results if producer[v] >= 0 and self.ops[producer[v]].phase == "forward")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sizes, kinds and wiring that decide whether a plan can run on this problem.

        Names, times, workspace, link and reserve are not part of it.
        """
        structure = [
            [[v.bytes, v.kind] for v in self.values],
            [[op.target, op.phase, op.inputs, op.outputs, op.recomputable, op.effects] for op in self.ops],
            self.results,
        ]
        return hashlib.sha256(json.dumps(structure, separators=(",", ":")).encode()).hexdigest()

    def to_networkx(self) -> nx.DiGraph:
        """An annotated bipartite DiGraph, for people and for graph algorithms; `from_networkx` gives the problem back.

        Nodes `("op", i)` and `("value", i)` carry every field of the Op or Value beside its wiring. An edge from a
        value to an op says that the op reads the value, an edge from an op to a value that it creates it. `position`
        on an edge is the place among the op's inputs or outputs (the first, where a value is read twice: `positions`
        has all). The graph's attributes are name, results, link, reserve_bytes and costs.
        """
        import networkx as nx

        graph = nx.DiGraph(**{name: getattr(self, name) for name in GRAPH_FIELDS})
        for index, value in enumerate(self.values):
            graph.add_node(("value", index), **_attributes(value))
        for index, op in enumerate(self.ops):
            graph.add_node(("op", index), **_attributes(op))
            for read in dict.fromkeys(op.inputs):
                positions = tuple(k for k, v in enumerate(op.inputs) if v == read)
                graph.add_edge(("value", read), ("op", index), position=positions[0], positions=positions)
            for position, created in enumerate(op.outputs):
                graph.add_edge(("op", index), ("value", created), position=position, positions=(position,))
        return graph

    @staticmethod
    def from_networkx(graph: nx.DiGraph) -> Problem:
        """The problem whose `to_networkx()` gave `graph`, or an edited one: wiring is read from the edges.

        Raises ProblemError where the graph is no problem.
        """
        ops = [node for kind, node in graph if kind == "op"]
        values = [node for kind, node in graph if kind == "value"]
        for kind, indices in (("op", ops), ("value", values)):
            if sorted(indices) != list(range(len(indices))):
                raise ProblemError(f"{kind} nodes", "must be numbered from 0 without a gap")
        return Problem(
            ops=tuple(_graph_op(graph, i) for i in range(len(ops))),
            values=tuple(Value(**graph.nodes["value", i]) for i in range(len(values))),
            **{name: graph.graph[name] for name in GRAPH_FIELDS},
        )


def _check(problem: Problem) -> None:
    """Raise ProblemError at the first field that is not well formed."""
    _check_int("reserve_bytes", problem.reserve_bytes)
    for i, value in enumerate(problem.values):
        _check_int(f"values[{i}].bytes", value.bytes)
        _check_word(f"values[{i}].kind", value.kind, KINDS)
    if sum(op.time_ns for op in problem.ops) > MAX_INT:
        raise ProblemError("ops", "their times sum to 2**63 ns or more: check the units")
    produced: dict[int, int] = {}
    available = [v.kind == "constant" for v in problem.values]
    for i, op in enumerate(problem.ops):
        _check_op(problem, i, op, produced, available)
    for i, value in enumerate(problem.values):
        if value.kind != "constant" and i not in produced:
            raise ProblemError(f"values[{i}]", f"{value.kind} '{value.name}' is produced by no op")
    _check_indices("results", problem.results, len(problem.values))
    if len(set(problem.results)) != len(problem.results):
        raise ProblemError("results", "a value is listed twice")
    if problem.link is not None:
        _check_link(problem.link)
    if problem.costs is not None and len(problem.costs.spread_ns) not in (0, len(problem.ops)):
        raise ProblemError("costs.spread_ns", "needs one entry per op, or none")


def _check_op(problem: Problem, i: int, op: Op, produced: dict[int, int], available: list[bool]) -> None:
    where = f"ops[{i}]"
    _check_word(f"{where}.phase", op.phase, PHASES)
    if op.phase == "forward" and i and problem.ops[i - 1].phase == "backward":
        raise ProblemError(f"{where}.phase", "a forward op after a backward one: the whole forward runs first")
    _check_int(f"{where}.time_ns", op.time_ns)
    _check_int(f"{where}.workspace_bytes", op.workspace_bytes)
    for effect in op.effects:
        _check_word(f"{where}.effects", effect, EFFECTS)
    _check_indices(f"{where}.inputs", op.inputs, len(problem.values))
    _check_indices(f"{where}.outputs", op.outputs, len(problem.values))
    for k, value in enumerate(op.inputs):
        if value in op.outputs:
            raise ProblemError(f"{where}.inputs[{k}]", f"value {value} is also an output of this op")
        if not available[value]:
            raise ProblemError(
                f"{where}.inputs[{k}]",
                f"value {value} is not produced by an earlier op: the graph is cyclic or out of order",
            )
        if op.phase == "forward" and value in produced and problem.ops[produced[value]].phase == "backward":
            raise ProblemError(f"{where}.inputs[{k}]", "a forward op reads what a backward op produces")
    for k, value in enumerate(op.outputs):
        if problem.values[value].kind == "constant":
            raise ProblemError(f"{where}.outputs[{k}]", f"value {value} is a constant and has no producer")
        if value in produced:
            raise ProblemError(f"{where}.outputs[{k}]", f"value {value} is already produced by ops[{produced[value]}]")
        produced[value] = i
        available[value] = True


def _check_link(link: Link) -> None:
    for name, rate in (
        ("to_host_bytes_per_s", link.to_host_bytes_per_s),
        ("to_device_bytes_per_s", link.to_device_bytes_per_s),
    ):
        _check_int(f"link.{name}", rate)
        if rate == 0:
            raise ProblemError(f"link.{name}", "must be positive; use no link at all for no offload")
    _check_int("link.latency_ns", link.latency_ns)
    if link.host_bytes is not None:
        _check_int("link.host_bytes", link.host_bytes)


def _check_int(place: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ProblemError(place, f"must be an integer, not {number!r}")
    if not 0 <= number <= MAX_INT:
        raise ProblemError(place, f"must be from 0 to 2**63 - 1, not {number}")


def _check_word(place: str, word: str, words: Iterable[str]) -> None:
    if word not in words:
        raise ProblemError(place, f"must be one of {', '.join(words)}, not {word!r}")


def _check_indices(place: str, indices: tuple[int, ...], size: int) -> None:
    for k, index in enumerate(indices):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
            raise ProblemError(f"{place}[{k}]", f"must be an index from 0 to {size - 1}, not {index!r}")


def _graph_op(graph: nx.DiGraph, index: int) -> Op:
    node = ("op", index)
    inputs = _wiring(index, [(value, data) for (_, value), _, data in graph.in_edges(node, data=True)])
    outputs = _wiring(index, [(value, data) for _, (_, value), data in graph.out_edges(node, data=True)])
    return Op(**graph.nodes[node], inputs=inputs, outputs=outputs)


def _wiring(index: int, edges: list[tuple[int, dict[str, Any]]]) -> tuple[int, ...]:
    """Values in the order of the positions on their edges."""
    placed = sorted((position, value) for value, data in edges for position in data["positions"])
    if [position for position, _ in placed] != list(range(len(placed))):
        raise ProblemError(f"op node {index}", "the positions on its edges must count from 0 without a gap")
    return tuple(value for _, value in placed)


def _attributes(item: Op | Value) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item) if f.name not in WIRING}
