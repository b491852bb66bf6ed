"""Flattening of nested inputs and outputs to lists of leaves, and back.

torch's pytree knows tuples, lists, dicts and the classes that libraries register with it. Models also take and return
plain dataclasses and small objects that hold tensors (a key-value cache); those are flattened by their attributes.
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

from remat.capture.rnn.packed import known_batch_sizes, tensor_of_batch_sizes

_MAX_DEPTH = 12  # of objects inside objects; deeper objects are leaves


@dataclass(frozen=True)
class _Leaf:
    """A leaf: the next element of the flat list."""


@dataclass(frozen=True)
class _Object:
    """A dataclass or other object, rebuilt by copying `template` and setting its attributes."""

    kind: type
    template: Any = dataclasses.field(compare=False)
    names: tuple[str, ...]
    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class _Nest:
    """One level of a container that pytree knows. (torch's own specs are not used: they warn when unpickled.)"""

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
    """A packed sequence. Its batch sizes are plain numbers, because a step is planned for one set of lengths."""

    steps: int
    parts: tuple[Tree, ...]  # data, sorted and unsorted indices, then the batch size of each step


Tree: TypeAlias = _Leaf | _Object | _Nest | _Mapping | _Packed


def flatten(nested: Any) -> tuple[list[Any], Tree]:
    """Return the leaves of `nested` (tensors and Python values), and the tree from which `unflatten` rebuilds it."""
    leaves: list[Any] = []
    return leaves, _flatten(nested, leaves, 0)


def unflatten(leaves: list[Any], tree: Tree) -> Any:
    """Return new containers of the structure `tree` that hold `leaves`: the inverse of `flatten`."""
    position = iter(leaves)
    return _unflatten(tree, lambda: next(position))


def _flatten(nested: Any, leaves: list[Any], depth: int) -> Tree:
    if isinstance(nested, PackedSequence):
        data, batch_sizes, *indices = nested
        sizes = known_batch_sizes(batch_sizes)
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
    """Return whether the attributes of `leaf` hold a tensor; attributes of modules and classes are not searched."""
    if isinstance(leaf, (torch.Tensor, torch.nn.Module, type)) or callable(leaf):
        return False
    if depth >= _MAX_DEPTH:
        return False
    for part in pytree.tree_leaves(list(_attributes(leaf).values())):
        if isinstance(part, torch.Tensor) or _holds_tensors(part, depth + 1):
            return True
    return False


def _unflatten(tree: Tree, next_leaf: Callable[[], Any]) -> Any:
    match tree:
        case _Leaf():
            return next_leaf()
        case _Nest(kind, context, parts):
            return pytree.SUPPORTED_NODES[kind].unflatten_fn([_unflatten(part, next_leaf) for part in parts], context)
        case _Mapping(_, template, keys, parts):
            filled = copy.copy(template)
            filled.update({key: _unflatten(part, next_leaf) for key, part in zip(keys, parts, strict=True)})
            return filled
        case _Packed(_, parts):
            data, sorted_indices, unsorted_indices, *sizes = [_unflatten(part, next_leaf) for part in parts]
            return PackedSequence(data, tensor_of_batch_sizes(sizes), sorted_indices, unsorted_indices)
        case _Object(_, template, names, parts):
            rebuilt = copy.copy(template)
            for name, part in zip(names, parts, strict=True):
                object.__setattr__(rebuilt, name, _unflatten(part, next_leaf))
            return rebuilt
