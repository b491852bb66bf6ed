"""Roofline estimates of the time of an op: the larger of its arithmetic and its memory traffic, plus a launch.

    time = max(FLOPs / (FLOP/s), bytes moved / (bytes/s)) + launch

The model is that of Williams, Waterman and Patterson (CACM 2009). The peaks are those of the vendors' data sheets
(dense, without sparsity). Real kernels reach less, but plans depend on ratios between ops. Workspaces are not
estimated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from remat.capture.joint import tensors_of
from remat.capture.rnn.ops import RNN_BACKWARD, RNN_FORWARD
from remat_solvers.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """The peak rates of one device. A device that is not in HARDWARE is passed as `costs=Hardware(...)`."""

    name: str
    bytes_per_s: float  # of device memory
    flops_per_s: float  # for dtypes without an entry below
    matmul_flops_per_s: Mapping[torch.dtype, float] = field(default_factory=dict)  # of matrix units, per dtype
    launch_ns: int = 2_000  # per op


def _gpu(name: str, tera_bytes: float, fp32: float, tf32: float, half: float) -> Hardware:
    """A GPU by the TB/s of its memory, and its dense TFLOP/s in float32, TF32, and float16 or bfloat16."""
    units = {torch.float32: tf32 * 1e12, torch.float16: half * 1e12, torch.bfloat16: half * 1e12}
    return Hardware(name, tera_bytes * 1e12, fp32 * 1e12, MappingProxyType(units))


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        "cpu": Hardware("cpu", 20e9, 100e9, launch_ns=5_000),  # two desktop cores with AVX2
        "v100": _gpu("v100", 0.9, 15.7, 15.7, 125),
        "a100": _gpu("a100", 2.039, 19.5, 156, 312),  # SXM, 80 GB
        "h100": _gpu("h100", 3.35, 67, 494, 989),  # SXM
        "h200": _gpu("h200", 4.8, 67, 494, 989),
        "l4": _gpu("l4", 0.3, 30.3, 60, 121),
        "rtx3090": _gpu("rtx3090", 0.936, 35.6, 35.6, 71),
        "rtx4090": _gpu("rtx4090", 1.008, 82.6, 82.6, 165),
    }
)


def find_hardware(name: str) -> Hardware:
    """Return the device of that name. Raises InputError, with the known names, where there is none."""
    try:
        return HARDWARE[name.lower()]
    except KeyError:
        known = ", ".join(HARDWARE)
        raise InputError(f"no roofline is known for {name!r}: use one of {known}, or pass a Hardware") from None


def hardware_name(device: torch.device) -> str:
    """Return the name of `device` in HARDWARE. Raises InputError for a GPU that is not there."""
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device).lower().replace(" ", "")
        if names := [name for name in HARDWARE if re.search(rf"{name}(?!\d)", model)]:  # an L40S is no L4
            return max(names, key=len)
        raise InputError(f"no roofline is known for {model}: name a device ('roofline:a100') or use costs='measure'")
    return "cpu"


def estimate_ns(node: fx.Node, hardware: Hardware) -> int:
    """Return the estimated time of the op `node`, in ns."""
    inputs = [t for read in node.all_input_nodes for t in tensors_of(read)]
    outputs = tensors_of(node)
    moved_bytes = sum(_bytes(t) for t in inputs) + sum(_bytes(t) for t in outputs)
    flops = _flops(node)
    dtype = next((t.dtype for t in outputs if t.is_floating_point()), torch.float32)
    rate = hardware.matmul_flops_per_s.get(dtype, hardware.flops_per_s)
    return round(max(flops / rate, moved_bytes / hardware.bytes_per_s) * 1e9) + hardware.launch_ns


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(node: fx.Node) -> int:
    target: Any = node.target
    if target in (RNN_FORWARD, RNN_BACKWARD):
        return _rnn_flops(node)
    packet = getattr(target, "overloadpacket", None)
    count = _COUNTS.get(packet) or flop_registry.get(packet)
    if count is None:
        return 0
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = fx.map_arg(node.kwargs, lambda n: n.meta["val"])
    return int(count(*args, **kwargs, out_val=node.meta["val"]))


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any
) -> int:
    shapes = (grad.shape, query.shape, key.shape, value.shape)
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


def _convolution_backward_flops(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Count as many FLOPs as the forward's for each of two gradients; torch's registry does not know groups."""
    *_, transposed, _, _, output_mask = rest
    positions = math.prod((input if transposed else grad).shape[2:])
    return int(2 * weight.numel() * input.shape[0] * positions * sum(output_mask[:2]))


_COUNTS: Mapping[Any, Callable[..., int]] = MappingProxyType(
    {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        torch.ops.aten.convolution_backward: _convolution_backward_flops,
    }
)
"""FLOP counts of ops that torch's registry lacks or miscounts."""


def _rnn_flops(node: fx.Node) -> int:
    """Count two FLOPs per weight and time step for the forward, and twice as many for the backward."""
    forward = node.target is RNN_FORWARD
    input, weights = (node.args[1], node.args[4]) if forward else (node.args[1], node.args[3])
    assert isinstance(input, fx.Node)
    assert isinstance(weights, (list, tuple))
    tensor: Tensor = input.meta["val"]
    per_step = sum(2 * w.meta["val"].numel() for w in weights if isinstance(w, fx.Node))
    steps = tensor.numel() // tensor.shape[-1]
    return int(per_step * steps * (1 if forward else 2))
