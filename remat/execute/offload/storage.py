"""Values as bytes: a copy moves whole storages, and what is fetched has the layout of what was offloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from remat.capture.rnn.tape import Tape

Content: TypeAlias = Tensor | Tape
"""A value at run time: a tensor, or the tape of a fused recurrent layer."""

Storages: TypeAlias = list[Tensor]
"""The storages of a value, each as a one-dimensional tensor of bytes."""


@dataclass(frozen=True)
class _TensorLayout:
    """The layout of a tensor in one of the storages."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self, storages: Storages) -> Tensor:
        storage = storages[self.storage]
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage.untyped_storage(), self.offset, self.size, self.stride)


@dataclass(frozen=True)
class Layout:
    """The layout of a value, from which it is rebuilt around its bytes."""

    sizes: tuple[int, ...]  # bytes per storage
    tensors: tuple[_TensorLayout, ...]
    tape: Tape | None  # the tape that gets the tensors back

    def content(self, storages: Storages) -> Content:
        """Return the value whose storages are `storages`."""
        tensors = [layout.tensor(storages) for layout in self.tensors]
        if self.tape is None:
            return tensors[0]
        self.tape.restore(tensors)
        return self.tape


def storages_of(content: Content) -> Storages:
    """Return the storages of `content`, as bytes."""
    return list(_distinct_storages(_tensors(content)).values())


def layout_of(content: Content) -> Layout:
    """Return the layout of `content`."""
    tensors = _tensors(content)
    storages = _distinct_storages(tensors)
    index = {key: k for k, key in enumerate(storages)}
    return Layout(
        sizes=tuple(storage.numel() for storage in storages.values()),
        tensors=tuple(
            _TensorLayout(index[_key(t)], t.dtype, tuple(t.shape), t.stride(), int(t.storage_offset())) for t in tensors
        ),
        tape=content if isinstance(content, Tape) else None,
    )


def drop_tape(content: Content) -> None:
    """Free the device memory of a tape that was offloaded; that of a tensor is freed with its last reference.

    A tape is held by its graph, so its tensors are dropped, unless the running backward keeps the graph for another.
    """
    if isinstance(content, Tape) and not _graph_is_kept():
        content.drop()


def _graph_is_kept() -> bool:
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _tensors(content: Content) -> list[Tensor]:
    return content.own_tensors() if isinstance(content, Tape) else [content]


def _distinct_storages(tensors: list[Tensor]) -> dict[int, Tensor]:
    return {_key(t): _bytes_of_storage(t) for t in tensors}


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of_storage(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))
