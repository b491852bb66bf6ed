"""Runs a training step on a batch in parts, one forward and backward after the other, with the same gradients.

Where even the smallest plan of a batch does not fit, a plan for fewer rows does. Chen, Chen, Hu: moDNN (DATE 2018)
splits the batch into sub-batches and sums their gradients. The result is the same: the gradient of a sum, or of a mean
weighted by the rows of each part, is the sum of the gradients of the parts. That holds where the rows of a batch do not
interact inside the model. In batch norm they do: its statistics would be those of the part. So models with batch norm
are refused while they train.

    net = remat.SubBatches(model, 8)                      # a batch of any size, 8 rows at a time
    part = remat.solve(model, "2GiB", args=(x[:8], y[:8]), on_change="replan")
    net = remat.SubBatches(part, 8)                       # each part by a plan
    net = remat.solve_in_parts(model, "2GiB", (x, y))     # the fastest number of rows at a time (sub_batch_size.py)

Memory: the activations of one part, and two gradients of every parameter: their sum, from the forward call on, and
that of the current part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from remat.execute.module import SHARED
from remat.options import Parts, PartsKeywords, Reduction, changed, takes_options
from remat_solvers.errors import InputError

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs


class SubBatches(nn.Module):
    """A model that returns its loss, and whose training calls process the batch `rows` rows at a time.

    `SubBatches(model, rows)(x, y).backward()` leaves the gradients of `model(x, y).backward()`, up to the order of
    addition. The call runs the forward and the backward of every part; `backward` of the loss hands on the sums of the
    gradients. The module has the parameters, names and state_dict of the model. Without gradients (no_grad), and for a
    batch of one part, the call is the model's own.

    Args:
        model: returns a scalar loss; may be a module that `remat.solve` returned. The last part may have fewer rows
            than the others: `on_change="replan"` plans for both.
        rows: of a part, along the first dimension of every tensor among the arguments.
        parts: how the batch is split and its loss composed; `remat.Parts` documents every field.
        changes: single fields of `parts`: `reduction`, `count`, `whole`, `loss`.

    Random numbers are drawn once per part. Buffers that the forward updates are updated once per part.

    Raises:
        InputError: here, for options that cannot be used; at the call, for a batch norm that uses the statistics of its
            batch (`functional.batch_norm` is not detected), a loss that is no scalar, and arguments that cannot be
            split or that require a gradient.
    """

    model: nn.Module
    rows: int
    parts: Parts

    @takes_options(Parts)
    def __init__(
        self,
        model: nn.Module,
        rows: int,
        *,
        parts: Parts = Parts(),  # noqa: B008  (frozen)
        **changes: Unpack[PartsKeywords],
    ) -> None:
        super().__init__()
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise InputError(f"rows is the number of rows of a part, an integer of at least 1, not {rows!r}")
        self.training = model.training
        own = {"model": model, "rows": rows, "parts": changed(parts, Parts, changes)}
        self.__dict__.update(own)  # unregistered: the registries are the model's
        for registry in SHARED:
            self.__dict__[registry] = model.__dict__[registry]

    @property
    def reduction(self) -> Reduction:
        """The field of `parts`."""
        return self.parts.reduction

    @property
    def count(self) -> Callable[..., Any] | None:
        """The field of `parts`."""
        return self.parts.count

    @property
    def whole(self) -> Collection[int | str]:
        """The field of `parts`."""
        return self.parts.whole

    @property
    def loss(self) -> Callable[[Any], Tensor] | None:
        """The field of `parts`."""
        return self.parts.loss

    def train(self, mode: bool = True) -> SubBatches:
        """Set the training mode of the model."""
        self.model.train(mode)
        super().train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss over all rows."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not parameters:
            return self._loss((args, kwargs))
        calls = split(args, kwargs, self.rows, self.parts.whole)
        if len(calls) == 1:
            return self._loss((args, kwargs))
        check_batch_norm(self.model)
        loss: Tensor = _InParts.apply(self._loss, calls, self._weights(calls), *parameters)  # type: ignore[no-untyped-call]
        return loss

    def _loss(self, call: Call) -> Tensor:
        args, kwargs = call
        output = self.model(*args, **kwargs)
        loss = output if self.parts.loss is None else self.parts.loss(output)
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(
                f"the model must return its loss, a scalar, to be run in parts; it returned {found}. Pass loss=..., "
                "a function that selects the loss from the output."
            )
        return loss

    def _weights(self, calls: list[Call]) -> list[float]:
        """The weight of each part's loss in the loss of the batch."""
        if self.parts.reduction == "sum":
            return [1.0] * len(calls)
        count = self.parts.count or self._rows_of
        counts = [float(count(*args, **kwargs)) for args, kwargs in calls]
        if not sum(counts):
            raise InputError("count is 0 for every part: the mean is undefined")
        return [c / sum(counts) for c in counts]

    def _rows_of(self, *args: Any, **kwargs: Any) -> int:
        named = [argument for name, argument in _named(args, kwargs) if name not in self.parts.whole]
        return next(len(leaf) for leaf in tree_flatten(named)[0] if isinstance(leaf, Tensor) and leaf.ndim > 0)


def split(args: Sequence[Any], kwargs: Mapping[str, Any], rows: int, whole: Collection[int | str]) -> list[Call]:
    """The call of every part of `rows` rows. Raises InputError for arguments that cannot be split."""
    leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
    is_split = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves]
    begin = 0
    for name, argument in _named(args, kwargs):
        own = slice(begin, begin + len(tree_flatten(argument)[0]))  # the leaves of this argument
        begin = own.stop
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves[own]):
            raise InputError(
                f"argument {name!r} requires a gradient; in parts only parameters have gradients. Detach it."
            )
        if name in whole:
            is_split[own] = [False] * len(is_split[own])
    row_counts = {len(leaf) for leaf, s in zip(leaves, is_split, strict=True) if s}
    if len(row_counts) != 1:
        found = " and ".join(map(str, sorted(row_counts))) or "no"
        raise InputError(
            f"the tensors among the arguments have {found} rows: a batch has one number of rows. Name those that "
            "are not split in whole=(...)."
        )
    (total,) = row_counts
    calls: list[Call] = []
    for start in range(0, max(1, total), rows):
        of_part = [leaf[start : start + rows] if s else leaf for leaf, s in zip(leaves, is_split, strict=True)]
        calls.append(tree_unflatten(of_part, tree))
    return calls


def check_batch_norm(model: nn.Module) -> None:
    """Raise InputError where a batch norm of `model` would take its statistics from a part."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise InputError(
                f"{type(module).__name__} '{name}' takes its statistics from the batch, so parts of the batch have "
                "other gradients. Put it in eval mode, use a norm within rows (GroupNorm, LayerNorm), or run the "
                "batch as a whole."
            )


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(args)
    yield from kwargs.items()


class _InParts(torch.autograd.Function):
    """Runs forward and backward of every part; its backward scales the sums by the gradient of the loss."""

    @staticmethod
    def forward(
        ctx: Any, loss_of: Callable[[Call], Tensor], calls: list[Call], weights: list[float], *parameters: Tensor
    ) -> Tensor:
        total: Tensor | None = None
        sums: list[Tensor | None] = [None] * len(parameters)
        for call, weight in zip(calls, weights, strict=True):
            if weight == 0:
                continue  # the mean over this part is over nothing
            with torch.enable_grad():
                loss = loss_of(call)
            value = loss.detach() * weight
            total = value if total is None else total + value
            gradients: tuple[Tensor | None, ...] = ()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, torch.full_like(value, weight), allow_unused=True)
            for i, gradient in enumerate(gradients):
                previous = sums[i]
                sums[i] = gradient if previous is None else previous if gradient is None else previous + gradient
            del loss, gradients  # before the next part runs
        ctx.sums = sums
        assert total is not None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError("the gradients of this call were returned already: call the module again")
        scaled: list[Tensor | None] = []
        while sums:  # one at a time, so that the memory of each sum is free before the next is scaled
            gradient = sums.pop(0)
            scaled.append(None if gradient is None else gradient * loss_gradient)
        return (None, None, None, *scaled)
