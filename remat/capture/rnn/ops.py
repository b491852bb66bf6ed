"""nn.LSTM, nn.GRU and nn.RNN as opaque ops: one for the forward and one for the backward.

By default, tracing decomposes RNN layers into thousands of small ops, which replace one fused kernel. Here the fused
forward is one op and its backward another, with a *tape* between them (tape.py). While tracing, a byte tensor of the
same size stands for the tape; when a plan runs, it is a `Tape`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from remat.capture.rnn.packed import KnownBatchSizes, known_batch_sizes
from remat.capture.rnn.tape import run_backward, run_forward
from remat_solvers.errors import ExportError

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
_SAVED_PER_UNIT = {
    "lstm": 6,
    "gru": 5,
    "rnn_tanh": 1,
    "rnn_relu": 1,
}  # saved numbers (gates, states) per hidden unit and time step


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


RUNTIME_CALLS: Mapping[Any, Any] = MappingProxyType({RNN_FORWARD: run_forward, RNN_BACKWARD: run_backward})
"""The functions that graphs call in place of the opaque ops when they run."""


def is_tape(node: fx.Node) -> bool:
    """Return whether `node` is a tape, which is not a tensor at run time."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    forward = node.args[0]
    return bool(forward.target is RNN_FORWARD and node.args[1] == len(forward.meta["val"]) - 1)


class _Opaque(torch.autograd.Function):
    """A stack of RNN layers under tracing: the pair of opaque ops."""

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
    """Replaces torch's table of RNN kernels while tracing; cells and other functions are passed through."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        if name not in _MODES:
            return getattr(self._table, name)

        def layer_call(*args: Any) -> tuple[Tensor, ...]:
            packed = isinstance(args[3], (list, tuple))
            if torch.is_autocast_enabled(args[0].device.type):
                if packed:
                    raise ExportError(
                        "an RNN reads a packed sequence under autocast, which is not supported: pad the sequence, or "
                        "disable autocast around the RNN"
                    )
                return getattr(self._table, name)(*args)  # type: ignore[no-any-return]
            input, batch_sizes = args[0], known_batch_sizes(args[1]) if packed else None
            state, weights, *layer = args[2:] if packed else args[1:]
            hidden = tuple(state) if name == "lstm" else (state,)
            options = (*layer, False) if packed else tuple(layer)
            return _Opaque.apply(name, options, len(hidden), batch_sizes, input, *hidden, *weights)  # type: ignore[no-any-return,no-untyped-call]

        return layer_call


@contextmanager
def opaque_rnns() -> Iterator[None]:
    """Trace RNN modules as opaque ops. Under autocast they are decomposed, because their dtypes differ per kernel."""
    with mock.patch.object(torch.nn.modules.rnn, "_VF", _Kernels(torch._VF)), KnownBatchSizes():
        yield
