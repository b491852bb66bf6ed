"""Reads a training step as the layers of the networks that swapping methods were written for.

A layer is a forward op. Its X (the paper's feature maps) are the values it reads, constants left out.

Backward ops belong to layers too: to the latest layer that reads or computes every forward value which the op reads,
and to no later layer than the op before it, since backward runs through the layers in reverse order. Where no layer
touches all of those values, to the latest that touches any of them; ops that read no forward value go with the op
before.
"""

from __future__ import annotations

from remat_solvers.problem import Problem
from remat_solvers.toolkit.transfers.intervals import IdleInterval, idle_intervals


def backward_layers(problem: Problem) -> dict[int, int]:
    """Map every backward op to the layer whose backward it belongs to."""
    touching: dict[int, set[int]] = {}  # forward value -> layers that compute or read it
    for op in problem.forward_ops:
        for value in (*problem.ops[op].inputs, *problem.ops[op].outputs):
            if problem.producer[value] >= 0:
                touching.setdefault(value, set()).add(op)
    layer = problem.forward_ops[-1] if problem.forward_ops else -1
    layers: dict[int, int] = {}
    for op in problem.backward_ops:
        candidates = [{k for k in touching[v] if k <= layer} for v in problem.ops[op].inputs if v in touching]
        common = set.intersection(*candidates) if candidates else set()
        layer = max(common or set().union(*candidates), default=layer)
        layers[op] = layer
    return layers


def feature_maps(problem: Problem) -> list[IdleInterval]:
    """The intervals between the last forward and the first backward use of forward values, in the order they begin.

    Positions are ops, in the problem's order. Results of the forward, which stay with the caller, are left out.
    """
    phase = [op.phase for op in problem.ops]
    return [
        i
        for i in idle_intervals(problem, range(len(problem.ops)))
        if problem.values[i.value].bytes
        and phase[i.last] == "forward"
        and i.back < len(phase)
        and phase[i.back] == "backward"
    ]


def within_host(problem: Problem, intervals: list[IdleInterval]) -> list[IdleInterval]:
    """Those of `intervals` that the host has room for, taken in order; the values of the others stay on the device."""
    room_bytes = problem.link.host_bytes if problem.link else 0
    if room_bytes is None:
        return intervals
    taken = []
    for interval in intervals:
        size_bytes = problem.values[interval.value].bytes
        if size_bytes <= room_bytes:
            room_bytes -= size_bytes
            taken.append(interval)
    return taken
