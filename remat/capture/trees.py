"""Nested inputs and outputs as flat lists of leaves.

torch's pytree knows tuples, lists, dicts and what libraries register with it. Models also return plain
dataclasses and small objects that hold tensors (a key-value cache); those are opened by their attributes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from remat.capture.rnn.packed import sizes_of, with_sizes

__all__ = ["Tree", "flatten", "unflatten"]

_MAX_DEPTH = 12  # objects inside objects; deeper ones are passed through as they are


@dataclass(frozen=True)
class _Leaf:
    """The next leaf of the flat list."""


@dataclass(frozen=True)
class _Object:
    """A dataclass or other object, rebuilt by copying `template` and setting its attributes."""

    kind: type
    template: Any = dataclasses.field(compare=False)
    names: tuple[str, ...]
    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class _Nest:
    """A container that pytree knows, one level of it. (torch's own specs warn when they are unpickled.)"""

    kind: Any
    context: Any
    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class _Mapping:
    """A dict of a class that pytree does not know, rebuilt by copying `template`, which is empty, and filling it."""

    kind: type
    template: Any = dataclasses.field(compare=False)
    keys: tuple[Any, ...]
    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class _Packed:
    """A packed sequence. Its batch sizes are plain numbers, not a tensor: a step is planned for one set of lengths."""

    steps: int
    parts: tuple[Tree, ...]  # data, sorted and unsorted indices, then a leaf per step


Tree: TypeAlias = _Leaf | _Object | _Nest | _Mapping | _Packed


def flatten(nested: Any) -> tuple[list[Any], Tree]:
    """The leaves of `nested` (tensors and plain Python values) and the tree that puts them together again."""
    leaves: list[Any] = []
    return leaves, _flatten(nested, leaves, 0)


def unflatten(leaves: list[Any], tree: Tree) -> Any:
    """Inverse of `flatten`: new containers holding `leaves`."""
    position = iter(leaves)
    return _unflatten(tree, lambda: next(position))


def _flatten(nested: Any, leaves: list[Any], depth: int) -> Tree:
    if isinstance(nested, PackedSequence):
        data, batch_sizes, *indices = nested
        sizes = sizes_of(batch_sizes)
        return _Packed(len(sizes), tuple(_flatten(part, leaves, depth) for part in (data, *indices, *sizes)))
    kind = pytree._get_node_type(nested)
    known = pytree.SUPPORTED_NODES.get(kind)
    if known is None and isinstance(nested, dict):
        template = copy.copy(nested)
        template.clear()
        return _Mapping(kind, template, tuple(nested), tuple(_flatten(v, leaves, depth) for v in nested.values()))
    if known is None:
        return _flatten_leaf(nested, leaves, depth)
    parts, context = known.flatten_fn(nested)
    return _Nest(kind, context, tuple(_flatten(part, leaves, depth) for part in parts))


def _flatten_leaf(leaf: Any, leaves: list[Any], depth: int) -> Tree:
    if depth < _MAX_DEPTH and _holds_tensors(leaf, depth):
        attributes = _attributes(leaf)
        template = copy.copy(leaf)
        for name in attributes:
            object.__setattr__(template, name, None)
        parts = tuple(_flatten(value, leaves, depth + 1) for value in attributes.values())
        return _Object(type(leaf), template, tuple(attributes), parts)
    leaves.append(leaf)
    return _Leaf()


def _attributes(leaf: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf) if hasattr(leaf, f.name)}
    return dict(getattr(leaf, "__dict__", {}))


def _holds_tensors(leaf: Any, depth: int) -> bool:
    """Whether a tensor is found by opening attributes; modules and classes are never opened."""
    if isinstance(leaf, (torch.Tensor, torch.nn.Module, type)) or callable(leaf):
        return False
    if depth >= _MAX_DEPTH:
        return False
    for part in pytree.tree_leaves(list(_attributes(leaf).values())):
        if isinstance(part, torch.Tensor) or _holds_tensors(part, depth + 1):
            return True
    return False


def _unflatten(tree: Tree, take: Callable[[], Any]) -> Any:
    match tree:
        case _Leaf():
            return take()
        case _Nest(kind, context, parts):
            return pytree.SUPPORTED_NODES[kind].unflatten_fn([_unflatten(part, take) for part in parts], context)
        case _Mapping(_, template, keys, parts):
            filled = copy.copy(template)
            filled.update({key: _unflatten(part, take) for key, part in zip(keys, parts, strict=True)})
            return filled
        case _Packed(_, parts):
            data, sorted_indices, unsorted_indices, *sizes = [_unflatten(part, take) for part in parts]
            return PackedSequence(data, with_sizes(sizes), sorted_indices, unsorted_indices)
        case _Object(_, template, names, parts):
            made = copy.copy(template)
            for name, part in zip(names, parts, strict=True):
                object.__setattr__(made, name, _unflatten(part, take))
            return made
