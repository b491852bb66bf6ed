"""A value as bytes: what is copied is the whole storage, and what comes back has the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from remat.capture.rnn.ops import Tape

__all__ = ["Content", "Layout", "Storages", "free_tape", "layout_of", "storages_of"]

Content: TypeAlias = Tensor | Tape
"""What a value is when a plan runs: a tensor, or the tape of a fused recurrent layer."""

Storages: TypeAlias = list[Tensor]
"""A value as one-dimensional byte tensors, one per storage."""


@dataclass(frozen=True)
class _Layout:
    """A tensor in one of the storages."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def over(self, parts: Storages) -> Tensor:
        flat = parts[self.storage]
        empty = torch.empty(0, dtype=self.dtype, device=flat.device)
        return empty.set_(flat.untyped_storage(), self.offset, self.size, self.stride)


@dataclass(frozen=True)
class Layout:
    """How to make a value again out of its bytes."""

    sizes: tuple[int, ...]  # bytes per storage
    layouts: tuple[_Layout, ...]  # per tensor
    tape: Tape | None  # the emptied tape that takes the tensors

    def content(self, parts: Storages) -> Content:
        """The value whose storages are `parts`."""
        tensors = [layout.over(parts) for layout in self.layouts]
        if self.tape is None:
            return tensors[0]
        self.tape.fill(tensors)
        return self.tape


def storages_of(content: Content) -> Storages:
    """The storages of `content`, as bytes."""
    return list(_flats(_tensors(content)).values())


def layout_of(content: Content) -> Layout:
    """The layout of `content`."""
    tensors = _tensors(content)
    flats = _flats(tensors)
    index = {key: k for k, key in enumerate(flats)}
    return Layout(
        sizes=tuple(flat.numel() for flat in flats.values()),
        layouts=tuple(
            _Layout(index[_key(t)], t.dtype, tuple(t.shape), t.stride(), int(t.storage_offset())) for t in tensors
        ),
        tape=content if isinstance(content, Tape) else None,
    )


def free_tape(content: Content) -> None:
    """Free the device memory of a value that has left; a tensor's goes with its last reference.

    A tape is held by its graph, so it is emptied; not where the running backward keeps the graph for another one.
    """
    if isinstance(content, Tape) and not _graph_is_kept():
        content.empty()


def _graph_is_kept() -> bool:
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _tensors(content: Content) -> list[Tensor]:
    return content.own() if isinstance(content, Tape) else [content]


def _flats(tensors: list[Tensor]) -> dict[int, Tensor]:
    """The distinct storages of `tensors`, each as one-dimensional bytes."""
    return {_key(t): _flat(t) for t in tensors}


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))
