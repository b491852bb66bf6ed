"""Runs one planned training step: the two emitted graphs inside one autograd function."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._functorch._aot_autograd.functional_utils import gen_alias_from_base

from remat.capture.exported import Exported
from remat.capture.joint import JointGraph, ReturnedTensor, inputs_read
from remat.capture.trees import unflatten
from remat.execute.emit import Emitted, emit
from remat.execute.emitted_calls import RNG_LOCK, coerce, restore_rng, save_rng
from remat.execute.offload.engines import make_engine
from remat.execute.offload.tiers import HostTier, Tier
from remat_solvers.errors import ApplyError
from remat_solvers.plan import Plan

log = logging.getLogger("remat")

_Start: TypeAlias = tuple[list[tuple[torch.device, Any]], Sequence[Tensor], list[int]]
"""The start of a step: generator states, inputs, and the version counters of the inputs."""


class Program:
    """Executes a plan of an exported step. It holds no parameters: every call is given the current ones."""

    def __init__(
        self,
        exported: Exported,
        plan: Plan,
        *,
        tier: Tier = HostTier(),  # noqa: B008  (frozen)
        updates: bool = True,
    ) -> None:
        self.exported = exported
        self.plan = plan
        joint = exported.joint
        self._joint: JointGraph = joint
        self._emitted: Emitted = emit(joint, exported.lowered, plan, updates=updates)
        self._sources = tuple(source for _, source in joint.inputs)
        self._input_index = {source: i for i, source in enumerate(self._sources)}
        self._computed = [i for i, output in enumerate(joint.outputs) if output.node is not None]
        self._layouts = [
            (tuple(node.meta["val"].shape), tuple(node.meta["val"].stride())) for node, _ in joint.tangents
        ]
        self._planned = {self._computed.index(output) for _, output in joint.tangents}
        self._random_devices = _random_devices(exported)
        sizes = {v: exported.problem.values[v].bytes for v in self._emitted.offloaded}
        self._engine = make_engine(exported.device, tier, sizes) if sizes else None
        self._all_outputs: Program | None = None  # the same step, with a gradient through every output
        read = inputs_read(joint)
        self._read = [i for i, (node, _) in enumerate(joint.inputs) if node in read]

    def __call__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], arguments: Sequence[Tensor]) -> Any:
        """Run the forward. The structure returned is that of the model; its tensors carry the planned backward."""
        tensors = {"parameter": parameters, "buffer": buffers, "argument": arguments}
        inputs = [tensors[source.kind][source.index] for source in self._sources]
        outputs = _Step.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return self._assemble(dict(zip(self._computed, outputs, strict=True)), inputs)

    # --- inside the autograd function

    def run_forward(self, ctx: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        states = [(device, save_rng(device)) for device in self._random_devices]
        emitted = self._emitted
        feed: list[Any] = [] if self._engine is None else [self._engine.begin()]
        feed += [inputs[i] for i in emitted.forward_inputs]
        with torch._C._DisableAutocast():
            outputs, saved, objects = emitted.forward(feed)
        ctx.save_for_backward(*saved, *(inputs[i] for i in emitted.backward_inputs))
        ctx.saved = len(saved)
        ctx.objects = objects
        ctx.start = (states, inputs, [t._version for t in inputs])
        constant = [t for t, i in zip(outputs, self._computed, strict=True) if not self._joint.outputs[i].requires_grad]
        ctx.mark_non_differentiable(*constant)
        return tuple(_without_base(t) for t in outputs)

    def run_backward(self, ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ApplyError("a planned step can be differentiated once: create_graph=True is not supported")
        feed: list[Any] = list(ctx.saved_tensors)
        constants = feed[ctx.saved :]
        del feed[ctx.saved :]
        feed += ctx.objects
        feed += constants
        del constants
        start = ctx.start
        if start is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: pass retain_graph=True to the first"
            )
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.maybe_clear_saved_tensors()
            ctx.objects = ()
            ctx.start = None
        if {i for i, grad in enumerate(grads) if grad is not None} - self._planned:
            feed.clear()
            return self._run_unplanned(start, grads)
        del start
        emitted = self._emitted
        feed += self._tangents(grads, emitted.tangents)
        grads.clear()
        with torch._C._DisableAutocast():
            gradients = emitted.backward(feed)
        return self._input_gradients(gradients)

    def _tangents(self, grads: list[Tensor | None], indices: Sequence[int]) -> list[Tensor]:
        """The tangents that the backward graph takes, in the layout of the capture; zeros where no gradient arrived."""
        tangents: list[Tensor] = []
        for tangent in indices:
            node, output = self._joint.tangents[tangent]
            grad = grads[self._computed.index(output)]
            size, stride = self._layouts[tangent]
            if grad is None:
                like: Tensor = node.meta["val"]
                grad = torch.empty_strided(size, stride, dtype=like.dtype, device=like.device).zero_()
            tangents.append(coerce(grad, size, stride))
        return tangents

    def _input_gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The gradients that the graph computed, each at its place among the arguments of `_Step.apply`."""
        by_input: list[Tensor | None] = [None] * len(self._sources)
        for (_, source), gradient in zip(self._joint.gradients, gradients, strict=True):
            by_input[self._input_index[source]] = gradient
        return (None, *by_input)

    def _run_unplanned(self, start: _Start, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Run the whole step again, exactly: a gradient arrived through an output that was planned without one."""
        program = self._all_outputs = self._all_outputs or self._for_all_outputs()
        states, inputs, versions = start
        if any(inputs[i]._version != versions[i] for i in program._read):
            raise ApplyError("a parameter or input was changed in place between the forward and the backward")
        with RNG_LOCK:
            gradients = program._run_from(states, inputs, grads)
        return program._input_gradients(gradients)

    def _run_from(
        self, states: list[tuple[torch.device, Any]], inputs: Sequence[Tensor], grads: list[Tensor | None]
    ) -> Sequence[Tensor]:
        """Forward and backward from the generator states `states`; the generators are left as they were."""
        current = [(device, save_rng(device)) for device, _ in states]
        for device, state in states:
            restore_rng(device, state)
        emitted = self._emitted
        try:
            with torch._C._DisableAutocast():
                _, saved, objects = emitted.forward([inputs[i] for i in emitted.forward_inputs])
                feed = [*saved, *objects, *(inputs[i] for i in emitted.backward_inputs)]
                feed += self._tangents(list(grads), emitted.tangents)
                del saved, objects
                grads.clear()
                return emitted.backward(feed)  # type: ignore[no-any-return]
        finally:
            for device, state in current:
                restore_rng(device, state)

    def _for_all_outputs(self) -> Program:
        program = Program(*self.exported.for_all_outputs(), updates=False)
        log.warning(
            "a gradient arrived through an output planned without one (the plan was made for the loss alone); "
            "the step was run again, outside the budget. Pass differentiate='all' to plan for every output."
        )
        return program

    # --- around the autograd function

    def _assemble(self, computed: dict[int, Tensor], inputs: list[Tensor]) -> Any:
        outputs = self._joint.outputs
        tensors = iter([self._output(i, o, computed, inputs) for i, o in enumerate(outputs) if o.visible])
        leaves = [next(tensors) if is_tensor else leaf for is_tensor, leaf in self.exported.output_leaves]
        return unflatten(leaves, self.exported.output_tree)

    def _output(self, index: int, output: ReturnedTensor, computed: dict[int, Tensor], inputs: list[Tensor]) -> Tensor:
        if output.node is not None:
            return computed[index]
        base = computed[output.base] if output.source is None else inputs[self._input_index[output.source]]
        if output.replay is None:
            return base
        assert output.like is not None
        return gen_alias_from_base(
            base, output.like, output.requires_grad, output.replay.view_meta_sequence, replay_views=True
        )


class _Step(torch.autograd.Function):
    """Forward and backward of one planned step."""

    boxed_grads_call = True

    @staticmethod
    def forward(ctx: Any, program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.program = program
        ctx.set_materialize_grads(False)
        return program.run_forward(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        step: Program = ctx.program
        return step.run_backward(ctx, grads)


def _without_base(tensor: Tensor) -> Tensor:
    """`tensor`; if it is a view, a tensor of the same storage and version counter that is no view for autograd."""
    return tensor.detach() if tensor._is_view() else tensor


def _random_devices(exported: Exported) -> tuple[torch.device, ...]:
    """Devices whose generator states a second run of the step needs; none if every output has a planned gradient."""
    joint = exported.joint
    planned = {output for _, output in joint.tangents}
    unplanned = [i for i, o in enumerate(joint.outputs) if o.node is not None and o.requires_grad and i not in planned]
    return exported.random_devices if unplanned else ()
