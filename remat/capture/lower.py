"""Lowering of a joint graph to a problem: storages become values, nodes that create storages become ops.

A node whose results all lie in storages that exist already is a view. It costs nothing, is no op of the problem, and is
emitted again wherever a reader needs it. Every other node is an op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from remat.capture.call import ModelState
from remat.capture.joint import STATISTICS_ONLY, JointGraph, is_random, storage_of, target_name, tensors_of
from remat.capture.rnn.ops import RNN_BACKWARD
from remat_solvers.problem import Effect, Kind, Op, Problem, Value

_COLLECTIVE_NAMESPACES = ("_c10d_functional", "c10d", "c10d_functional", "_dtensor")
_DATA_DEPENDENT_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass
class Lowered:
    """A problem without costs, and the nodes of the joint graph that its ops and values belong to."""

    problem: Problem
    op_nodes: list[fx.Node | None]  # per op; None for the op `tangents`
    values_of: dict[fx.Node, tuple[int, ...]]  # per node: the values that its tensors lie in
    base: dict[int, tuple[fx.Node, int | None]]  # per value: the node that creates it, and which result it is
    views: frozenset[fx.Node]  # nodes that create no storage


def lower(joint: JointGraph, state: ModelState, name: str) -> Lowered:
    """Return the problem of `joint`, with zero times and workspaces. Raises ExportError where a tensor is not dense."""
    return _Lowering(joint, state).run(name)


class _Lowering:
    def __init__(self, joint: JointGraph, state: ModelState) -> None:
        self._joint = joint
        self._state = state
        self._value_of: dict[int, int] = {}  # per storage: its value
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._op_nodes: list[fx.Node | None] = []
        self._values_of: dict[fx.Node, tuple[int, ...]] = {}
        self._base: dict[int, tuple[fx.Node, int | None]] = {}
        self._views: set[fx.Node] = set()
        self._mutated: set[int] = set()  # values that the step updates

    def run(self, name: str) -> Lowered:
        self._add_constants()
        forward = [n for n in self._joint.nodes if self._joint.role[n] == "forward"]
        backward = [n for n in self._joint.nodes if self._joint.role[n] == "backward"]
        for node in forward:
            self._add_node(node)
        self._add_tangents()
        for node in backward:
            self._add_node(node)
        problem = Problem(name, tuple(self._ops), tuple(self._values), self._results())
        return Lowered(problem, self._op_nodes, self._values_of, self._base, frozenset(self._views))

    def _add_constants(self) -> None:
        names = {"parameter": list(self._state.parameters), "buffer": list(self._state.buffers)}
        for node, source in self._joint.inputs:
            label = names[source.kind][source.index] if source.kind in names else f"argument{source.index}"
            self._add_constant(node, node.meta["val"], label)
        for node in self._joint.graph_module.graph.find_nodes(op="get_attr"):
            for tensor in tensors_of(node):
                self._add_constant(node, tensor, str(node.target))
        self._mutated = {v for n in self._joint.mutated for v in self._values_of[n]}

    def _add_constant(self, node: fx.Node, tensor: Tensor, label: str) -> None:
        storage = storage_of(tensor)
        if storage not in self._value_of:
            self._new_value(storage, tensor, label, "constant", (node, None))
        self._values_of[node] = (self._value_of[storage],)

    def _new_value(self, storage: int, tensor: Tensor, label: str, kind: Kind, base: tuple[fx.Node, int | None]) -> int:
        index = len(self._values)
        self._value_of[storage] = index
        self._values.append(Value(label, tensor.untyped_storage().nbytes(), kind))
        self._base[index] = base
        return index

    def _add_tangents(self) -> None:
        outputs = []
        for node, _ in self._joint.tangents:
            tensor = node.meta["val"]
            value = self._new_value(storage_of(tensor), tensor, node.name, "gradient", (node, None))
            self._values_of[node] = (value,)
            outputs.append(value)
        self._ops.append(
            Op("tangents", "backward", (), tuple(outputs), time_ns=0, recomputable=False, target="tangents")
        )
        self._op_nodes.append(None)

    def _add_node(self, node: fx.Node) -> None:
        role = self._joint.role[node]
        tensors = tensors_of(node)
        created: list[int] = []
        for position, tensor in enumerate(_results(node)):
            if not isinstance(tensor, Tensor):
                continue
            storage = storage_of(tensor)
            if storage not in self._value_of:
                label = node.name if len(tensors) == 1 else f"{node.name}.{position}"
                kind: Kind = "activation" if role == "forward" else "gradient"
                several = isinstance(node.meta["val"], (list, tuple))
                created.append(self._new_value(storage, tensor, label, kind, (node, position if several else None)))
        self._values_of[node] = tuple(dict.fromkeys(self._value_of[storage_of(t)] for t in tensors))
        if not created and tensors and not is_random(node):
            self._views.add(node)
            return
        inputs = tuple(dict.fromkeys(v for read in node.all_input_nodes for v in self._values_of.get(read, ())))
        effects, recomputable = self._effects(node, inputs)
        module, source = self._joint.origins.get(node, ("", ""))
        self._op_nodes.append(node)
        self._ops.append(
            Op(
                name=node.name,
                phase=role,
                inputs=inputs,
                outputs=tuple(created),
                time_ns=0,
                recomputable=recomputable,
                effects=effects,
                target=target_name(node),
                module=module,
                source=source,
            )
        )

    def _effects(self, node: fx.Node, inputs: tuple[int, ...]) -> tuple[tuple[Effect, ...], bool]:
        target = node.target
        effects: list[Effect] = []
        recomputable = target is not RNN_BACKWARD  # it consumes its tape
        if is_random(node):
            effects.append("random")
            recomputable &= node.kwargs.get("generator") is None  # only states of default generators are replayed
        if target is torch.ops.aten.copy_.default or any(v in self._mutated for v in inputs):
            effects.append("buffer")
            recomputable &= target in STATISTICS_ONLY and self._only_updates_buffers(node)
        if isinstance(target, torch._ops.OpOverload):
            if target.namespace in _COLLECTIVE_NAMESPACES:
                effects.append("collective")
                recomputable = False
            if any(tag in target.tags for tag in _DATA_DEPENDENT_TAGS):
                effects.append("data")
                recomputable = False
        return tuple(effects), recomputable

    def _only_updates_buffers(self, node: fx.Node) -> bool:
        """Return whether the new statistics of a batch norm are written to its buffers and read by nothing else."""
        statistics = [user for user in node.users if user.args[1] in (3, 4)]
        return all(reader.target is torch.ops.aten.copy_.default for new in statistics for reader in new.users)

    def _results(self) -> tuple[int, ...]:
        nodes = [o.node for o in self._joint.outputs if o.node is not None]
        nodes += [node for node, _ in self._joint.gradients]
        values = dict.fromkeys(v for node in nodes for v in self._values_of[node])
        return tuple(v for v in values if self._values[v].kind != "constant")


def _results(node: fx.Node) -> Sequence[object]:
    """Return the results of a node by position; some backward ops return None for some of them."""
    results = node.meta["val"]
    return results if isinstance(results, (list, tuple)) else (results,)
