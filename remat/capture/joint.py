"""The joint graph: a training step as one pure graph, and questions about its nodes.

`normalize` makes it from a capture; `lower` turns it into a problem; emitted graphs are built from its nodes. Every
node carries fake tensors in `meta["val"]`, which know their shape, strides, dtype, device and storage.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from remat.capture.rnn.ops import RNN_FORWARD
from remat_solvers.errors import ExportError

aten = torch.ops.aten

STATISTICS_ONLY: frozenset[Any] = frozenset({aten._native_batch_norm_legit_functional.default})
"""Ops that read a buffer which the step updates, but whose other results do not depend on that buffer."""


@dataclass(frozen=True)
class InputSource:
    """The model's tensor that a placeholder of the joint graph stands for."""

    kind: Literal["parameter", "buffer", "argument"]
    index: int  # into the unique parameters, the unique buffers, or the unique tensor arguments


@dataclass(frozen=True)
class ReturnedTensor:
    """One tensor that the model returns: computed by the graph, an input itself, or a view taken outside the graph."""

    node: fx.Node | None  # the node that computes it; None: it is `base` or `source`, or a view of that
    base: int = -1  # index into JointGraph.outputs
    source: InputSource | None = None  # a parameter, buffer or argument
    replay: Any = None  # AOTAutograd's OutputAliasInfo, which takes the view; None: the base itself is returned
    like: Tensor | None = None  # fake tensor with the layout of the view
    requires_grad: bool = False
    visible: bool = True  # False: the model does not return it, but views of it


Role: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True)
class JointGraph:
    """A training step as one pure graph, with its nodes in running order: forward nodes, then backward nodes."""

    graph_module: fx.GraphModule  # without an output node: results are listed below
    inputs: tuple[tuple[fx.Node, InputSource], ...]
    tangents: tuple[tuple[fx.Node, int], ...]  # each with the index of its output
    outputs: tuple[ReturnedTensor, ...]
    gradients: tuple[tuple[fx.Node, InputSource], ...]
    role: dict[fx.Node, Role]  # phase of every call_function node
    origins: dict[fx.Node, tuple[str, str]]  # module path and source line, for nodes where they are known
    mutated: frozenset[fx.Node]  # placeholders that the step updates

    @property
    def nodes(self) -> list[fx.Node]:
        """Return the call_function nodes, in running order."""
        return [node for node in self.graph_module.graph.nodes if node.op == "call_function"]


def tensors_of(node: fx.Node) -> list[Tensor]:
    """Return the fake tensors that `node` computes (or stands for, where it is an input)."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def device_of(node: fx.Node) -> torch.device:
    """Return the device that the op `node` runs on."""
    tensors = tensors_of(node) or [t for read in node.all_input_nodes for t in tensors_of(read)]
    return tensors[0].device if tensors else torch.device("cpu")


def storage_of(tensor: Tensor) -> int:
    """Return an identifier of the storage under a fake tensor, which is equal for a tensor and its views."""
    if tensor.layout is not torch.strided:
        raise ExportError(
            f"the step computes a tensor of layout {tensor.layout}, which has no single storage to plan: use dense "
            "tensors and gradients (sparse=False for embeddings)"
        )
    return int(tensor.untyped_storage()._cdata)


def is_random(node: fx.Node) -> bool:
    """Return whether the op draws from a generator (attention or dropout with probability 0 does not)."""
    target = node.target
    if target is RNN_FORWARD:
        dropout, training = node.args[7:9]
        return bool(dropout) and bool(training)
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    for name in ("dropout_p", "p"):
        if name in names:
            position = names.index(name)
            default = target._schema.arguments[position].default_value
            probability = node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
            return bool(probability != 0)
    return True


def target_name(node: fx.Node) -> str:
    """Return the name of the op, such as `aten.mm.default`, or of the function that `node` calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def clone_as(tensor: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return a copy of `tensor` with a storage of its own and the given layout."""
    return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def inputs_read(joint: JointGraph) -> frozenset[fx.Node]:
    """Return the placeholders on whose contents an output or a gradient depends.

    Running statistics that the step only updates are not among them.
    """
    stack = [o.node for o in joint.outputs if o.node is not None] + [node for node, _ in joint.gradients]
    visited: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        reads = [*node.args[:3], *node.args[5:]] if node.target in STATISTICS_ONLY else node.all_input_nodes
        producer = node.args[0] if node.target is operator.getitem else None
        if isinstance(producer, fx.Node) and producer.target in STATISTICS_ONLY and node.args[1] in (3, 4):
            reads = [*producer.args[3:5]]
        stack.extend(read for read in reads if isinstance(read, fx.Node))
    return frozenset(node for node in visited if node.op == "placeholder")
