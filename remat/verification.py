"""Verifies a plan: runs it, and compares the step with that of the store-all plan and with that of the original."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from remat.allocator import peak_while
from remat.api import apply
from remat.capture.exported import Differentiate, Exported, export
from remat.capture.python_state import preserved_model
from remat.capture.trees import flatten, unflatten
from remat.execute.module import RematModule
from remat.execute.offload.tiers import HostTier, Tier
from remat_solvers.formats import PlanFile
from remat_solvers.plan import Plan
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.units import format_bytes

TOLERANCE = 0.01  # of the predicted peak
TOLERANCE_BYTES = 64 * 1024  # or this, where it is more
_SEED = 2**31 - 1


@dataclass(frozen=True)
class StepRecord:
    """Everything that one training step leaves behind."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]  # of parameters, and of inputs that require one
    buffers: Mapping[str, Tensor]
    rng_state: Tensor
    peak_bytes: int  # beyond the bytes held before the step


@dataclass(frozen=True)
class StepComparison:
    """States which results of two steps are bit-equal."""

    outputs_equal: bool
    gradients_equal: bool
    buffers_equal: bool
    rng_equal: bool
    largest_difference: float  # of any gradient, relative to the gradient's largest entry

    @property
    def equal(self) -> bool:
        return self.outputs_equal and self.gradients_equal and self.buffers_equal and self.rng_equal


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`. The fields from `outputs_equal` to `rng_equal` are those of `to_store_all`."""

    ok: bool  # bit-equal to the store-all plan, and the peak as predicted
    outputs_equal: bool  # bit-equal to the store-all plan of the same graph
    gradients_equal: bool
    buffers_equal: bool
    rng_equal: bool
    predicted_peak_bytes: int
    measured_peak_bytes: int
    peak_as_predicted: bool  # within 1 % or 64 KiB
    eager_peak_bytes: int  # of the original model, measured the same way
    to_store_all: StepComparison
    to_eager: StepComparison

    def __str__(self) -> str:
        words = {True: "bit-equal", False: "DIFFER"}
        return "\n".join(
            (
                f"{'outputs':<10} {words[self.outputs_equal]} to store-all",
                f"{'gradients':<10} {words[self.gradients_equal]} to store-all",
                f"{'buffers':<10} {words[self.buffers_equal]} to store-all",
                f"{'RNG state':<10} {words[self.rng_equal]} to store-all",
                f"{'eager':<10} {self._eager_text()}",
                f"{'peak':<10} {format_bytes(self.measured_peak_bytes)} measured, "
                f"{format_bytes(self.predicted_peak_bytes)} predicted, {format_bytes(self.eager_peak_bytes)} eager",
            )
        )

    def _eager_text(self) -> str:
        if self.to_eager.equal:
            return "bit-equal to the original model"
        return f"gradients differ from the original model by at most {self.to_eager.largest_difference:.1e} (relative)"


def verify(
    model: nn.Module,
    plan: Plan | PlanFile | str | os.PathLike[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    unroll_rnn: bool = False,
    differentiate: Differentiate = "loss",
    tier: Tier = HostTier(),  # noqa: B008  (frozen)
) -> Verification:
    """Run one training step of `model` by `plan`, one by the store-all plan and one without a plan, and compare them.

    Args:
        model, args, kwargs: the module, and an example of the call. The state of the model is restored afterwards.
        plan: a plan, a plan file that was loaded, or its path.
        unroll_rnn, differentiate: as the plan's problem was exported; see `export`.
        tier: the destination of offloaded values, `HostTier()` or `DiskTier(folder)`.

    Raises what `export` and `apply` raise.
    """
    kwargs = kwargs or {}
    exported = export(model, args, kwargs, unroll_rnn=unroll_rnn, differentiate=differentiate)
    planned = apply(exported, plan, tier=tier)
    predicted = simulate(planned.problem, planned.plan).peak_bytes
    step = run_step(planned, args, kwargs, exported)
    reference = run_step(apply(exported, store_all(exported.problem)), args, kwargs, exported)
    eager = run_step(model, args, kwargs, exported)
    constants = exported.problem.static_bytes
    measured = step.peak_bytes + constants
    to_store_all, to_eager = compare_steps(step, reference), compare_steps(step, eager)
    as_predicted = abs(measured - predicted) <= max(TOLERANCE_BYTES, TOLERANCE * predicted)
    return Verification(
        ok=to_store_all.equal and as_predicted,
        outputs_equal=to_store_all.outputs_equal,
        gradients_equal=to_store_all.gradients_equal,
        buffers_equal=to_store_all.buffers_equal,
        rng_equal=to_store_all.rng_equal,
        predicted_peak_bytes=predicted,
        measured_peak_bytes=measured,
        peak_as_predicted=as_predicted,
        eager_peak_bytes=eager.peak_bytes + constants,
        to_store_all=to_store_all,
        to_eager=to_eager,
    )


def run_step(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], exported: Exported) -> StepRecord:
    """Run one forward and backward of `module` from a fixed generator state, and restore what it changes in the model.

    The gradients of the outputs are created when the backward reads them, so that only the step holds them.
    """
    model = module.original if isinstance(module, RematModule) else module
    args, kwargs, leaves = with_leaves(args, kwargs)
    differentiated = dict(model.named_parameters()) | {f"input {i}": t for i, t in enumerate(leaves)}
    differentiated = {name: t for name, t in differentiated.items() if t.requires_grad}
    inputs = [t for t in flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    kept: list[Any] = []

    def step() -> None:
        kept.append(module(*args, **kwargs))
        tensors = [t for t in flatten(kept[0])[0] if isinstance(t, Tensor)]
        loss = _RandomLoss.apply(*exported.differentiated(tensors))  # type: ignore[no-untyped-call]
        del tensors
        loss.backward()

    device = exported.device
    with (
        _restored(model, differentiated.values(), exported.updated_inputs(inputs)),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        exported.autocast(),
    ):
        torch.manual_seed(_SEED)
        peak = peak_while(step, device)
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        return StepRecord(
            outputs=tuple(t.detach().clone() for t in flatten(kept.pop())[0] if isinstance(t, Tensor)),
            gradients={name: t.grad for name, t in differentiated.items()},
            buffers={name: b.detach().clone() for name, b in model.named_buffers()},
            rng_state=state,
            peak_bytes=peak,
        )


@contextmanager
def _restored(model: nn.Module, differentiated: Iterable[Tensor], updated: Sequence[Tensor]) -> Iterator[None]:
    """Run the block without gradients; afterwards restore them, buffers, `updated` tensors and attributes."""
    owners = [(module, name, b) for module in model.modules() for name, b in module._buffers.items()]
    changed = [*model.buffers(), *updated]
    contents = [t.detach().clone() for t in changed]
    gradients = [(t, t.grad) for t in differentiated]
    for tensor, _ in gradients:
        tensor.grad = None
    try:
        with preserved_model(model):
            yield
    finally:
        for owner, name, buffer in owners:
            owner._buffers[name] = buffer
        with torch.no_grad():
            for tensor, before in zip(changed, contents, strict=True):
                tensor.copy_(before)
        for tensor, gradient in gradients:
            tensor.grad = gradient


def compare_steps(step: StepRecord, reference: StepRecord) -> StepComparison:
    """Compare `step` with `reference`, bit by bit."""
    return StepComparison(
        outputs_equal=len(step.outputs) == len(reference.outputs)
        and all(_equal(a, b) for a, b in zip(step.outputs, reference.outputs, strict=True)),
        gradients_equal=all(_equal(g, reference.gradients[name]) for name, g in step.gradients.items()),
        buffers_equal=all(_equal(b, reference.buffers[name]) for name, b in step.buffers.items()),
        rng_equal=torch.equal(step.rng_state, reference.rng_state),
        largest_difference=max(
            (_difference(g, reference.gradients[name]) for name, g in step.gradients.items()), default=0.0
        ),
    )


def with_leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any, list[Tensor]]:
    """The call with a new leaf for each input that requires a gradient, and those leaves."""
    leaves, tree = flatten((tuple(args), dict(kwargs)))
    fresh: dict[int, Tensor] = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            fresh.setdefault(id(leaf), leaf.detach().requires_grad_())
    call = unflatten([fresh.get(id(leaf), leaf) for leaf in leaves], tree)
    return call[0], call[1], list(fresh.values())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit-equal, NaN included."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.numel() == 0:
        return 0.0
    scale = b.abs().max().double().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((a.double() - b.double()).abs().max() / scale).nan_to_num(0.0))


class _RandomLoss(torch.autograd.Function):
    """A loss whose gradients with respect to the outputs are random numbers, the same in every run."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        ctx.layouts = [(tuple(t.shape), t.dtype, t.device) for t in outputs]
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gradients = []
        for index, (shape, dtype, device) in enumerate(ctx.layouts):
            generator = torch.Generator(device).manual_seed(index)
            gradients.append(torch.empty(shape, dtype=dtype, device=device).uniform_(0.5, 1.5, generator=generator))
        return tuple(gradients)
