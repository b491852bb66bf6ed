"""Capture of the joint forward and backward graph of one call, without running the model.

AOTAutograd traces the call on fake tensors (shapes only), functionalises it, and describes every input and output of
the graph. The model does not change: its tensors never hold traced values, and its attributes and the random
generators are restored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from remat.capture.call import Call, ModelState, unique_tensors
from remat.capture.model_settings import ModelSettings
from remat.capture.python_state import PythonState, preserved_model
from remat.capture.rnn.ops import opaque_rnns
from remat.capture.source_location import is_user_file, recording_origins
from remat.capture.trees import Tree, flatten, unflatten
from remat_solvers.errors import ExportError


@dataclass(frozen=True)
class Capture:
    """The traced joint graph, and how its inputs and outputs correspond to those of the model."""

    graph_module: fx.GraphModule  # placeholders and output carry meta["desc"]
    metadata: Any  # AOTAutograd's ViewAndMutationMeta
    output_tree: Tree  # of the model's output
    output_leaves: list[tuple[bool, Any]]  # per leaf: (whether it is a tensor, its value otherwise)
    requires_grad: list[bool]  # per tensor that the model returns
    differentiated: list[bool]  # per tensor that the model returns: a gradient through it is planned
    settings: ModelSettings  # attributes that the forward may have read


def capture(model: nn.Module, state: ModelState, call: Call, *, unroll_rnn: bool, loss_only: bool) -> Capture:
    """Trace the training step of `model` for `call`.

    Args:
        unroll_rnn: trace RNN modules step by step instead of as opaque ops.
        loss_only: where exactly one output is a scalar that requires a gradient, trace the backward of it alone.

    Raises:
        ExportError: the step cannot be traced. The message names the line and the next thing to try.
    """
    try:
        return _trace(_Traced(model, state, call, loss_only), unroll_rnn=unroll_rnn, compiling=False)
    except ExportError:
        # Many libraries skip branches on tensor values where torch reports that it is compiling. Only a second attempt
        # reports it, because the libraries then also choose other kernels than in eager mode.
        return _trace(_Traced(model, state, call, loss_only), unroll_rnn=unroll_rnn, compiling=True)


def _trace(traced: _Traced, *, unroll_rnn: bool, compiling: bool) -> Capture:
    model = traced.model
    tensors = unique_tensors(traced.call.leaves)
    with ExitStack() as stack:
        stack.enter_context(preserved_model(model))
        stack.enter_context(mock.patch.object(torch.compiler, "_is_compiling_flag", compiling))
        stack.enter_context(mock.patch.object(torch.utils.checkpoint, "CheckpointFunction", _PlainCheckpoint))
        stack.enter_context(_without_torch_log())
        stack.enter_context(recording_origins(model))
        stack.enter_context(functorch_config.patch(backward_pass_autocast="off"))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True))))
        if not unroll_rnn:
            stack.enter_context(opaque_rnns())
        try:
            joint = aot_export_joint_with_descriptors(stack, traced, tuple(_fake_leaves(tensors)))
        except ExportError:
            raise
        except Exception as error:
            raise _explain(error) from error
        traced.python_state.check(_fake_constants(joint.graph_module))
        metadata = joint._aot_state.fw_metadata
        return Capture(
            joint.graph_module,
            metadata,
            traced.output_tree,
            traced.output_leaves,
            traced.requires_grad,
            traced.differentiated,
            ModelSettings.of(model, traced.python_state.set_by_forward),
        )


class _Traced(nn.Module):
    """The model as AOTAutograd sees it: it owns unique parameters and buffers, and takes and returns flat tensors."""

    model: nn.Module
    output_tree: Tree
    output_leaves: list[tuple[bool, Any]]
    requires_grad: list[bool]
    differentiated: list[bool]

    def __init__(self, model: nn.Module, state: ModelState, call: Call, loss_only: bool) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule: its parameters are registered below, once each
        # Per name of a tensor of this module, its name in the model.
        self._names = {f"p{i}": name for i, name in enumerate(state.parameters)}
        self._names |= {f"b{i}": name for i, name in enumerate(state.buffers)}
        for name, parameter in zip(self._names, state.parameters.values(), strict=False):
            self.register_parameter(name, nn.Parameter(parameter.detach(), parameter.requires_grad))
        for i, buffer in enumerate(state.buffers.values()):
            self.register_buffer(f"b{i}", buffer.detach())
        self.call = call
        self.python_state = PythonState(model)
        self._loss_only = loss_only
        self._positions = {id(t): i for i, t in enumerate(unique_tensors(call.leaves))}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensors[self._positions[id(leaf)]] if isinstance(leaf, Tensor) else leaf for leaf in self.call.leaves]
        args, kwargs = unflatten(leaves, self.call.tree)
        owned = {theirs: getattr(self, ours) for ours, theirs in self._names.items()}
        model = self.model
        hook = model.register_forward_hook(_UpdateInPlace(owned))
        try:
            # AOTAutograd calls this method several times, and each call has to start from the same state.
            with preserved_model(model), self.python_state.watching():
                output = torch.func.functional_call(model, owned, args, kwargs, tie_weights=True)
        finally:
            hook.remove()
        outputs, self.output_tree = flatten(output)
        self.output_leaves = [(True, None) if isinstance(leaf, Tensor) else (False, leaf) for leaf in outputs]
        returned = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        self.requires_grad = [t.requires_grad for t in returned]
        losses = [t for t in returned if t.requires_grad and t.dim() == 0]
        loss = losses[0] if self._loss_only and len(losses) == 1 else None
        self.differentiated = [t.requires_grad and (loss is None or t is loss) for t in returned]
        return tuple(
            t.detach() if t.requires_grad and not d else t for t, d in zip(returned, self.differentiated, strict=True)
        )


class _PlainCheckpoint:
    """Replaces the model's own reentrant checkpoints while tracing: the plan decides what is recomputed."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


class _UpdateInPlace:
    """A forward hook that writes a replaced buffer (`self.n = self.n + 1`) back into the original tensor."""

    def __init__(self, owned: dict[str, Tensor]) -> None:
        self._owned = owned

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        for name, buffer in model.named_buffers():
            owned = self._owned.get(name)
            if owned is None or buffer is owned:
                continue
            if buffer.shape != owned.shape or buffer.dtype != owned.dtype:
                raise ExportError(
                    f"the model replaces its buffer {name} by one of another shape or dtype "
                    f"({tuple(buffer.shape)} {buffer.dtype}): keep shape and dtype, or keep the state outside the model"
                )
            owned.copy_(buffer)


def _fake_constants(module: fx.GraphModule) -> list[Tensor]:
    """Return the tensors that the graph reads beside its inputs, and give their nodes fake tensors."""
    constants: list[Tensor] = []
    mode: Any = detect_fake_mode([node.meta.get("val") for node in module.graph.nodes])
    for node in module.graph.find_nodes(op="get_attr"):
        tensor = getattr(module, str(node.target), None)
        if isinstance(tensor, Tensor):
            constants.append(tensor)
            node.meta["val"] = mode.from_tensor(tensor)
            _drop_copies(node)
    return constants


def _drop_copies(constant: fx.Node) -> None:
    """Let nodes read a constant (a torch.tensor of forward) without copying it. Where it is returned, it is copied."""
    for copy in [user for user in constant.users if user.target is torch.ops.aten.lift_fresh_copy.default]:
        copy.replace_all_uses_with(constant, delete_user_cb=lambda user: user.op != "output")
        if copy.users:
            copy.target = torch.ops.aten.clone.default
            with constant.meta["val"].fake_mode:
                copy.meta["val"] = torch.empty_like(constant.meta["val"])
        else:
            constant.graph.erase_node(copy)


def _fake_leaves(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield autograd leaves that share storage with the arguments; AOTAutograd makes fake tensors of them."""
    for tensor in tensors:
        yield tensor.detach().requires_grad_(tensor.requires_grad)


@contextmanager
def _without_torch_log() -> Iterator[None]:
    """Keep torch from logging errors of fake tensors with a traceback: they are raised here, with an explanation."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _explain(error: Exception) -> ExportError:
    """Return an error with the cause, the line of user code, and advice."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
            return ExportError(
                f"{_line_of(cause)}the model reads the value of a tensor ({_op_of(cause)}), which is not known "
                "while its graph is captured. Replace the Python branch, loop or index by tensor operations "
                "(torch.where, masks), or pass the value as a plain number."
            )
        if isinstance(cause, RuntimeError) and str(cause).startswith(".numpy() is not supported"):
            return ExportError(
                f"{_line_of(error)}the model turns a tensor into a numpy array, which its captured graph cannot hold. "
                "Compute with torch, or pass the array as an input."
            )
        cause = cause.__cause__ or cause.__context__
    return ExportError(f"{_line_of(error)}the model cannot be captured: {type(error).__name__}: {error}")


def _op_of(error: BaseException) -> str:
    return str(getattr(error, "func", error))


def _line_of(error: BaseException) -> str:
    """Return the innermost line of user code in the traceback, followed by a colon; "" where there is none."""
    line = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if is_user_file(path):
            line = f"{path}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return line
