"""The joint graph in a form that can be planned: pure ops in running order, updates and copies made explicit.

From a capture to a `JointGraph`:
- nodes whose result nothing needs are dropped; forward nodes come first, backward nodes after;
- buffer updates, which AOTAutograd returns as extra outputs, become `copy_` nodes;
- running statistics, which training-mode batch norm ignores in its backward, are no longer passed to it;
- a gradient that autograd would have to copy ends in an explicit clone.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd import descriptors as desc
from torch._functorch._aot_autograd.schemas import OutputType

from remat.capture.call import ModelState
from remat.capture.source_location import ORIGIN_KEY
from remat.capture.trace import Capture
from remat_solvers.errors import ExportError

__all__ = [
    "InputSource",
    "JointGraph",
    "ReturnedTensor",
    "clone_as",
    "device_of",
    "inputs_read",
    "is_random",
    "make_joint",
    "storage_of",
    "target_name",
    "tensors_of",
]

aten = torch.ops.aten

# backward ops of training-mode batch norm: positions of the running statistics, which they ignore
_IGNORED_STATISTICS: dict[Any, tuple[int, int]] = {aten.native_batch_norm_backward.default: (3, 4)}
for _name in ("cudnn_batch_norm_backward", "miopen_batch_norm_backward"):
    _IGNORED_STATISTICS[getattr(aten, _name).default] = (3, 4)
_TRAINING_FLAG = {aten.native_batch_norm_backward.default: 7}  # the others exist for training only

# ops that read a buffer which the step updates, but whose other results do not depend on it
STATISTICS_ONLY: frozenset[Any] = frozenset({aten._native_batch_norm_legit_functional.default})


@dataclass(frozen=True)
class InputSource:
    """Where a placeholder of the joint graph gets its tensor."""

    kind: Literal["parameter", "buffer", "argument"]
    index: int  # into unique parameters, unique buffers, or unique tensor arguments


@dataclass(frozen=True)
class ReturnedTensor:
    """One tensor the model returns: computed by the graph, an argument itself, or a view made outside the graph."""

    node: fx.Node | None  # None: `base` gives it
    base: int = -1  # view of: index into outputs (>= 0)
    source: InputSource | None = None  # view of, or exactly, this parameter, buffer or argument
    replay: Any = None  # AOTAutograd's OutputAliasInfo, to make the view; None: the base itself
    like: Tensor | None = None  # fake tensor with the layout of the view
    requires_grad: bool = False
    visible: bool = True  # False: a base that only other outputs are views of


Role: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True)
class JointGraph:
    """A training step as one pure graph. Nodes are in running order; `meta["val"]` holds fake tensors."""

    graph_module: fx.GraphModule
    inputs: tuple[tuple[fx.Node, InputSource], ...]
    tangents: tuple[tuple[fx.Node, int], ...]  # with the output each belongs to
    outputs: tuple[ReturnedTensor, ...]
    gradients: tuple[tuple[fx.Node, InputSource], ...]
    role: dict[fx.Node, Role]  # of every call_function node
    origins: dict[fx.Node, tuple[str, str]]  # module path and source line, where known
    mutated: frozenset[fx.Node]  # placeholders that the step updates

    @property
    def nodes(self) -> list[fx.Node]:
        """The call_function nodes, in running order."""
        return [node for node in self.graph_module.graph.nodes if node.op == "call_function"]


def tensors_of(node: fx.Node) -> list[Tensor]:
    """The fake tensors a node stands for."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def device_of(node: fx.Node) -> torch.device:
    """The device an op runs on."""
    reads = [t for read in node.all_input_nodes for t in tensors_of(read)]
    tensors = tensors_of(node) or reads
    return tensors[0].device if tensors else torch.device("cpu")


def storage_of(tensor: Tensor) -> int:
    """Identity of the storage under a fake tensor; equal for a tensor and its views."""
    if tensor.layout is not torch.strided:
        raise ExportError(
            f"the step makes a tensor of layout {tensor.layout}, which has no single storage to plan: use dense "
            "tensors and gradients (sparse=False for embeddings)"
        )
    return int(tensor.untyped_storage()._cdata)


def is_random(node: fx.Node) -> bool:
    """Whether the op draws from a generator (an attention or dropout with probability 0 does not)."""
    target = node.target
    if target is torch.ops.remat.rnn_forward.default:
        dropout, training = node.args[7:9]
        return bool(dropout) and bool(training)
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    for name in ("dropout_p", "p"):
        if name in names:
            at = names.index(name)
            default = target._schema.arguments[at].default_value
            given = node.args[at] if at < len(node.args) else node.kwargs.get(name, default)
            return bool(given != 0)
    return True


def target_name(node: fx.Node) -> str:
    """The op's name: `aten.mm.default`, or that of a function."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def clone_as(tensor: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A copy of `tensor` with storage of its own and the given layout."""
    return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def inputs_read(joint: JointGraph) -> frozenset[fx.Node]:
    """Placeholders on whose contents an output or a gradient depends; statistics that are only updated do not count."""
    stack = [o.node for o in joint.outputs if o.node is not None] + [node for node, _ in joint.gradients]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        reads = [*node.args[:3], *node.args[5:]] if node.target in STATISTICS_ONLY else node.all_input_nodes
        made_by = node.args[0] if node.target is operator.getitem else None
        if isinstance(made_by, fx.Node) and made_by.target in STATISTICS_ONLY and node.args[1] in (3, 4):
            reads = [*made_by.args[3:5]]
        stack.extend(read for read in reads if isinstance(read, fx.Node))
    return frozenset(node for node in seen if node.op == "placeholder")


def make_joint(captured: Capture, state: ModelState) -> JointGraph:
    """Bring a capture into planning form."""
    module = captured.graph_module
    graph = module.graph
    end = next(iter(reversed(graph.nodes)))
    assert end.op == "output"
    returned = list(zip(end.args[0], end.meta["desc"], strict=True))
    inputs, tangents = _read_placeholders(graph, returned, state)
    if not tangents:
        raise ExportError(
            "nothing to train: no output of the model depends on a parameter or input that requires a gradient. "
            "Set requires_grad on what should be trained."
        )
    outputs = _read_outputs(captured, returned, inputs)
    _drop_ignored_statistics(graph)
    updates = _read_updates(captured, returned, inputs)
    gradients = _clone_gradients(graph, end, returned, inputs, outputs)
    graph.erase_node(end)
    updated = _add_updates(graph, updates)
    roots = [o.node for o in outputs if o.node is not None] + [node for node, _ in gradients] + updated
    role = _drop_and_order(graph, roots, [o.node for o in outputs if o.node is not None] + updated)
    joint = JointGraph(
        graph_module=module,
        inputs=tuple(inputs.items()),
        tangents=tuple(tangents),
        outputs=tuple(outputs),
        gradients=tuple(gradients),
        role=role,
        origins=_origins(graph),
        mutated=frozenset(buffer for buffer, _ in updates),
    )
    _check_updates(joint)
    return joint


def _read_placeholders(
    graph: fx.Graph, returned: list[tuple[Any, Any]], state: ModelState
) -> tuple[dict[fx.Node, InputSource], list[tuple[fx.Node, int]]]:
    kinds = (desc.PlainAOTOutput, desc.IntermediateBaseAOTOutput)
    position: dict[Any, int] = {what: i for i, what in enumerate(w for _, w in returned if isinstance(w, kinds))}
    inputs: dict[fx.Node, InputSource] = {}
    tangents: list[tuple[fx.Node, int]] = []
    for node in graph.find_nodes(op="placeholder"):
        what = node.meta["desc"]
        if isinstance(what, desc.ParamAOTInput):
            inputs[node] = InputSource("parameter", int(what.target[1:]))
        elif isinstance(what, desc.BufferAOTInput):
            inputs[node] = InputSource("buffer", int(what.target[1:]))
        elif isinstance(what, desc.PlainAOTInput):
            inputs[node] = InputSource("argument", what.idx)
        elif isinstance(what, desc.TangentAOTInput):
            if isinstance(what.output, desc.InputMutationAOTOutput):
                changed = _name_of(what.output.mutated_input, state)
                raise ExportError(
                    f"forward changes {changed}, which requires a gradient, in place. Clone it first and change the "
                    "clone; change a parameter between steps, outside of forward."
                )
            tangents.append((node, position[what.output]))
        else:
            raise ExportError(f"the captured graph has an input of a kind that is not supported: {what.expr()}")
    return inputs, tangents


def _name_of(what: Any, state: ModelState) -> str:
    if isinstance(what, desc.ParamAOTInput):
        return list(state.parameters)[int(what.target[1:])]
    if isinstance(what, desc.BufferAOTInput):
        return list(state.buffers)[int(what.target[1:])]
    return f"argument {what.idx}" if isinstance(what, desc.PlainAOTInput) else "an input"


def _read_outputs(
    captured: Capture, returned: list[tuple[Any, Any]], inputs: dict[fx.Node, InputSource]
) -> list[ReturnedTensor]:
    """User outputs in order, then the bases that some of them are views of."""
    infos = captured.metadata.output_info
    grads = captured.requires_grad
    plain = {d.idx: n for n, d in returned if isinstance(d, desc.PlainAOTOutput)}
    bases = [n for n, d in returned if isinstance(d, desc.IntermediateBaseAOTOutput)]
    sources = list(inputs.values())
    outputs: list[ReturnedTensor] = []
    for index, info in enumerate(infos):
        node = plain[index]
        like = node.meta["val"] if isinstance(node, fx.Node) else None
        kind = info.output_type
        common: dict[str, Any] = {"requires_grad": grads[index]}
        if kind is OutputType.is_input:
            outputs.append(ReturnedTensor(None, source=sources[info.base_idx], **common))
        elif kind is OutputType.alias_of_input:
            outputs.append(ReturnedTensor(None, source=sources[info.base_idx], replay=info, like=like, **common))
        elif kind is OutputType.alias_of_intermediate_base_is_user_output:
            outputs.append(ReturnedTensor(None, base=info.base_idx, replay=info, like=like, **common))
        elif kind in (OutputType.alias_of_intermediate, OutputType.alias_of_intermediate_save_as_output):
            outputs.append(ReturnedTensor(None, base=len(infos) + info.base_idx, replay=info, like=like, **common))
        else:
            outputs.append(ReturnedTensor(node, like=like, **common))
    outputs.extend(ReturnedTensor(node, like=node.meta["val"], requires_grad=True, visible=False) for node in bases)
    return outputs


def _read_updates(
    captured: Capture, returned: list[tuple[Any, Any]], inputs: dict[fx.Node, InputSource]
) -> list[tuple[fx.Node, fx.Node]]:
    """Pairs of a placeholder and the node that holds its new contents."""
    by_desc = {node.meta["desc"]: node for node in inputs}
    info = dict(zip(inputs, captured.metadata.input_info, strict=True))
    updates: list[tuple[fx.Node, fx.Node]] = []
    for node, what in returned:
        if not isinstance(what, desc.InputMutationAOTOutput):
            continue
        target = by_desc[what.mutated_input]
        mutation = info[target]
        if mutation.mutates_metadata or mutation.mutates_storage_metadata:
            raise ExportError(f"the model changes the shape of an input in place ({what.expr()}): return a new tensor")
        if mutation.requires_grad and not mutation.mutations_under_no_grad_or_inference_mode:
            raise ExportError(
                f"the model changes an input that requires a gradient in place ({what.expr()}): "
                "clone it first, then change the clone"
            )
        updates.append((target, node))
    return updates


def _drop_ignored_statistics(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target in _IGNORED_STATISTICS:
            flag = _TRAINING_FLAG.get(node.target)
            if flag is None or node.args[flag]:
                args = list(node.args)
                for position in _IGNORED_STATISTICS[node.target]:
                    args[position] = None
                node.args = tuple(args)


def _clone_gradients(
    graph: fx.Graph,
    end: fx.Node,
    returned: list[tuple[Any, Any]],
    inputs: dict[fx.Node, InputSource],
    outputs: list[ReturnedTensor],
) -> list[tuple[fx.Node, InputSource]]:
    """Gradients with their sources. One that autograd would copy (docs/execution.md) gets an explicit clone."""
    by_desc = {node.meta["desc"]: node for node in inputs}
    taken = {storage_of(node.meta["val"]) for node in graph.find_nodes(op="placeholder")}
    taken |= {storage_of(o.node.meta["val"]) for o in outputs if o.node is not None}
    gradients: list[tuple[fx.Node, InputSource]] = []
    for node, what in returned:
        if not isinstance(what, desc.GradAOTOutput) or node is None:
            continue
        of = by_desc[what.grad_of]
        value, wanted = node.meta["val"], of.meta["val"]
        if storage_of(value) in taken or not _is_taken_over(value, wanted):
            stride = wanted.stride() if _is_dense(wanted) else torch.empty(wanted.shape, device="meta").stride()
            with graph.inserting_before(end):
                clone = graph.call_function(clone_as, (node, tuple(wanted.shape), tuple(stride)))
            with value.fake_mode:
                clone.meta["val"] = torch.empty_strided(wanted.shape, stride, dtype=value.dtype, device=value.device)
            clone.meta["partitioner_tag"] = "is_backward"
            clone.meta["seq_nr"] = node.meta.get("seq_nr")
            node, value = clone, clone.meta["val"]
        taken.add(storage_of(value))
        gradients.append((node, inputs[of]))
    return gradients


def _is_taken_over(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether AccumulateGrad keeps `gradient` as it is instead of copying it, when `parameter.grad` is None."""
    if gradient.untyped_storage().nbytes() != gradient.numel() * gradient.element_size():
        return False
    if not _is_dense(gradient) or gradient.dtype != parameter.dtype:
        return False
    if not _is_dense(parameter):
        return gradient.is_contiguous()
    sizes = zip(gradient.shape, gradient.stride(), parameter.stride(), strict=True)
    return all(n == 1 or a == b for n, a, b in sizes)


def _is_dense(tensor: Tensor) -> bool:
    return bool(aten.is_non_overlapping_and_dense.default(tensor))


def _add_updates(graph: fx.Graph, updates: list[tuple[fx.Node, fx.Node]]) -> list[fx.Node]:
    """A copy_ node per updated buffer, after the last forward node that reads the old contents."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    readers: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.meta.get("partitioner_tag") != "is_backward":
            for read in node.all_input_nodes:
                for tensor in tensors_of(read):
                    readers.setdefault(storage_of(tensor), []).append(node)
    added: list[fx.Node] = []
    for buffer, new in updates:
        candidates = [new, *readers.get(storage_of(buffer.meta["val"]), [])]
        last = max((n for n in candidates if n in position), key=position.__getitem__)
        if last.op == "placeholder":
            last = next(reversed(graph.find_nodes(op="placeholder")))
        with graph.inserting_after(last):
            update = graph.call_function(aten.copy_.default, (buffer, new))
        update.meta["partitioner_tag"] = "is_forward"
        update.meta["val"] = None
        for key in ("seq_nr", "custom"):
            if key in new.meta:
                update.meta[key] = new.meta[key]
        added.append(update)
    return added


def _drop_and_order(graph: fx.Graph, roots: list[fx.Node], forward_roots: list[fx.Node]) -> dict[fx.Node, Role]:
    """Erase what nothing needs (random draws stay: they move the generator) and put forward nodes first."""
    needed: set[fx.Node] = set()
    stack = list(roots) + [n for n in graph.nodes if n.op == "call_function" and is_random(n)]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node not in needed:
            graph.erase_node(node)
    before: set[fx.Node] = set()
    stack = list(forward_roots)
    while stack:
        node = stack.pop()
        if node not in before:
            before.add(node)
            stack.extend(node.all_input_nodes)
    role: dict[fx.Node, Role] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            backward = node.meta.get("partitioner_tag") == "is_backward" and node not in before
            role[node] = "backward" if backward else "forward"
    for node in [n for n in graph.nodes if role.get(n) == "backward"]:
        last = next(iter(reversed(graph.nodes)))
        if last is not node:
            last.append(node)
    graph.lint()
    return role


def _origins(graph: fx.Graph) -> dict[fx.Node, tuple[str, str]]:
    """Module and line of each node; backward nodes have those of their forward node."""
    by_sequence: dict[Any, tuple[str, str]] = {}
    places: dict[fx.Node, tuple[str, str]] = {}
    for node in graph.nodes:
        place = (node.meta.get("custom") or {}).get(ORIGIN_KEY)
        sequence = node.meta.get("seq_nr")
        if place is None:
            place = by_sequence.get(sequence)
        elif sequence is not None:
            by_sequence[sequence] = place
        if place is not None:
            places[node] = place
    return places


def _check_updates(joint: JointGraph) -> None:
    """A backward that reads a buffer the forward has already overwritten would be silently wrong."""
    mutated = {storage_of(node.meta["val"]): node for node in joint.mutated}
    for node in joint.nodes:
        if joint.role[node] == "backward":
            for read in node.all_input_nodes:
                for tensor in tensors_of(read):
                    if storage_of(tensor) in mutated:
                        where = " at ".join(p for p in reversed(joint.origins.get(node, ())) if p)
                        raise ExportError(
                            f"{where or node.name}: the backward needs the old contents of a buffer that the forward "
                            "updates in place. Read a clone of the buffer before updating it."
                        )
