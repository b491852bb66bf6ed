"""The types of layers that vDNN distinguishes, and where the classifier of a network begins.

A layer is a forward op. Its type follows from its target:

    CONV   convolutions. In a problem without any, the ops that are expensive to compute take their place: matrix
           products, attention, recurrent layers
    ACTV   activation functions, which the paper's networks compute in place
    LOSS   softmax and loss
    OTHER  everything else: pooling, normalisation, additions, ...

The classifier begins with the first matrix product or LOSS behind the last CONV. Where matrix products are the CONV
themselves, it begins with the last of them. Layers before it extract features.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Problem
from remat_solvers.toolkit.graphs.op_kinds import op_kind, op_name

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
