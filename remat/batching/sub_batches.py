"""Sub-batches: a training step on a batch in parts, one forward and backward after the other, with the same gradients.

Where even the smallest plan of a batch does not fit, fewer rows do. Chen, Chen, Hu: moDNN (DATE 2018) splits the batch
into sub-batches and adds up their gradients, which leaves the result as it is: the gradient of a sum, or of a mean
weighted by the rows of each part, is the sum of the parts' gradients. It holds where rows do not meet inside the model.
In batch norm they do: its statistics are those of the part. So such models are refused while they train.

    net = remat.SubBatches(model, 8)                      # a batch of any size, 8 rows at a time
    part = remat.solve(model, "2GiB", args=(x[:8], y[:8]), on_change="replan")
    net = remat.SubBatches(part, 8)                       # and each part by a plan
    net = remat.solve_in_parts(model, "2GiB", (x, y))     # or as many rows at a time as is fastest (sub_batch_size.py)

Memory: the activations of one part, and the gradients of all parameters: their sums from the forward on, and those of
the part at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from remat.execute.module import SHARED
from remat_solvers.errors import InputError

__all__ = ["SubBatches", "check_batch_norm", "split"]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs


class SubBatches(nn.Module):
    """A model whose training calls go through the batch `rows` rows at a time, and that returns its loss.

    `SubBatches(model, rows)(x, y).backward()` leaves the gradients of `model(x, y).backward()`, up to the order in
    which they are added. The call runs every part forward and backward; `backward` of the loss hands the sums on. It
    has the model's own parameters, names and state_dict. Without gradients (no_grad), and for a batch of one part, the
    call is the model's own.

    Args:
        model: returns a scalar loss; may be what `remat.solve` made. The last part may have fewer rows than the
            others: `on_change="replan"` plans for both.
        rows: of a part, along the first dimension of every tensor among the arguments.
        reduction: what the loss is over the rows, "mean" or "sum".
        count: for a mean over something else than rows: what a part contributes to it, by the part's arguments, such as
            `lambda tokens, labels: (labels != -100).sum()`.
        whole: arguments that every part gets whole, by position or keyword. Tensors without dimensions always are.
        loss: picks the loss out of what the model returns, such as `lambda output: output.loss`.

    What a module draws at random, it draws per part. Buffers that a forward changes are changed once per part.

    Raises:
        InputError: at the call: a batch norm that uses the statistics of its batch, a loss that is no scalar, arguments
            that cannot be split or that require a gradient. `functional.batch_norm` is not seen.
    """

    model: nn.Module
    rows: int
    reduction: Literal["mean", "sum"]
    count: Callable[..., Any] | None
    whole: Collection[int | str]
    loss: Callable[[Any], Tensor] | None

    def __init__(
        self,
        model: nn.Module,
        rows: int,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        count: Callable[..., Any] | None = None,
        whole: Collection[int | str] = (),
        loss: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise InputError(f"rows is how many rows a part has, an integer of at least 1, not {rows!r}")
        if reduction not in ("mean", "sum"):
            raise InputError(f"reduction must be mean or sum, not {reduction!r}")
        if count is not None and reduction == "sum":
            raise InputError("count weighs the parts of a mean; a sum has no weights")
        self.training = model.training
        own = {"model": model, "rows": rows, "reduction": reduction, "count": count, "whole": whole, "loss": loss}
        self.__dict__.update(own)  # unregistered: the registries are the model's
        for registry in SHARED:
            self.__dict__[registry] = model.__dict__[registry]

    def train(self, mode: bool = True) -> SubBatches:
        """Sets the model's mode."""
        self.model.train(mode)
        super().train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss over all rows."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not parameters:
            return self._loss((args, kwargs))
        parts = split(args, kwargs, self.rows, self.whole)
        if len(parts) == 1:
            return self._loss((args, kwargs))
        check_batch_norm(self.model)
        loss: Tensor = _InParts.apply(self._loss, parts, self._weights(parts), *parameters)  # type: ignore[no-untyped-call]
        return loss

    def _loss(self, call: Call) -> Tensor:
        args, kwargs = call
        output = self.model(*args, **kwargs)
        loss = output if self.loss is None else self.loss(output)
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(
                f"the model must return its loss, a scalar, to be run in parts; it returned {found}. Pass loss=..., "
                "which picks the loss out of what it returns."
            )
        return loss

    def _weights(self, parts: list[Call]) -> list[float]:
        """What each part's loss counts in the loss."""
        if self.reduction == "sum":
            return [1.0] * len(parts)
        count = self.count or self._rows_of
        counts = [float(count(*args, **kwargs)) for args, kwargs in parts]
        if not sum(counts):
            raise InputError("count is 0 for every part: there is nothing to take the mean of")
        return [c / sum(counts) for c in counts]

    def _rows_of(self, *args: Any, **kwargs: Any) -> int:
        named = [argument for name, argument in _named(args, kwargs) if name not in self.whole]
        return next(len(leaf) for leaf in tree_flatten(named)[0] if isinstance(leaf, Tensor) and leaf.ndim > 0)


def split(args: Sequence[Any], kwargs: Mapping[str, Any], rows: int, whole: Collection[int | str]) -> list[Call]:
    """The call of every part of `rows` rows. Raises InputError for arguments that cannot be split."""
    leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
    cut = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves]
    at = 0
    for name, argument in _named(args, kwargs):
        here = slice(at, at + len(tree_flatten(argument)[0]))
        at = here.stop
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves[here]):
            raise InputError(f"argument {name!r} requires a gradient; in parts only parameters get one. Detach it.")
        if name in whole:
            cut[here] = [False] * len(cut[here])
    sizes = {len(leaf) for leaf, s in zip(leaves, cut, strict=True) if s}
    if len(sizes) != 1:
        found = " and ".join(map(str, sorted(sizes))) or "no"
        raise InputError(
            f"the tensors among the arguments have {found} rows: a batch has one number of rows. Name those that "
            "every part should get whole in whole=(...)."
        )
    (total,) = sizes
    parts: list[Call] = []
    for start in range(0, max(1, total), rows):
        of_part = [leaf[start : start + rows] if s else leaf for leaf, s in zip(leaves, cut, strict=True)]
        parts.append(tree_unflatten(of_part, tree))
    return parts


def check_batch_norm(model: nn.Module) -> None:
    """Raise InputError where a batch norm of `model` would take its statistics from a part."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise InputError(
                f"{type(module).__name__} '{name}' takes its statistics from the batch, so parts of it have other "
                "gradients. Put it in eval mode, use a norm within rows (GroupNorm, LayerNorm), or run the batch "
                "as a whole."
            )


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(args)
    yield from kwargs.items()


class _InParts(torch.autograd.Function):
    """Forward and backward of every part; the gradients wait for the gradient of the loss."""

    @staticmethod
    def forward(
        ctx: Any, loss_of: Callable[[Call], Tensor], parts: list[Call], weights: list[float], *parameters: Tensor
    ) -> Tensor:
        total: Tensor | None = None
        sums: list[Tensor | None] = [None] * len(parameters)
        for part, weight in zip(parts, weights, strict=True):
            if weight == 0:
                continue  # its mean is over nothing
            with torch.enable_grad():
                loss = loss_of(part)
            value = loss.detach() * weight
            total = value if total is None else total + value
            gradients: tuple[Tensor | None, ...] = ()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, torch.full_like(value, weight), allow_unused=True)
            for i, of_part in enumerate(gradients):
                so_far = sums[i]
                sums[i] = of_part if so_far is None else so_far if of_part is None else so_far + of_part
            del loss, gradients  # before the next part runs
        ctx.sums = sums
        assert total is not None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError("the gradients of these sub-batches were handed on already: call the module again")
        handed: list[Tensor | None] = []
        while sums:  # so that never all are there twice
            of_all = sums.pop(0)
            handed.append(None if of_all is None else of_all * gradient)
        return (None, None, None, *handed)
