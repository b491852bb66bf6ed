"""How many rows at a time: the sub-batch size with which a batch trains fastest within a budget.

Chen, Chen, Hu: moDNN (DATE 2018) selects the sub-batch size where the budget is below what a whole batch needs; only
the abstract was at hand, so the rule is chosen here. The batch is halved until a plan for a part fits, and on as long
as the step becomes faster: fewer rows need fewer bytes, so less is recomputed or moved, but kernels run less full,
which measured costs show. A step's time is that of one part's plan times the number of parts.

    net = remat.solve_in_parts(model, "2GiB", args=(x, y))
    net(x, y).backward()
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from remat.api import solve
from remat.batching.sub_batches import SubBatches, check_batch_norm, split
from remat.capture.exported import export
from remat.execute.module import RematModule
from remat_solvers.errors import InfeasibleError, InputError
from remat_solvers.schedule import baseline
from remat_solvers.units import parse_budget

__all__ = ["solve_in_parts"]


def solve_in_parts(
    model: nn.Module,
    budget: int | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    count: Callable[..., Any] | None = None,
    whole: Collection[int | str] = (),
    loss: Callable[[Any], Tensor] | None = None,
    reserve_bytes: int = 0,
    **options: Any,
) -> RematModule | SubBatches:
    """`remat.solve`, a part of the batch at a time where that is faster or where the whole batch does not fit.

    Args:
        model, budget, args, kwargs, reserve_bytes: as for `solve`; a percentage is of the whole batch's step.
        reduction, count, whole, loss: as for `SubBatches`.
        options: the others of `solve`.

    In parts, the sums of the gradients and the rows that are not at hand count in the reserve. A last part of fewer
    rows is planned when it first comes.

    Raises:
        InputError: the batch does not fit as a whole, and a batch norm's statistics would be those of a part.
        InfeasibleError: not even one row fits.
        And what `solve` and `SubBatches` raise.
    """
    kwargs = kwargs or {}
    in_parts = {"on_change": "replan", **options}
    if isinstance(budget, str) and budget.rstrip().endswith("%"):
        exported = export(model, args, kwargs, costs="roofline")
        budget = parse_budget(budget, baseline(exported.problem).peak_bytes)
    best: RematModule | SubBatches | None = None
    best_ns: int | None = None
    failure: InfeasibleError | None = None
    try:
        best = at_once = solve(model, budget, args, kwargs, reserve_bytes=reserve_bytes, **options)
        best_ns = _time_ns(at_once)
    except InfeasibleError as error:
        failure = error
    rows = len(split(args, kwargs, 1, whole))
    if best is not None and not _splittable(model):
        return best
    while rows > 1:
        check_batch_norm(model)
        rows = -(-rows // 2)
        parts = split(args, kwargs, rows, whole)
        one_args, one_kwargs = torch.utils._pytree.tree_map_only(Tensor, torch.empty_like, parts[0])
        beside = _gradient_bytes(model) + _bytes((args, dict(kwargs))) - _bytes((one_args, one_kwargs))
        try:
            part = solve(model, budget, one_args, one_kwargs, reserve_bytes=reserve_bytes + beside, **in_parts)
        except InfeasibleError as error:
            failure = error
            continue
        time_ns = len(parts) * _time_ns(part)
        if best_ns is not None and time_ns >= best_ns:
            break
        best = SubBatches(part, rows, reduction=reduction, count=count, whole=whole, loss=loss)
        best_ns = time_ns
    if best is None:
        assert failure is not None
        raise failure
    return best


def _splittable(model: nn.Module) -> bool:
    try:
        check_batch_norm(model)
    except InputError:
        return False
    return True


def _time_ns(net: RematModule) -> int:
    result = net.result
    assert result is not None, "solve has planned it"
    assert result.time_ns is not None, "a plan has a time"
    return result.time_ns


def _gradient_bytes(model: nn.Module) -> int:
    """The sums, and the largest one once more while a part's gradient is added to it."""
    sizes = [p.numel() * p.element_size() for p in model.parameters() if p.requires_grad]
    return sum(sizes) + max(sizes, default=0)


def _bytes(arguments: Any) -> int:
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
