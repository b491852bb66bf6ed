"""Capture: the joint forward and backward graph of one call, without running the model.

AOTAutograd traces the call on fake tensors (shapes only), functionalises it, and describes every input and
output of the graph. The model is left as it was: its tensors never hold traced values, its attributes and
the random generators are restored.
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

from remat.capture.call import Call, ModelSettings, ModelState, unique_tensors
from remat.capture.python_state import PythonState, preserved_model
from remat.capture.rnn.ops import opaque_rnns
from remat.capture.source_location import is_user_file, recording_origins
from remat.capture.trees import Tree, flatten, unflatten
from remat_solvers.errors import ExportError

__all__ = ["Capture", "capture"]


@dataclass(frozen=True)
class Capture:
    """The traced joint graph and how it is called."""

    graph_module: fx.GraphModule  # placeholders and output carry meta["desc"]
    metadata: Any  # AOTAutograd's ViewAndMutationMeta
    output_tree: Tree  # of what the model returns
    output_leaves: list[tuple[bool, Any]]  # per leaf: (is a tensor, its value otherwise)
    requires_grad: list[bool]  # per tensor the model returns
    differentiated: list[bool]  # per tensor the model returns: a gradient through it is planned for
    settings: ModelSettings  # attributes the forward may have read


def capture(model: nn.Module, state: ModelState, call: Call, *, unroll_rnn: bool, loss_only: bool) -> Capture:
    """Trace the training step of `model` for `call`. Raises ExportError naming the line that cannot be traced.

    unroll_rnn: trace RNN modules step by step instead of as opaque ops.
    loss_only: where exactly one output is a scalar that requires a gradient, plan for its gradient alone.
    """
    try:
        return _trace(_Traced(model, state, call, loss_only), unroll_rnn=unroll_rnn, compiling=False)
    except ExportError:
        # Libraries that branch on tensor values often do not where torch says that it is compiling. Only then are
        # they told so: it also makes them choose other kernels than they run in eager mode.
        return _trace(_Traced(model, state, call, loss_only), unroll_rnn=unroll_rnn, compiling=True)


def _trace(traced: _Traced, *, unroll_rnn: bool, compiling: bool) -> Capture:
    model = traced.model
    tensors = unique_tensors(traced.call.leaves)
    with ExitStack() as stack:
        stack.enter_context(preserved_model(model))
        stack.enter_context(mock.patch.object(torch.compiler, "_is_compiling_flag", compiling))
        stack.enter_context(mock.patch.object(torch.utils.checkpoint, "CheckpointFunction", _PlainCheckpoint))
        stack.enter_context(_unlogged())
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
    """The model as AOTAutograd sees it: unique parameters and buffers, tensors in, tensors out."""

    model: nn.Module
    output_tree: Tree
    output_leaves: list[tuple[bool, Any]]
    requires_grad: list[bool]
    differentiated: list[bool]

    def __init__(self, model: nn.Module, state: ModelState, call: Call, loss_only: bool) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule: its parameters are registered below, once each
        self._names = {f"p{i}": name for i, name in enumerate(state.parameters)}
        self._names |= {f"b{i}": name for i, name in enumerate(state.buffers)}
        for own, parameter in zip(self._names, state.parameters.values(), strict=False):
            self.register_parameter(own, nn.Parameter(parameter.detach(), parameter.requires_grad))
        for i, buffer in enumerate(state.buffers.values()):
            self.register_buffer(f"b{i}", buffer.detach())
        self.call = call
        self.python_state = PythonState(model)
        self._loss_only = loss_only
        self._positions = {id(t): i for i, t in enumerate(unique_tensors(call.leaves))}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensors[self._positions[id(leaf)]] if isinstance(leaf, Tensor) else leaf for leaf in self.call.leaves]
        args, kwargs = unflatten(leaves, self.call.tree)
        owned = {name: getattr(self, own) for own, name in self._names.items()}
        model = self.model
        hook = model.register_forward_hook(_WriteBack(owned))
        try:
            with (
                preserved_model(model),
                self.python_state.watching(),
            ):  # traced several times, each time from the same state
                output = torch.func.functional_call(model, owned, args, kwargs, tie_weights=True)
        finally:
            hook.remove()
        outputs, self.output_tree = flatten(output)
        self.output_leaves = [(True, None) if isinstance(leaf, Tensor) else (False, leaf) for leaf in outputs]
        returned = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        self.requires_grad = [t.requires_grad for t in returned]
        losses = [t for t in returned if t.requires_grad and t.dim() == 0]
        only = losses[0] if self._loss_only and len(losses) == 1 else None
        self.differentiated = [t.requires_grad and (only is None or t is only) for t in returned]
        return tuple(
            t.detach() if t.requires_grad and not d else t for t, d in zip(returned, self.differentiated, strict=True)
        )


class _PlainCheckpoint:
    """The model's own reentrant checkpoints while tracing: what they would recompute is for the plan to decide."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


class _WriteBack:
    """After the model's forward: a buffer that was replaced (`self.n = self.n + 1`) is updated in place instead."""

    def __init__(self, owned: dict[str, Tensor]) -> None:
        self._owned = owned

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        for name, held in model.named_buffers():
            owned = self._owned.get(name)
            if owned is None or held is owned:
                continue
            if held.shape != owned.shape or held.dtype != owned.dtype:
                raise ExportError(
                    f"the model replaces its buffer {name} by one of another shape or dtype "
                    f"({tuple(held.shape)} {held.dtype}): keep the shape, or hold the state outside the model"
                )
            owned.copy_(held)


def _fake_constants(module: fx.GraphModule) -> list[Tensor]:
    """Tensors that the graph reads beside its inputs; their nodes get the fake tensors that views of them refer to."""
    found: list[Tensor] = []
    mode: Any = detect_fake_mode([node.meta.get("val") for node in module.graph.nodes])
    for node in module.graph.find_nodes(op="get_attr"):
        held = getattr(module, str(node.target), None)
        if isinstance(held, Tensor):
            found.append(held)
            node.meta["val"] = mode.from_tensor(held)
            _read_directly(node)
    return found


def _read_directly(constant: fx.Node) -> None:
    """Read a constant of the graph, made by torch.tensor in forward, without copying it; where it is returned, copy."""
    for copied in [user for user in constant.users if user.target is torch.ops.aten.lift_fresh_copy.default]:
        copied.replace_all_uses_with(constant, delete_user_cb=lambda user: user.op != "output")
        if copied.users:
            copied.target = torch.ops.aten.clone.default
            with constant.meta["val"].fake_mode:
                copied.meta["val"] = torch.empty_like(constant.meta["val"])
        else:
            constant.graph.erase_node(copied)


def _fake_leaves(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Leaves that share storage with the arguments; AOTAutograd fakes them."""
    for tensor in tensors:
        yield tensor.detach().requires_grad_(tensor.requires_grad)


@contextmanager
def _unlogged() -> Iterator[None]:
    """torch logs errors of fake tensors with their traceback; here they are raised, and explained."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _explain(error: Exception) -> ExportError:
    """The error in the user's words: what happened, at which line, what to do."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
            return ExportError(
                f"{_line_of(cause)}the model asks for the value of a tensor ({_op_of(cause)}), which is not known "
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
    """The innermost line of user code in the traceback, with a colon; "" where there is none."""
    line = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if is_user_file(path):
            line = f"{path}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return line
