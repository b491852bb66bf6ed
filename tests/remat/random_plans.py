"""Plans that move and recompute values at random: valid, whatever they cost."""

from __future__ import annotations

from random import Random

from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Problem
from remat_solvers.schedule import store_all

__all__ = ["random_swaps"]


def random_swaps(problem: Problem, seed: int, *, most_actions: int = 3000, results: bool = False) -> Plan:
    """The store-all plan, in which values leave at random and come back before they are read, or earlier.

    Values are copied out again, stay on the device after a copy, or are fetched and not read. With results=True results
    of backward ops leave as well.
    """
    random = Random(seed)
    forward = {v for op in problem.forward_ops for v in problem.ops[op].outputs}
    fixed = {v for v in problem.results if not results or v in forward}
    here: dict[int, None] = {}
    away: dict[int, None] = {}
    copied: set[int] = set()
    plan: list[Action] = []

    def bring(value: int) -> None:
        plan.append(Fetch(value))
        del away[value]
        here[value] = None

    for action in store_all(problem):
        if isinstance(action, Free):
            if action.value in away:
                del away[action.value]
            else:
                plan.append(action)
                del here[action.value]
            continue
        assert isinstance(action, Compute)
        for value in problem.ops[action.op].inputs:
            if value in away:
                bring(value)
        plan.append(action)
        here |= dict.fromkeys(problem.ops[action.op].outputs)
        for value in [v for v in away if random.random() < 0.2 and len(plan) < most_actions]:
            bring(value)
        for value in [v for v in here if v not in fixed and random.random() < 0.15 and len(plan) < most_actions]:
            if value not in copied or random.random() < 0.3:
                plan.append(Offload(value))
                copied.add(value)
            if random.random() < 0.7:
                plan.append(Free(value))
                del here[value]
                away[value] = None
    for value in [v for v in away if v in problem.results]:
        bring(value)
    return Plan(plan)
