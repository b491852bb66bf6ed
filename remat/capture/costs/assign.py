"""Assignment of costs to the ops of a problem: measured, or estimated for a named device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from remat.capture.costs.cache import device_name
from remat.capture.costs.measure import OpCosts, measure_ops
from remat.capture.costs.roofline import Hardware, estimate_ns, find_hardware, hardware_name
from remat.capture.joint import JointGraph, tensors_of
from remat.capture.lower import Lowered
from remat_solvers.errors import InputError
from remat_solvers.problem import Costs, Problem

_NO_COSTS = OpCosts(0, 0, 0, 0)  # of the op `tangents`, which runs nothing


def add_costs(joint: JointGraph, lowered: Lowered, costs: str | Hardware) -> Problem:
    """Return the problem of `lowered` with times and workspaces, and with a record of their source.

    Raises InputError where `costs` is neither "measure", "roofline", "roofline:NAME" nor a Hardware.
    """
    device = main_device(joint)
    if costs == "measure":
        return _measured(lowered, device)
    if isinstance(costs, Hardware):
        return _estimated(lowered, costs)
    kind, _, name = str(costs).partition(":")
    if kind != "roofline":
        raise InputError(f"costs must be 'measure', 'roofline', 'roofline:NAME' or a Hardware, not {costs!r}")
    return _estimated(lowered, find_hardware(name or hardware_name(device)))


def _measured(lowered: Lowered, device: torch.device) -> Problem:
    if device.type == "meta":
        raise InputError(
            "costs='measure' cannot time a model on the meta device: name another device (costs='roofline:a100')"
        )
    by_node = measure_ops([node for node in lowered.op_nodes if node is not None])
    measured = [_NO_COSTS if node is None else by_node[node] for node in lowered.op_nodes]
    source = Costs(
        source="measure",
        device=device_name(device),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        workspace=True,
        spread_ns=tuple(costs.spread_ns for costs in measured),
    )
    workspaces = [costs.workspace_bytes for costs in measured]
    return _with_costs(lowered.problem, [costs.time_ns for costs in measured], workspaces, source)


def _estimated(lowered: Lowered, hardware: Hardware) -> Problem:
    times_ns = [0 if node is None else estimate_ns(node, hardware) for node in lowered.op_nodes]
    source = Costs(f"roofline:{hardware.name}", hardware.name, 0, str(torch.__version__), workspace=False)
    return _with_costs(lowered.problem, times_ns, [0] * len(times_ns), source)


def _with_costs(problem: Problem, times_ns: Sequence[int], workspaces: Sequence[int], source: Costs) -> Problem:
    ops = (
        dataclasses.replace(op, time_ns=time_ns, workspace_bytes=workspace_bytes)
        for op, time_ns, workspace_bytes in zip(problem.ops, times_ns, workspaces, strict=True)
    )
    return dataclasses.replace(problem, ops=tuple(ops), costs=source)


def main_device(joint: JointGraph) -> torch.device:
    """Return the device that holds most of the step's bytes."""
    sizes: dict[torch.device, int] = {}
    for node in joint.nodes:
        for tensor in tensors_of(node):
            sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.untyped_storage().nbytes()
    return max(sizes, key=sizes.__getitem__, default=torch.device("cpu"))
