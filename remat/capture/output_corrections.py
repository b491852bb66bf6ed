"""Corrections of traced outputs whose real layout differs, found by running the op once on synthetic tensors.

Fake tensors do not know how many bytes a fused RNN kernel keeps for its backward, nor that layer norm on the CPU keeps
its statistics in float32 where input and weight differ in dtype, nor that a functional copy into a slice copies the
whole storage of that slice. Sizes are part of a problem's fingerprint, so outputs are corrected whether costs are
measured or estimated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from remat.capture.costs.measure import measure_memory
from remat.capture.costs.synthetic import READS_WHOLE_STORAGE, synthetic_call
from remat.capture.joint import JointGraph, storage_of, tensors_of
from remat.capture.rnn.ops import RNN_FORWARD

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def correct_outputs(joint: JointGraph) -> None:
    """Replace, in the metadata of `joint`, the fake outputs whose real layout differs from the traced one."""
    for node in joint.nodes:
        if node.target is RNN_FORWARD:
            _correct_tape(node)
        elif node.target is torch.ops.aten.native_layer_norm.default and _is_mixed_precision(node):
            for position, real in enumerate(synthetic_call(node)()):  # type: ignore[arg-type, var-annotated]
                _correct(node, position, real.shape, real.dtype)
        elif node.target in READS_WHOLE_STORAGE:
            _correct_copy(node)


def _is_mixed_precision(node: fx.Node) -> bool:
    (first, *_) = tensors_of(node)
    return first.device.type == "cpu" and first.dtype in _LOW_PRECISION


def _correct_tape(node: fx.Node) -> None:
    _, kept_bytes = measure_memory(node)
    *outputs, _ = tensors_of(node)
    tape_bytes = kept_bytes - sum(t.untyped_storage().nbytes() for t in outputs)
    _correct(node, len(outputs), (max(0, tape_bytes),), torch.uint8)


def _correct_copy(node: fx.Node) -> None:
    """Give the copy a whole storage, as torch's clone_preserve_strides does unless the slice overlaps itself."""
    traced: Any = node.meta["val"]
    destination = tensors_of(node.all_input_nodes[0])[0]
    storage_bytes = destination.untyped_storage().nbytes()
    if storage_bytes == traced.untyped_storage().nbytes() or 0 in destination.stride():
        return
    old_storage = storage_of(traced)
    with traced.fake_mode:
        whole = torch.empty(storage_bytes // traced.element_size(), dtype=traced.dtype, device=traced.device)
        node.meta["val"] = whole.as_strided(traced.shape, destination.stride(), destination.storage_offset())
    _propagate(node, old_storage)


def _correct(node: fx.Node, position: int, shape: Any, dtype: torch.dtype) -> None:
    outputs = list(node.meta["val"])
    traced: Any = outputs[position]
    if traced.dtype == dtype and tuple(traced.shape) == tuple(shape):
        return
    with traced.fake_mode:
        outputs[position] = torch.empty(shape, dtype=dtype, device=traced.device)
    node.meta["val"] = type(node.meta["val"])(outputs)
    _propagate(node, storage_of(traced))


def _propagate(node: fx.Node, old_storage: int) -> None:
    """Trace the views of a replaced tensor again, and the views of those."""
    for user in node.users:
        tensors = tensors_of(user)
        if not any(storage_of(t) == old_storage for t in tensors):
            continue
        args = fx.map_arg(user.args, lambda n: n.meta["val"])
        kwargs = fx.map_arg(user.kwargs, lambda n: n.meta["val"])
        mode = next(t.fake_mode for t in tensors if isinstance(t, Tensor))  # type: ignore[attr-defined]
        with mode:
            target: Any = user.target
            user.meta["val"] = target(*args, **kwargs)
        _propagate(user, old_storage)
