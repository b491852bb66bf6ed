"""Times and workspaces of a problem's ops: measured, or estimated for a named device."""

from __future__ import annotations

import dataclasses

import torch

from remat.capture.costs import roofline
from remat.capture.costs.measure import OpCosts, measure_ops
from remat.capture.costs.roofline import Hardware
from remat.capture.joint import JointGraph, tensors_of
from remat.capture.lower import Lowered
from remat_solvers.errors import InputError
from remat_solvers.problem import Costs, Problem

__all__ = ["add_costs", "main_device"]


def add_costs(joint: JointGraph, lowered: Lowered, costs: str | Hardware) -> Problem:
    """The problem of `lowered` with times, workspaces, and a record of where they come from."""
    device = main_device(joint)
    if costs == "measure":
        return _measured(lowered, device)
    if isinstance(costs, Hardware):
        return _estimated(lowered, costs, device)
    kind, _, name = str(costs).partition(":")
    if kind != "roofline":
        raise InputError(f"costs must be 'measure', 'roofline', 'roofline:NAME' or a Hardware, not {costs!r}")
    return _estimated(lowered, roofline.find_hardware(name or roofline.hardware_name(device)), device)


def _measured(lowered: Lowered, device: torch.device) -> Problem:
    problem = lowered.problem
    if device.type == "meta":
        raise InputError("costs='measure' cannot time a model on the meta device: name a device, costs='roofline:a100'")
    found = measure_ops([node for node in lowered.op_nodes if node is not None])
    per_op: list[OpCosts | None] = [None if node is None else found[node] for node in lowered.op_nodes]
    return dataclasses.replace(
        problem,
        ops=tuple(
            op if m is None else dataclasses.replace(op, time_ns=m.time_ns, workspace_bytes=m.workspace_bytes)
            for op, m in zip(problem.ops, per_op, strict=True)
        ),
        costs=Costs(
            source="measure_ops",
            device=device_name(device),
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            workspace=True,
            spread_ns=tuple(0 if m is None else m.spread_ns for m in per_op),
        ),
    )


def _estimated(lowered: Lowered, hardware: Hardware, device: torch.device) -> Problem:
    problem = lowered.problem
    times = [0 if node is None else roofline.estimate_ns(node, hardware) for node in lowered.op_nodes]
    return dataclasses.replace(
        problem,
        ops=tuple(dataclasses.replace(op, time_ns=t) for op, t in zip(problem.ops, times, strict=True)),
        costs=Costs(f"roofline:{hardware.name}", hardware.name, 0, str(torch.__version__), workspace=False),
    )


def device_name(device: torch.device) -> str:
    """A name under which costs of one device are comparable."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return roofline.cpu_name() if device.type == "cpu" else device.type


def main_device(joint: JointGraph) -> torch.device:
    """The device most of the step's bytes are on."""
    sizes: dict[torch.device, int] = {}
    for node in joint.nodes:
        for tensor in tensors_of(node):
            sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.untyped_storage().nbytes()
    return max(sizes, key=sizes.__getitem__, default=torch.device("cpu"))
