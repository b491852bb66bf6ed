"""Classifies ops by their operators: matrix products, convolutions, attention and recurrent layers are expensive."""

from __future__ import annotations

from typing import Literal, TypeAlias

from remat_solvers.problem import Op

OpKind: TypeAlias = Literal["matmul", "conv", "attention", "rnn"]

OP_KINDS: tuple[OpKind, ...] = ("matmul", "conv", "attention", "rnn")
KIND_OF_NAME: dict[str, OpKind] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "addbmm", "matmul", "linear", "mv", "addmv"), "matmul"),
    **dict.fromkeys(("_scaled_mm", "_grouped_mm", "_int_mm", "_addmm_activation", "einsum"), "matmul"),
    **dict.fromkeys(("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution"), "conv"),
    **dict.fromkeys(("cudnn_convolution", "miopen_convolution", "conv_transpose2d"), "conv"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_cudnn_rnn"), "rnn"),
}


def op_name(target: str) -> str:
    """The operator's own name in an op's target: `mm` of `aten.mm.default` and of `mm`; `add` of `add.Tensor`."""
    parts = target.removeprefix("torch.ops.").split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[0]


def op_kind(op: Op) -> OpKind | None:
    """The kind of an expensive op, by its target; None for every other op."""
    name = op_name(op.target)
    if "attention" in name and not name.endswith("backward"):
        return "attention"
    return KIND_OF_NAME.get(name)
