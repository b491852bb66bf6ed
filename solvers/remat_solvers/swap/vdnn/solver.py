"""Rhu et al.: vDNN: Virtualized Deep Neural Networks for Scalable, Memory-Efficient Neural Network Design. MICRO 2016.

arXiv 1602.08124. vDNN moves feature maps, the inputs X of layers (toolkit/transfers/layers), to the host in the forward
pass and back in the backward pass. Two streams, compute and memory, are synchronised at the end of every layer that
moved something:

    forward of layer n    the copy of X_n to the host starts together with the layer, which only reads X_n; at the end
                          of the layer compute waits for it, and X_n is freed. With several readers: at the last of them
    backward of layer m   before it, findPrefetchLayer(m) looks for a layer to bring back, at most one per layer:
                              for id = m-1 .. 0:  offloaded and not brought back yet -> that one;  else CONV -> none
                          so the search ends at the nearest earlier CONV, and nothing comes back too early

ACTV runs in place and is never offloaded; the classifier stays on the device; so does the X of the last layer before
it that is no ACTV, which backward reads at once. Policies:

    all      X of every other layer
    conv     X of CONV alone, whose long kernels hide the copies
    dynamic  in the paper: 1) `all` with memory-optimal (m) algorithms must fit, or the network is untrainable; then the
             first that fits of 2) no offload, 3) conv, 4) all, each with performance-optimal (p) algorithms; 5) conv
             and all with algorithms chosen greedily layer by layer, the fastest that does not overflow; 6) all (m).
             An op of a problem has one implementation, so (m), (p) and greedy are the same: `all` must fit, then no
             offload, conv, all. `dynamic_step` is the whole ladder, for implementations that the caller states.

From the paper's networks to a graph of ops, chosen here:

- A value that any layer but an ACTV reads is managed, and freed at the last reader of any kind. A value that only ACTV
  read stays: in the paper ACTV writes over it.
- A layer has as many X as it reads values; they move together. X that backward does not read are freed by liveness.
- Backward ops belong to layers as `backward_layers` has it; a layer without any has no backward, and starts no
  prefetch.
- A value that the window did not bring back by the time it is read is fetched right before its reader.
- A plan has no action for the wait at the end of a backward layer. The reader of a fetched value waits for it, and
  copies stand in one queue, so leaving that wait out never makes a plan slower.
- A value that the host has no room for stays.

Percentages in the paper's abstract are of average, not of peak usage. There is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.swap.vdnn.layer_types import LayerType, classifier_start, layer_types
from remat_solvers.toolkit.transfers.intervals import IdleInterval, Swap, plan_with_swaps
from remat_solvers.toolkit.transfers.kernel_choice import (
    Workspaces,
    alternatives_of,
    choose_workspaces_for_plan,
    fastest_within,
    with_implementations,
)
from remat_solvers.toolkit.transfers.layers import backward_layers, feature_maps, within_host
from remat_solvers.toolkit.trials import TrialMethod, Trials

Policy: TypeAlias = Literal["dynamic", "all", "conv"]
Static: TypeAlias = Literal["all", "conv"]


@dataclass(frozen=True)
class VDNN(TrialMethod):
    """Offload the inputs of layers, prefetch them within a window."""

    policy: Policy = "dynamic"

    name: ClassVar[str] = "vdnn"
    version: ClassVar[str] = "1"
    requires = ("link to the host", "backward pass")

    def try_plans(self, trials: Trials) -> None:
        """Try the plan of the policy."""
        if self.policy == "dynamic":
            _climb_ladder(trials)
        else:
            trials.replay(offloading_plan(trials.problem, self.policy), self.policy)


def _climb_ladder(trials: Trials) -> None:
    """Replay the steps of the ladder up to the first that fits; none where even the last does not."""
    problem = trials.problem
    everything = offloading_plan(problem, "all")
    smallest_peak_bytes = simulate(problem, everything).peak_bytes
    if smallest_peak_bytes > trials.budget_bytes:
        trials.observe_peak(smallest_peak_bytes)
        return
    for form, plan in (
        ("no offload", store_all(problem)),
        ("conv", offloading_plan(problem, "conv")),
        ("all", everything),
    ):
        if trials.replay(plan, form).peak_bytes <= trials.budget_bytes:
            break


@dataclass(frozen=True, slots=True)
class LadderStep:
    """A step of the ladder: the problem with the implementations chosen, and the plan for it."""

    name: str
    problem: Problem
    plan: Plan


def dynamic_step(problem: Problem, budget_bytes: int, workspaces: Workspaces) -> LadderStep | None:
    """The step of the ladder that dynamic vDNN ends on; None: untrainable.

    workspaces: the implementations of ops, see `kernel_choice`. Plans do not depend on them, so greedy chooses beside
    the memory of a plan. It fits wherever (m) does, so the last step never remains to be taken.
    """
    alternatives = alternatives_of(problem, workspaces)
    optimal_memory = with_implementations(problem, {op: fastest_within(a, -1) for op, a in alternatives.items()})
    optimal_time = with_implementations(problem, {op: min(a) for op, a in alternatives.items()})
    plans = {
        "no offload": store_all(problem),
        "conv": offloading_plan(problem, "conv"),
        "all": offloading_plan(problem, "all"),
    }
    if simulate(optimal_memory, plans["all"]).peak_bytes > budget_bytes:
        return None
    for name, plan in plans.items():
        if simulate(optimal_time, plan).peak_bytes <= budget_bytes:
            return LadderStep(f"{name} (p)", optimal_time, plan)
    policy = "conv" if simulate(optimal_memory, plans["conv"]).peak_bytes <= budget_bytes else "all"
    greedy = choose_workspaces_for_plan(problem, plans[policy], budget_bytes, workspaces)
    return LadderStep(f"{policy} (greedy)", greedy, plans[policy])


def managed(problem: Problem, policy: Static) -> list[IdleInterval]:
    """The feature maps that `policy` offloads, each from its last reader in the forward to the first in backward."""
    types = layer_types(problem)
    end = classifier_start(problem, types)
    extracting = [op for op, kind in types.items() if op < end and kind in ("CONV", "OTHER")]
    offloading = {op for op in extracting[:-1] if policy == "all" or types[op] == "CONV"}
    chosen = []
    for interval in feature_maps(problem):
        readers = [op for op in problem.consumers[interval.value] if op <= interval.last]
        stays = extracting and extracting[-1] in readers
        if not stays and interval.last < end and not offloading.isdisjoint(readers):
            chosen.append(interval)
    return within_host(problem, chosen)


def offloading_plan(problem: Problem, policy: Static) -> Plan:
    """The step in which `policy` moves feature maps."""
    types = layer_types(problem)
    offloaded: dict[int, list[IdleInterval]] = {}  # layer -> its X that are freed at its end
    for interval in managed(problem, policy):
        offloaded.setdefault(interval.last, []).append(interval)
    waiting = dict(offloaded)  # not brought back yet
    swaps: list[Swap] = []

    def fetch(layer: int, position: int) -> None:
        for interval in waiting.pop(layer):
            out = max(interval.last - 1, problem.producer[interval.value])
            swaps.append(Swap(interval.value, out, interval.last, position))

    freed_at = {a.value: layer for layer, own in offloaded.items() for a in own}
    previous = -1
    for position, layer in backward_layers(problem).items():
        for value in problem.ops[position].inputs:
            if freed_at.get(value) in waiting:
                fetch(freed_at[value], position)
        if layer != previous:
            found = _find_prefetch_layer(problem, types, waiting, layer)
            if found is not None:
                fetch(found, position)
            previous = layer
    return plan_with_swaps(problem, range(len(problem.ops)), swaps)


def _find_prefetch_layer(
    problem: Problem, types: dict[int, LayerType], waiting: dict[int, list[IdleInterval]], current: int
) -> int | None:
    """The nearest layer before `current` that waits to come back, no farther than the nearest CONV."""
    for layer in reversed(problem.forward_ops[: problem.forward_ops.index(current)]):
        if layer in waiting:
            return layer
        if types[layer] == "CONV":
            return None
    return None
