"""`export`: a model and one of its calls become a problem with costs, which solvers plan and `apply` executes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from remat.capture.call import Call, ModelState, Signature, read_call, read_model, unique_tensors
from remat.capture.costs.assign import add_costs, main_device
from remat.capture.costs.roofline import Hardware
from remat.capture.joint import JointGraph, inputs_read, is_random, tensors_of
from remat.capture.lower import Lowered, lower
from remat.capture.model_settings import ModelSettings
from remat.capture.normalize import normalize
from remat.capture.output_corrections import correct_outputs
from remat.capture.trace import Capture, capture
from remat.capture.trees import Tree
from remat_solvers.errors import ApplyError, InputError
from remat_solvers.problem import Problem

Differentiate: TypeAlias = Literal["loss", "all"]


@dataclass(frozen=True)
class Exported:
    """A captured training step. Solvers read `problem`; `apply` needs the rest to execute a plan of it."""

    problem: Problem
    joint: JointGraph
    lowered: Lowered
    signature: Signature  # of the calls that it is valid for
    settings: ModelSettings  # of the model that it is valid for
    output_tree: Tree
    output_leaves: tuple[tuple[bool, Any], ...]  # per leaf of the output: (whether it is a tensor, its value otherwise)
    model: nn.Module
    call: Call
    unroll_rnn: bool
    differentiate: Differentiate
    outputs_differentiated: tuple[bool, ...]  # per tensor that the model returns: a gradient through it is planned

    def save(self, path: str | Path) -> None:
        """Write the problem with its costs as JSON (docs/plan-format.md)."""
        from remat_solvers.formats import save_problem

        save_problem(path, self.problem)

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        return self  # it is immutable, and fake tensors cannot be copied

    @property
    def device(self) -> torch.device:
        """Return the device that holds most of the step's bytes."""
        return main_device(self.joint)

    def differentiated(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return those of the model's output tensors through which a gradient is planned."""
        return [t for t, planned in zip(outputs, self.outputs_differentiated, strict=True) if planned]

    def updated_inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return those of a call's tensors that the model changes in place."""
        tensors = unique_tensors(inputs)
        sources = dict(self.joint.inputs)
        return [tensors[sources[n].index] for n in self.joint.mutated if sources[n].kind == "argument"]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Enter the autocast state in which the call was captured."""
        with ExitStack() as stack:
            for device, dtype in self.signature.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=dtype is not None))
            yield

    @property
    def random_devices(self) -> tuple[torch.device, ...]:
        """Return the devices from whose default generator the step draws."""
        devices = {tensors_of(node)[0].device for node in self.joint.nodes if is_random(node)}
        return tuple(sorted(devices, key=str))

    def capture_again(self) -> Capture:
        """Trace the step once more and return the graph as AOTAutograd gives it, with the same names of nodes."""
        with self.autocast():
            return capture(
                self.model,
                read_model(self.model),
                self.call,
                unroll_rnn=self.unroll_rnn,
                loss_only=self.differentiate == "loss",
            )

    def for_all_outputs(self) -> tuple[Exported, Any]:
        """Capture the step again with a gradient through every output, and return it with its store-all plan.

        No op is timed. Raises ApplyError where the step cannot be repeated, because it updates a buffer that it reads.
        """
        from remat_solvers.schedule import store_all

        with self.autocast():
            full = _capture(self.model, self.call, unroll_rnn=self.unroll_rnn, differentiate="all")
        if full.joint.mutated & inputs_read(full.joint):
            raise ApplyError(
                "a gradient reached an output that the plan does not differentiate, and the model updates a buffer "
                "that it also reads, so the step cannot be repeated. Pass differentiate='all' to plan for every output."
            )
        return full, store_all(full.problem)


def export(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    costs: str | Hardware = "measure",
    unroll_rnn: bool = False,
    differentiate: Differentiate = "loss",
) -> Exported:
    """Capture one training step of `model(*args, **kwargs)` without running the model.

    Activations take no memory: the step is traced on tensors without contents. Parameters, buffers, gradients,
    attributes and random generators of the model do not change.

    Args:
        costs: "measure" times each distinct op on the device of its tensors, in ns, and measures its workspace, in
            bytes. "roofline" estimates times for the present device; "roofline:NAME" (`cpu`, `a100`, `h100`,
            `rtx4090`, ...) or a `Hardware` estimates them for another one. Estimates have no workspace.
        unroll_rnn: plan inside nn.LSTM, nn.GRU and nn.RNN instead of treating each as one op.
        differentiate: "loss": where exactly one output is a scalar that requires a gradient, plan for that gradient
            alone (a gradient through another output is still right, but it is computed outside the plan). "all":
            plan for a gradient through every output.

    Raises:
        InputError: an argument has the wrong type, or an option an unknown value.
        ExportError: the model cannot be captured. The message names the line and the next thing to try.
    """
    check_call(model, args)
    with torch.inference_mode(False):
        call = read_call(model, read_model(model), args, kwargs or {})
        exported = _capture(model, call, unroll_rnn=unroll_rnn, differentiate=differentiate)
        problem = add_costs(exported.joint, exported.lowered, costs)
        return dataclasses.replace(exported, problem=problem)


def check_call(model: object, args: object) -> None:
    """Raise InputError where `model` is not a Module, or where `args` is not a sequence of arguments."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(args, Tensor) or not isinstance(args, Sequence) or isinstance(args, str):
        raise InputError(f"args must be a tuple of positional arguments, such as (x,), not {type(args).__name__}")


def _capture(model: nn.Module, call: Call, *, unroll_rnn: bool, differentiate: Differentiate) -> Exported:
    if differentiate not in ("loss", "all"):
        raise InputError(f"differentiate must be 'loss' or 'all', not {differentiate!r}")
    state: ModelState = read_model(model)
    captured = capture(model, state, call, unroll_rnn=unroll_rnn, loss_only=differentiate == "loss")
    joint = normalize(captured, state)
    correct_outputs(joint)
    lowered = lower(joint, state, type(model).__name__)
    return Exported(
        problem=lowered.problem,
        joint=joint,
        lowered=lowered,
        signature=call.signature,
        settings=captured.settings,
        output_tree=captured.output_tree,
        output_leaves=tuple((is_tensor, value) for is_tensor, value in captured.output_leaves),
        model=model,
        call=call.without_contents(),
        unroll_rnn=unroll_rnn,
        differentiate=differentiate,
        outputs_differentiated=tuple(captured.differentiated),
    )
