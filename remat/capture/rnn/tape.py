"""A fused RNN kernel and its backward at run time, with a tape between them.

The tape is the autograd graph of the fused kernel with the tensors that it saved, except those that are inputs or
outputs of the op. These are passed again when the backward runs, so a plan may drop and recompute them, and the bytes
of the tape are its own tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks


@dataclass
class _Saved:
    """A tensor that the kernel saved: its own tensor, or a view of one of the op's inputs and outputs."""

    tensor: Tensor | None
    source: int = -1  # index into Tape.sources, where `tensor` is None for good
    layout: tuple[tuple[int, ...], tuple[int, ...], int] = ((), (), 0)  # of the view: size, stride, offset


@dataclass
class Tape:
    """The data that the backward of one fused forward needs beside the op's inputs and outputs."""

    sources: list[Tensor]  # the op's inputs and outputs, while the backward runs; saved views refer to them
    outputs: list[GradientEdge] = field(default_factory=list)
    inputs: list[GradientEdge] = field(default_factory=list)
    keep: bool | None = None  # whether it survives a backward; None: as retain_graph of the running backward
    _saved: list[ReferenceType[_Saved]] = field(default_factory=list)  # of its own tensors; they die with the graph

    def register(self, records: Sequence[_Saved]) -> None:
        """Register those of `records` that hold the tape's own tensors."""
        self._saved = [ref(saved) for saved in records if saved.tensor is not None]

    def own_tensors(self) -> list[Tensor]:
        """Return the tape's own tensors; none after its backward has consumed them."""
        return [saved.tensor for saved in self._records() if saved.tensor is not None]

    def drop(self) -> None:
        """Drop the tape's own tensors. `restore` brings them back."""
        for saved in self._records():
            saved.tensor = None

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Restore the tape's own tensors, in the number and order of `own_tensors`."""
        for saved, tensor in zip(self._records(), tensors, strict=True):
            saved.tensor = tensor

    def _records(self) -> list[_Saved]:
        return [saved for reference in self._saved if (saved := reference()) is not None]


class _Enter(torch.autograd.Function):
    """Gives tensors a gradient edge without a gradient accumulator, which would keep them alive."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise AssertionError("gradients are read at the edges, before this node")


def run_forward(
    mode: str,
    input: Tensor,
    batch_sizes: Sequence[int] | None,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    *layer: Any,
) -> list[Any]:
    """Run the fused forward and return [output, final states..., Tape]. Shapes are those of torch.nn.LSTM and GRU."""
    sources: list[Tensor] = []
    records: list[_Saved] = []

    def pack(tensor: Tensor) -> _Saved:
        records.append(_Saved(tensor.detach()))
        return records[-1]

    def unpack(saved: _Saved) -> Tensor:  # no method of the tape, which its own graph must not keep alive
        return sources[saved.source].as_strided(*saved.layout) if saved.tensor is None else saved.tensor

    tape = Tape(sources)

    with torch.enable_grad():
        anchor = torch.zeros((), requires_grad=True)
        entered = _Enter.apply(anchor, input, *hidden, *weights)  # type: ignore[no-untyped-call]
        tape.inputs = [get_gradient_edge(t) for t in entered]
        x, h, w = entered[0], entered[1 : 1 + len(hidden)], list(entered[1 + len(hidden) :])
        with saved_tensors_hooks(pack, unpack):
            results = _call_kernel(mode, x, batch_sizes, h, w, layer)
    tape.outputs = [get_gradient_edge(t) for t in results]
    outputs = [t.detach() for t in results]
    _refer_to_sources(records, [input, *hidden, *weights, *outputs])
    tape.register(records)
    records.clear()  # the hooks, which hold the list, outlive this call
    return [*outputs, tape]


def run_backward(
    tape: Tape,
    input: Tensor,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of those of (input, hidden..., weights...) that `needs` marks, from those of the outputs."""
    keep = torch._C._autograd._get_current_graph_task_keep_graph() if tape.keep is None else tape.keep
    tape.sources[:] = [input, *hidden, *weights, *outputs]
    present = [(edge, grad) for edge, grad in zip(tape.outputs, grads, strict=True) if grad is not None]
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                [edge for edge, _ in present],
                [edge for edge, need in zip(tape.inputs, needs, strict=True) if need],
                [grad for _, grad in present],
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=False,
            )
    finally:
        tape.sources.clear()
    targets = [t for t, need in zip((input, *hidden, *weights), needs, strict=True) if need]
    return [torch.zeros_like(t) if g is None else g.contiguous() for g, t in zip(gradients, targets, strict=True)]


def _call_kernel(
    mode: str,
    x: Tensor,
    batch_sizes: Sequence[int] | None,
    hidden: Sequence[Tensor],
    weights: list[Tensor],
    layer: Any,
) -> tuple[Tensor, ...]:
    kernel: Any = getattr(torch._VF, mode)
    state = tuple(hidden) if mode == "lstm" else hidden[0]
    if batch_sizes is None:
        return tuple(kernel(x, state, weights, *layer))
    return tuple(kernel(x, torch.tensor(batch_sizes), state, weights, *layer[:-1]))


def _refer_to_sources(records: list[_Saved], sources: list[Tensor]) -> None:
    """Let saved tensors that are views of an input or output refer to it instead of holding it."""
    positions = {t.untyped_storage().data_ptr(): i for i, t in enumerate(sources) if t.untyped_storage().nbytes()}
    for saved in records:
        tensor = saved.tensor
        if tensor is None or not tensor.untyped_storage().nbytes():
            continue
        source = positions.get(tensor.untyped_storage().data_ptr())
        if source is not None and tensor.dtype == sources[source].dtype:
            saved.source = source
            saved.layout = (tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))
            saved.tensor = None
