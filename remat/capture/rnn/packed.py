"""Packed sequences while a model is traced: batch sizes are known numbers, though tensors have no contents.

A step is planned for one set of lengths. Where a model takes a `PackedSequence`, its batch sizes go with the tensor
that stands for them, so that RNN modules and `pad_packed_sequence` can read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from remat_solvers.errors import ExportError

__all__ = ["KnownSizes", "sizes_of", "with_sizes"]

_KNOWN = "remat_sizes"  # attribute of a batch_sizes tensor


def with_sizes(sizes: Sequence[int]) -> Tensor:
    """A tensor of batch sizes that knows its contents while traced."""
    tensor = torch.tensor(sizes, dtype=torch.int64)
    setattr(tensor, _KNOWN, tuple(sizes))
    return tensor


def sizes_of(batch_sizes: Tensor) -> tuple[int, ...]:
    """Its contents."""
    known: tuple[int, ...] | None = getattr(batch_sizes, _KNOWN, None)
    return tuple(batch_sizes.tolist()) if known is None else known


class KnownSizes(TorchFunctionMode):
    """Answers, while a model is traced, what depends on the contents of batch sizes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a higher-order op (torch.cond) captures its branches
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and hasattr(args[0], _KNOWN):
            return sizes_of(args[0])[args[1]]
        if name == "_pad_packed_sequence" and hasattr(args[1], _KNOWN):
            return _pad(args[0], sizes_of(args[1]), *args[2:])
        if name == "_pack_padded_sequence":
            raise ExportError(
                "the model packs a sequence in forward, by lengths that are not known while its graph is captured. "
                "Pack it outside and pass the PackedSequence, or give the RNN the padded sequence."
            )
        return func(*args, **(kwargs or {}))


def _pad(data: Tensor, sizes: tuple[int, ...], batch_first: bool, value: float, steps: int) -> tuple[Tensor, Tensor]:
    """torch's _pad_packed_sequence in ops that can be traced: (padded, lengths)."""
    batch = sizes[0]
    rows = [step * batch + row for step, size in enumerate(sizes) for row in range(size)]
    padded = data.new_full((steps * batch, *data.shape[1:]), value).index_copy(0, torch.tensor(rows), data)
    padded = padded.view(steps, batch, *data.shape[1:])
    lengths = [sum(size > row for size in sizes) for row in range(batch)]
    return padded.transpose(0, 1) if batch_first else padded, torch.tensor(lengths)
