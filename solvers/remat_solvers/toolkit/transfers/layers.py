"""A training step as the layers that the swapping methods for layer-wise networks talk about.

A layer is a forward op. Its X are the values it reads, constants left out. Its type is told by its target:

    CONV   convolutions. In a problem without any, what is dear to compute takes their place: matrix products,
           attention, recurrent layers
    ACTV   activation functions, which those networks compute in place
    LOSS   softmax and loss
    OTHER  everything else: pooling, normalisation, additions, ...

The classifier begins with the first matrix product or LOSS behind the last CONV. Where matrix products are the CONV
themselves, it begins with the last of them. Layers before it extract features.

Backward ops belong to layers too: the latest layer that reads or makes every forward value which the op reads, and no
later layer than the op before it, since backward runs through the layers in reverse order. Where no layer has to do
with all of those values, one that has to do with any of them; ops that read no forward value go with the op before.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.op_kinds import op_kind, op_name
from remat_solvers.toolkit.transfers.intervals import Absence, absences

__all__ = ["LayerType", "backward_layers", "classifier_start", "feature_maps", "layer_types", "within_host"]

LayerType: TypeAlias = Literal["CONV", "ACTV", "LOSS", "OTHER"]

ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardtanh", "hardswish", "hardsigmoid", "softplus", "logsigmoid", "threshold", "clamp_min"),
)
LOSSES = (
    *("_softmax", "_log_softmax", "softmax", "log_softmax", "nll_loss_forward", "nll_loss2d_forward", "mse_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "smooth_l1_loss"),
)


def layer_types(problem: Problem) -> dict[int, LayerType]:
    """Forward op -> its type."""
    kinds = {op: op_kind(problem.ops[op]) for op in problem.forward_ops}
    convolves = "conv" in kinds.values()
    types: dict[int, LayerType] = {}
    for op, kind in kinds.items():
        name = op_name(problem.ops[op].target)
        if kind == "conv" or (kind is not None and not convolves):
            types[op] = "CONV"
        elif name.removesuffix("_") in ACTIVATIONS:
            types[op] = "ACTV"
        else:
            types[op] = "LOSS" if name in LOSSES else "OTHER"
    return types


def classifier_start(problem: Problem, types: dict[int, LayerType]) -> int:
    """The op with which the classifier begins; the number of ops where there is none."""
    last = max((op for op, kind in types.items() if kind == "CONV"), default=-1)
    if last >= 0 and op_kind(problem.ops[last]) != "conv":
        return last
    for op in problem.forward_ops:
        if op > last and (types[op] == "LOSS" or op_kind(problem.ops[op]) is not None):
            return op
    return len(problem.ops)


def backward_layers(problem: Problem) -> dict[int, int]:
    """Backward op -> the layer whose backward it belongs to."""
    touching: dict[int, set[int]] = {}  # forward value -> layers that make or read it
    for op in problem.forward_ops:
        for value in (*problem.ops[op].inputs, *problem.ops[op].outputs):
            if problem.producer[value] >= 0:
                touching.setdefault(value, set()).add(op)
    layer = problem.forward_ops[-1] if problem.forward_ops else -1
    found: dict[int, int] = {}
    for op in problem.backward_ops:
        near = [{k for k in touching[v] if k <= layer} for v in problem.ops[op].inputs if v in touching]
        common = set.intersection(*near) if near else set()
        layer = max(common or set().union(*near), default=layer)
        found[op] = layer
    return found


def feature_maps(problem: Problem) -> list[Absence]:
    """The stretches between the last forward and the first backward use of forward values, in the order they begin.

    Positions are ops, in the problem's order. Results of the forward, which stay with the caller, are left out.
    """
    phase = [op.phase for op in problem.ops]
    return [
        a
        for a in absences(problem, range(len(problem.ops)))
        if problem.values[a.value].bytes
        and phase[a.last] == "forward"
        and a.back < len(phase)
        and phase[a.back] == "backward"
    ]


def within_host(problem: Problem, maps: list[Absence]) -> list[Absence]:
    """Those of `maps` that the host has room for, taken in order; the others stay on the device."""
    room = problem.link.host_bytes if problem.link else 0
    if room is None:
        return maps
    taken = []
    for absence in maps:
        if problem.values[absence.value].bytes <= room:
            room -= problem.values[absence.value].bytes
            taken.append(absence)
    return taken
