"""Packed sequences while a model is traced: their batch sizes are known, though traced tensors have no contents.

A step is planned for one set of lengths. Where a model takes a `PackedSequence`, the batch sizes are stored as an
attribute of the tensor that stands for them, so that RNN modules and `pad_packed_sequence` can read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from remat_solvers.errors import ExportError

_ATTRIBUTE = "remat_batch_sizes"  # of a batch_sizes tensor


def tensor_of_batch_sizes(sizes: Sequence[int]) -> Tensor:
    """Return a tensor of batch sizes whose contents can be read while a model is traced."""
    tensor = torch.tensor(sizes, dtype=torch.int64)
    setattr(tensor, _ATTRIBUTE, tuple(sizes))
    return tensor


def known_batch_sizes(batch_sizes: Tensor) -> tuple[int, ...]:
    """Return the contents of a tensor of batch sizes."""
    known: tuple[int, ...] | None = getattr(batch_sizes, _ATTRIBUTE, None)
    return tuple(batch_sizes.tolist()) if known is None else known


class KnownBatchSizes(TorchFunctionMode):
    """Runs the functions that read batch sizes, while a model is traced, on the known numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a higher-order op (torch.cond) captures its branches
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and hasattr(args[0], _ATTRIBUTE):
            return known_batch_sizes(args[0])[args[1]]
        if name == "_pad_packed_sequence" and hasattr(args[1], _ATTRIBUTE):
            return _pad(args[0], known_batch_sizes(args[1]), *args[2:])
        if name == "_pack_padded_sequence":
            raise ExportError(
                "the model packs a sequence in forward, by lengths that are not known while its graph is captured. "
                "Pack it outside and pass the PackedSequence, or pass the padded sequence to the RNN."
            )
        return func(*args, **(kwargs or {}))


def _pad(data: Tensor, sizes: tuple[int, ...], batch_first: bool, value: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return (padded, lengths) like torch's _pad_packed_sequence, computed by ops that can be traced."""
    batch = sizes[0]
    rows = [step * batch + row for step, size in enumerate(sizes) for row in range(size)]
    padded = data.new_full((steps * batch, *data.shape[1:]), value).index_copy(0, torch.tensor(rows), data)
    padded = padded.view(steps, batch, *data.shape[1:])
    lengths = [sum(size > row for size in sizes) for row in range(batch)]
    return padded.transpose(0, 1) if batch_first else padded, torch.tensor(lengths)
