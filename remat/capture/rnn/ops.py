"""nn.LSTM, nn.GRU and nn.RNN as one opaque op each.

Traced as they are, RNN layers fall apart into thousands of small ops that replace one fused kernel. Here the
fused forward is one op and its backward another; between them goes a *tape*: the autograd graph of the fused
kernel with the tensors it saved, except those that are inputs or outputs of the op. Those are handed in anew
when the backward runs, so the planner may drop and recompute them, and the tape's bytes are its own.

While tracing, the tape is stood for by a tensor of as many bytes; when a plan runs, it is a `Tape`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from unittest import mock
from weakref import ReferenceType, ref

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from remat.capture.rnn.packed import KnownSizes, sizes_of
from remat_solvers.errors import ExportError

__all__ = [
    "RNN_BACKWARD",
    "RNN_FORWARD",
    "RUNTIME_CALLS",
    "Tape",
    "is_tape",
    "opaque_rnns",
    "run_backward",
    "run_forward",
]

_LAYER = "bool has_biases, int num_layers, float dropout, bool training, bool bidirectional, bool batch_first"
torch.library.define(
    "remat::rnn_forward",
    f"(str mode, Tensor input, int[]? batch_sizes, Tensor[] hidden, Tensor[] weights, {_LAYER}) -> Tensor[]",
)
torch.library.define(
    "remat::rnn_backward",
    "(Tensor tape, Tensor input, Tensor[] hidden, Tensor[] weights, Tensor[] outputs, Tensor?[] grads, bool[] needs)"
    " -> Tensor[]",
)
RNN_FORWARD = torch.ops.remat.rnn_forward.default
RNN_BACKWARD = torch.ops.remat.rnn_backward.default

_MODES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_SAVED_PER_UNIT = {"lstm": 6, "gru": 5, "rnn_tanh": 1, "rnn_relu": 1}  # gates and states kept per hidden unit


def _fake_forward(
    mode: str,
    input: Tensor,
    batch_sizes: Sequence[int] | None,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    features = hidden[0].shape[-1] * (2 if bidirectional else 1)
    if batch_first and batch_sizes is None:
        batch, steps = input.shape[:2]
        output = input.new_empty((steps, batch, features)).transpose(0, 1)
    else:
        output = input.new_empty((*input.shape[:-1], features))
    states = [state.new_empty(state.shape) for state in hidden]
    units = output.numel() // features * hidden[-1].shape[-1] * (2 if bidirectional else 1) * num_layers
    tape_bytes = units * _SAVED_PER_UNIT[mode] * input.element_size()
    return [output, *states, input.new_empty((tape_bytes,), dtype=torch.uint8)]


def _fake_backward(
    tape: Tensor,
    input: Tensor,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor]:
    sources = (input, *hidden, *weights)
    return [torch.empty_like(t).contiguous() for t, need in zip(sources, needs, strict=True) if need]


torch.library.register_fake("remat::rnn_forward", _fake_forward)
torch.library.register_fake("remat::rnn_backward", _fake_backward)


@dataclass
class _Saved:
    """A tensor the kernel saved: its own, or a place in one of the op's inputs and outputs."""

    tensor: Tensor | None
    source: int = -1  # index into Tape.sources when the tensor is not the tape's own
    layout: tuple[tuple[int, ...], tuple[int, ...], int] = ((), (), 0)  # size, stride, offset


@dataclass
class Tape:
    """What the backward of one fused forward needs beside the op's inputs and outputs."""

    sources: list[Tensor]  # inputs and outputs, while the backward runs; saved tensors refer into it
    outputs: list[GradientEdge] = field(default_factory=list)
    inputs: list[GradientEdge] = field(default_factory=list)
    keep: bool | None = None  # whether it outlives a backward; None: as the running backward pass asks (retain_graph)
    _saved: list[ReferenceType[_Saved]] = field(default_factory=list)  # its own tensors; gone with the graph

    def remember(self, records: Sequence[_Saved]) -> None:
        """Know which of `records` hold tensors of its own."""
        self._saved = [ref(saved) for saved in records if saved.tensor is not None]

    def own(self) -> list[Tensor]:
        """The tensors that are its own, as long as its backward has not consumed them."""
        return [saved.tensor for saved in self._records() if saved.tensor is not None]

    def empty(self) -> None:
        """Let go of its own tensors, until `fill` brings them back."""
        for saved in self._records():
            saved.tensor = None

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Take back `tensors`, as many and in the same order as `own` gave."""
        for saved, tensor in zip(self._records(), tensors, strict=True):
            saved.tensor = tensor

    def _records(self) -> list[_Saved]:
        return [saved for reference in self._saved if (saved := reference()) is not None]


class _Enter(torch.autograd.Function):
    """Gives tensors a gradient edge without an accumulator that would keep them alive."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise AssertionError("gradients are captured at the edges, before this node")


def run_forward(
    mode: str,
    input: Tensor,
    batch_sizes: Sequence[int] | None,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    *layer: Any,
) -> list[Any]:
    """The fused forward: [output, final states..., Tape]. Shapes as those of torch.lstm and its kind."""
    sources: list[Tensor] = []
    records: list[_Saved] = []

    def pack(tensor: Tensor) -> _Saved:
        records.append(_Saved(tensor.detach()))
        return records[-1]

    def unpack(saved: _Saved) -> Tensor:  # not the tape's method: the tape must not be reachable from its own graph
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
    _refer(records, [input, *hidden, *weights, *outputs])
    tape.remember(records)
    records.clear()  # the hooks outlive this call
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
    """Gradients of (input, hidden..., weights...) where `needs`, from those of the outputs."""
    keep = torch._C._autograd._get_current_graph_task_keep_graph() if tape.keep is None else tape.keep
    tape.sources[:] = [input, *hidden, *weights, *outputs]
    given = [(edge, grad) for edge, grad in zip(tape.outputs, grads, strict=True) if grad is not None]
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(
                [edge for edge, _ in given],
                [edge for edge, need in zip(tape.inputs, needs, strict=True) if need],
                [grad for _, grad in given],
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=False,
            )
    finally:
        tape.sources.clear()
    wanted = [t for t, need in zip((input, *hidden, *weights), needs, strict=True) if need]
    return [torch.zeros_like(t) if g is None else g.contiguous() for g, t in zip(found, wanted, strict=True)]


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


def _refer(records: list[_Saved], sources: list[Tensor]) -> None:
    """Let saved tensors that lie in an input or output refer to it instead of holding it."""
    places = {t.untyped_storage().data_ptr(): i for i, t in enumerate(sources) if t.untyped_storage().nbytes()}
    for saved in records:
        tensor = saved.tensor
        if tensor is None or not tensor.untyped_storage().nbytes():
            continue
        source = places.get(tensor.untyped_storage().data_ptr())
        if source is not None and tensor.dtype == sources[source].dtype:
            saved.source = source
            saved.layout = (tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))
            saved.tensor = None


RUNTIME_CALLS: Mapping[Any, Any] = MappingProxyType({RNN_FORWARD: run_forward, RNN_BACKWARD: run_backward})
"""What is called in place of the opaque ops when a graph runs."""


def is_tape(node: fx.Node) -> bool:
    """Whether a node stands for a tape, not for a tensor."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    forward = node.args[0]
    return bool(forward.target is RNN_FORWARD and node.args[1] == len(forward.meta["val"]) - 1)


class _Opaque(torch.autograd.Function):
    """One RNN layer stack under tracing: the pair of opaque ops."""

    @staticmethod
    def forward(
        ctx: Any, mode: str, layer: tuple[Any, ...], states: int, batch_sizes: Sequence[int] | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        input, hidden, weights = tensors[0], tensors[1 : 1 + states], tensors[1 + states :]
        *outputs, tape = RNN_FORWARD(mode, input, batch_sizes, list(hidden), list(weights), *layer)
        ctx.save_for_backward(tape, *tensors, *outputs)
        ctx.states, ctx.tensors = states, len(tensors)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, *saved = ctx.saved_tensors
        tensors, outputs = saved[: ctx.tensors], saved[ctx.tensors :]
        needs = list(ctx.needs_input_grad[4:])
        hidden, weights = tensors[1 : 1 + ctx.states], tensors[1 + ctx.states :]
        found = iter(RNN_BACKWARD(tape, tensors[0], hidden, weights, outputs, list(grads), needs))
        return (None, None, None, None, *(next(found) if need else None for need in needs))


class _Kernels:
    """Stands in for torch's table of RNN kernels while tracing; cells and the rest pass through."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        if name not in _MODES:
            return getattr(self._table, name)

        def layer_call(*args: Any) -> tuple[Tensor, ...]:
            packed = isinstance(args[3], (list, tuple))
            if torch.is_autocast_enabled(args[0].device.type):
                if packed:
                    raise ExportError("a packed sequence under autocast: pad it, or leave autocast around the RNN")
                return getattr(self._table, name)(*args)  # type: ignore[no-any-return]
            input, batch_sizes = args[0], sizes_of(args[1]) if packed else None
            state, weights, *layer = args[2:] if packed else args[1:]
            hidden = tuple(state) if name == "lstm" else (state,)
            options = (*layer, False) if packed else tuple(layer)
            return _Opaque.apply(name, options, len(hidden), batch_sizes, input, *hidden, *weights)  # type: ignore[no-any-return,no-untyped-call]

        return layer_call


@contextmanager
def opaque_rnns() -> Iterator[None]:
    """Trace RNN modules as opaque ops. Under autocast they are traced step by step: their dtypes differ per kernel."""
    with mock.patch.object(torch.nn.modules.rnn, "_VF", _Kernels(torch._VF)), KnownSizes():
        yield
