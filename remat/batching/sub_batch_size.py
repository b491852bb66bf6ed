"""Chooses the sub-batch size: the rows at a time with which a batch trains fastest within a budget.

Chen, Chen, Hu: moDNN (DATE 2018) selects the sub-batch size where the budget is below what a whole batch takes. Only
the abstract of the paper was at hand, so the rule is chosen here. The batch is halved until a plan for a part fits, and
further as long as the step becomes faster: fewer rows take fewer bytes, so less is recomputed or offloaded, but kernels
are less well used, which measured costs show. The time of a step is that of one part's plan times the number of parts.

    net = remat.solve_in_parts(model, "2GiB", args=(x, y))
    net(x, y).backward()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from remat.api import solve
from remat.batching.sub_batches import SubBatches, check_batch_norm, split
from remat.capture.exported import export
from remat.execute.module import RematModule
from remat.options import InPartsKeywords, Parts, StepOptions, changed, takes_options
from remat_solvers.errors import InfeasibleError, InputError
from remat_solvers.schedule import baseline
from remat_solvers.units import parse_budget


@takes_options(Parts, StepOptions)
def solve_in_parts(
    model: nn.Module,
    budget: int | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    parts: Parts = Parts(),  # noqa: B008  (frozen)
    options: StepOptions = StepOptions(),  # noqa: B008  (frozen)
    **changes: Unpack[InPartsKeywords],
) -> RematModule | SubBatches:
    """Plan as `remat.solve` does, for parts of the batch where those are faster or where the whole batch does not fit.

    Args:
        model, budget, args, kwargs, options: as for `solve`. A percentage is of the step of the whole batch.
        parts: how the batch is split, as for `SubBatches`; `remat.Parts` documents every field.
        changes: single fields of `parts` and `options`.

    In parts, the sums of the gradients and the rows outside the current part count in the reserve. A last part of fewer
    rows is planned at the first call that has one, unless `on_change` is a keyword of the call, or
    is not "error" in `options`.

    Raises:
        InputError: the whole batch does not fit, and a batch norm would take its statistics from a part.
        InfeasibleError: not even one row fits.
        And what `solve` and `SubBatches` raise.
    """
    kwargs = kwargs or {}
    parts, options = changed(parts, Parts, changes), changed(options, StepOptions, changes)
    decided = "on_change" in changes or options.on_change != StepOptions().on_change
    part_options = options if decided else replace(options, on_change="replan")
    if isinstance(budget, str) and budget.rstrip().endswith("%"):
        problem = export(model, args, kwargs, costs="roofline").problem
        budget = parse_budget(budget, baseline(problem).peak_bytes)
    best: RematModule | SubBatches | None = None
    best_ns: int | None = None
    failure: InfeasibleError | None = None
    try:
        best = unsplit = solve(model, budget, args, kwargs, options=options)
        best_ns = _time_ns(unsplit)
    except InfeasibleError as error:
        failure = error
    rows = len(split(args, kwargs, 1, parts.whole))
    if best is not None and not _is_splittable(model):
        return best
    while rows > 1:
        check_batch_norm(model)
        rows = -(-rows // 2)
        calls = split(args, kwargs, rows, parts.whole)
        part_args, part_kwargs = torch.utils._pytree.tree_map_only(Tensor, torch.empty_like, calls[0])
        other_rows_bytes = _tensor_bytes((args, dict(kwargs))) - _tensor_bytes((part_args, part_kwargs))
        reserve_bytes = options.reserve_bytes + _gradient_bytes(model) + other_rows_bytes
        try:
            part = solve(model, budget, part_args, part_kwargs, options=part_options, reserve_bytes=reserve_bytes)
        except InfeasibleError as error:
            failure = error
            continue
        time_ns = len(calls) * _time_ns(part)
        if best_ns is not None and time_ns >= best_ns:
            break
        best = SubBatches(part, rows, parts=parts)
        best_ns = time_ns
    if best is None:
        assert failure is not None
        raise failure
    return best


def _is_splittable(model: nn.Module) -> bool:
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
    """The sums, and the largest one a second time, while the gradient of a part is added to it."""
    sizes = [p.numel() * p.element_size() for p in model.parameters() if p.requires_grad]
    return sum(sizes) + max(sizes, default=0)


def _tensor_bytes(arguments: Any) -> int:
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
