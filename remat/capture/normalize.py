"""Normalization of a captured graph: pure ops in running order, with updates and copies made explicit.

- Nodes whose result nothing needs are dropped; forward nodes come first, backward nodes after them.
- Buffer updates, which AOTAutograd returns as extra outputs, become `copy_` nodes.
- Running statistics, which training-mode batch norm ignores in its backward, are no longer passed to it.
- A gradient that autograd would have to copy ends in an explicit clone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd import descriptors as desc
from torch._functorch._aot_autograd.schemas import OutputType

from remat.capture.call import ModelState
from remat.capture.joint import (
    InputSource,
    JointGraph,
    ReturnedTensor,
    Role,
    clone_as,
    is_random,
    storage_of,
    tensors_of,
)
from remat.capture.source_location import ORIGIN_KEY
from remat.capture.trace import Capture
from remat_solvers.errors import ExportError

aten = torch.ops.aten

# Backward ops of training-mode batch norm, with the positions of the running statistics, which they ignore.
_IGNORED_STATISTICS: dict[Any, tuple[int, int]] = {aten.native_batch_norm_backward.default: (3, 4)}
for _name in ("cudnn_batch_norm_backward", "miopen_batch_norm_backward"):
    _IGNORED_STATISTICS[getattr(aten, _name).default] = (3, 4)
_TRAINING_FLAG = {aten.native_batch_norm_backward.default: 7}  # position; the other ops exist for training only


def normalize(captured: Capture, state: ModelState) -> JointGraph:
    """Make the joint graph of a capture. It takes over the capture's graph and changes it.

    Raises ExportError where nothing is trained, or where the step does something that no plan could repeat.
    """
    module = captured.graph_module
    graph = module.graph
    end = next(iter(reversed(graph.nodes)))
    assert end.op == "output"
    returned = list(zip(end.args[0], end.meta["desc"], strict=True))
    inputs, tangents = _read_placeholders(graph, returned, state)
    if not tangents:
        raise ExportError(
            "there is nothing to train: no output of the model depends on a parameter or input that requires a "
            "gradient. Set requires_grad on the tensors to train."
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
        origins=_read_origins(graph),
        mutated=frozenset(buffer for buffer, _ in updates),
    )
    _check_updates(joint)
    return joint


def _read_placeholders(
    graph: fx.Graph, returned: list[tuple[Any, Any]], state: ModelState
) -> tuple[dict[fx.Node, InputSource], list[tuple[fx.Node, int]]]:
    kinds = (desc.PlainAOTOutput, desc.IntermediateBaseAOTOutput)
    outputs = (descriptor for _, descriptor in returned if isinstance(descriptor, kinds))
    position: dict[Any, int] = {descriptor: i for i, descriptor in enumerate(outputs)}
    inputs: dict[fx.Node, InputSource] = {}
    tangents: list[tuple[fx.Node, int]] = []
    for node in graph.find_nodes(op="placeholder"):
        descriptor = node.meta["desc"]
        if isinstance(descriptor, desc.ParamAOTInput):
            inputs[node] = InputSource("parameter", int(descriptor.target[1:]))
        elif isinstance(descriptor, desc.BufferAOTInput):
            inputs[node] = InputSource("buffer", int(descriptor.target[1:]))
        elif isinstance(descriptor, desc.PlainAOTInput):
            inputs[node] = InputSource("argument", descriptor.idx)
        elif isinstance(descriptor, desc.TangentAOTInput):
            if isinstance(descriptor.output, desc.InputMutationAOTOutput):
                changed = _input_name(descriptor.output.mutated_input, state)
                raise ExportError(
                    f"forward changes {changed}, which requires a gradient, in place. Clone it first and change the "
                    "clone; change a parameter between steps, outside of forward."
                )
            tangents.append((node, position[descriptor.output]))
        else:
            raise ExportError(f"the captured graph has an input of an unsupported kind: {descriptor.expr()}")
    return inputs, tangents


def _input_name(descriptor: Any, state: ModelState) -> str:
    if isinstance(descriptor, desc.ParamAOTInput):
        return list(state.parameters)[int(descriptor.target[1:])]
    if isinstance(descriptor, desc.BufferAOTInput):
        return list(state.buffers)[int(descriptor.target[1:])]
    return f"argument {descriptor.idx}" if isinstance(descriptor, desc.PlainAOTInput) else "an input"


def _read_outputs(
    captured: Capture, returned: list[tuple[Any, Any]], inputs: dict[fx.Node, InputSource]
) -> list[ReturnedTensor]:
    """Return the model's outputs in order, then the bases that some of them are views of."""
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
    """Return pairs of an updated placeholder and the node that holds its new contents."""
    by_desc = {node.meta["desc"]: node for node in inputs}
    info = dict(zip(inputs, captured.metadata.input_info, strict=True))
    updates: list[tuple[fx.Node, fx.Node]] = []
    for node, descriptor in returned:
        if not isinstance(descriptor, desc.InputMutationAOTOutput):
            continue
        target = by_desc[descriptor.mutated_input]
        mutation = info[target]
        if mutation.mutates_metadata or mutation.mutates_storage_metadata:
            raise ExportError(
                f"the model changes the shape of an input in place ({descriptor.expr()}): return a new tensor"
            )
        if mutation.requires_grad and not mutation.mutations_under_no_grad_or_inference_mode:
            raise ExportError(
                f"the model changes an input that requires a gradient in place ({descriptor.expr()}): "
                "clone it first, then change the clone"
            )
        updates.append((target, node))
    return updates


def _drop_ignored_statistics(graph: fx.Graph) -> None:
    """Pass None for statistics that a backward ignores, so that it does not read a buffer that the forward updates."""
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
    """Return gradients with their inputs. One that autograd would copy (docs/execution.md) gets an explicit clone."""
    by_desc = {node.meta["desc"]: node for node in inputs}
    used_storages = {storage_of(node.meta["val"]) for node in graph.find_nodes(op="placeholder")}
    used_storages |= {storage_of(o.node.meta["val"]) for o in outputs if o.node is not None}
    gradients: list[tuple[fx.Node, InputSource]] = []
    for node, descriptor in returned:
        if not isinstance(descriptor, desc.GradAOTOutput) or node is None:
            continue
        target = by_desc[descriptor.grad_of]
        value, parameter = node.meta["val"], target.meta["val"]
        if storage_of(value) in used_storages or not _is_kept_by_autograd(value, parameter):
            stride = (
                parameter.stride() if _is_dense(parameter) else torch.empty(parameter.shape, device="meta").stride()
            )
            with graph.inserting_before(end):
                clone = graph.call_function(clone_as, (node, tuple(parameter.shape), tuple(stride)))
            with value.fake_mode:
                clone.meta["val"] = torch.empty_strided(parameter.shape, stride, dtype=value.dtype, device=value.device)
            clone.meta["partitioner_tag"] = "is_backward"
            clone.meta["seq_nr"] = node.meta.get("seq_nr")
            node, value = clone, clone.meta["val"]
        used_storages.add(storage_of(value))
        gradients.append((node, inputs[target]))
    return gradients


def _is_kept_by_autograd(gradient: Tensor, parameter: Tensor) -> bool:
    """Return whether AccumulateGrad keeps `gradient` instead of copying it, where `parameter.grad` is None."""
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
    """Add a copy_ node per updated buffer, after the last forward node that reads the old contents."""
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
    """Erase nodes that nothing needs, put forward nodes first, and return the phase of every node.

    Random ops stay even where nothing needs them, because they advance the generator.
    """
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
    in_forward: set[fx.Node] = set()  # nodes that the forward's results depend on
    stack = list(forward_roots)
    while stack:
        node = stack.pop()
        if node not in in_forward:
            in_forward.add(node)
            stack.extend(node.all_input_nodes)
    role: dict[fx.Node, Role] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            backward = node.meta.get("partitioner_tag") == "is_backward" and node not in in_forward
            role[node] = "backward" if backward else "forward"
    for node in [n for n in graph.nodes if role.get(n) == "backward"]:
        last = next(iter(reversed(graph.nodes)))
        if last is not node:
            last.append(node)
    graph.lint()
    return role


def _read_origins(graph: fx.Graph) -> dict[fx.Node, tuple[str, str]]:
    """Return module and source line of each node; backward nodes get those of their forward node."""
    by_sequence: dict[Any, tuple[str, str]] = {}
    origins: dict[fx.Node, tuple[str, str]] = {}
    for node in graph.nodes:
        origin = (node.meta.get("custom") or {}).get(ORIGIN_KEY)
        sequence = node.meta.get("seq_nr")
        if origin is None:
            origin = by_sequence.get(sequence)
        elif sequence is not None:
            by_sequence[sequence] = origin
        if origin is not None:
            origins[node] = origin
    return origins


def _check_updates(joint: JointGraph) -> None:
    """Raise ExportError where the backward reads a buffer that the forward overwrites: gradients would be wrong."""
    mutated = {storage_of(node.meta["val"]): node for node in joint.mutated}
    for node in joint.nodes:
        if joint.role[node] == "backward":
            for read in node.all_input_nodes:
                for tensor in tensors_of(read):
                    if storage_of(tensor) in mutated:
                        origin = " at ".join(part for part in reversed(joint.origins.get(node, ())) if part)
                        raise ExportError(
                            f"{origin or node.name}: the backward needs the old contents of a buffer that the forward "
                            "updates in place. Read a clone of the buffer before updating it."
                        )
