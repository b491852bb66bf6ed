"""Writes certificates of many leaves, which prove the bound of the integer program, not only of its relaxation.

Best-first branch and bound over the LP of certify.py. A node fixes some of the 0/1 variables; its LP gives weights
of rows that prove a bound for all plans that take these values. The node of the lowest bound is split, and its two
children replace it. So the open nodes are leaves that cover every plan at any time, and the lowest of their bounds
holds. The variable to branch on is the one whose two sides raise the bound most in a few simplex steps (strong
branching, Achterberg, Koch, Martin 2005), among those that are furthest from integers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from remat_solvers.optimal.certify import Interval, RelaxedProgram, certify
from remat_solvers.problem import Problem
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.result import Certificate, Leaf, Limits, Order

Fixings: TypeAlias = tuple[tuple[int, int], ...]  # column, 0 or 1

CANDIDATES = 8  # variables that are tried before one is branched on
TRIAL_STEPS = 60  # of the simplex method, in a trial
INTEGRALITY = 1e-6
MIN_GAIN = 1e-6  # so that a product of gains compares where one is 0


def certify_tree(
    problem: Problem,
    budget_bytes: int,
    *,
    order: Order,
    at: Sequence[int],
    intervals: Sequence[Interval] = (),
    target_ns: int,
    nodes: int = 200,
    seconds: float | None = None,
) -> Certificate:
    """Evidence for a bound of up to `target_ns`, after at most `nodes` branchings; never less than `certify` proves.

    target_ns: the time of a known plan, or a little less: a node that proves it is not split. A certificate that no
    plan fits comes from `certify`. Raises InputError for `at` that the order does not allow.
    """
    watch = Stopwatch(Limits(seconds))
    root = certify(problem, budget_bytes, order=order, at=at, intervals=intervals, seconds=seconds)
    if root.bound_ns is None or root.bound_ns >= target_ns:
        return root
    tree = _Tree(RelaxedProgram(problem, budget_bytes, order, at, intervals))
    while tree.bound_ns < target_ns and tree.branchings < nodes and not watch.expired and tree.branch():
        pass
    certificate = tree.program.certificate(*tree.leaves())
    return certificate if certificate.bound_ns is None or certificate.bound_ns > root.bound_ns else root


@dataclass(order=True)
class _Node:
    bound_ns: float  # of its LP; inf: it contains no plan
    number: int
    fixed: Fixings
    leaf: Leaf
    point: Any  # of the LP, per column


class _Tree:
    """The leaves, in a heap. One solver solves their LPs, each from the basis of the one before."""

    def __init__(self, program: RelaxedProgram) -> None:
        self.program = program
        self.solver, self.unit_ns = program.solver(excess=False, seconds=None)
        self.solver.setOptionValue("presolve", "off")
        self.width = len(program.variables)
        self.base_ns = sum(
            op.time_ns
            for op, low, high in zip(program.problem.ops, program.low, program.high, strict=True)
            if low == high
        )
        self.fixed: dict[int, int] = {}  # in the solver now: column to 0 or 1
        self.branchings = 0
        self.heap: list[_Node] = []
        self._add(())

    @property
    def bound_ns(self) -> float:
        """The bound that all leaves prove together, as the solver computes it."""
        return self.heap[0].bound_ns

    def branch(self) -> bool:
        """Split the leaf of the lowest bound. Return whether it had a variable to split on."""
        node = heapq.heappop(self.heap)
        column = None if node.point is None else self._choose(node)
        if column is None:
            heapq.heappush(self.heap, node)
            return False
        self.branchings += 1
        for side in (0, 1):
            self._add((*node.fixed, (column, side)))
        return True

    def leaves(self) -> list[Leaf]:
        """All of them, with the variables by name."""
        variables = self.program.variables
        return [
            replace(node.leaf, fixed=tuple((*variables[column], side) for column, side in node.fixed))
            for node in self.heap
        ]

    def _add(self, fixed: Fixings) -> None:
        import highspy

        self._fix(fixed)
        leaf = self.program.weights(self.solver, self.unit_ns)
        status = self.solver.getModelStatus()
        bound_ns, point = -np.inf, None
        if status == highspy.HighsModelStatus.kOptimal:
            bound_ns = self.base_ns + self.program.objective
            point = np.array(self.solver.getSolution().col_value)
        elif status == highspy.HighsModelStatus.kInfeasible:
            leaf, bound_ns = self._ray(leaf), np.inf
        heapq.heappush(self.heap, _Node(bound_ns, self.branchings * 2 + len(self.heap), fixed, leaf, point))

    def _ray(self, leaf: Leaf) -> Leaf:
        """Weights that prove that no point satisfies the rows."""
        _, exists, ray = self.solver.getDualRay()
        return self.program.leaf(ray) if exists else leaf

    def _fix(self, fixed: Fixings) -> None:
        wanted = dict(fixed)
        for column in self.fixed.keys() - wanted.keys():
            self.solver.changeColBounds(column, 0.0, 1.0)
        for column, side in wanted.items():
            if self.fixed.get(column) != side:
                self.solver.changeColBounds(column, float(side), float(side))
        self.fixed = wanted

    def _choose(self, node: _Node) -> int | None:
        """The column whose two sides raise the bound most, by the product of the gains."""
        distance = np.minimum(node.point, 1 - node.point)
        nearest = np.argsort(-distance, kind="stable")[:CANDIDATES]
        candidates = [int(column) for column in nearest if distance[column] > INTEGRALITY]
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        gains = [self._gain(node, column) for column in candidates]
        return candidates[int(np.argmax(gains))]

    def _gain(self, node: _Node, column: int) -> float:
        self.solver.setOptionValue("simplex_iteration_limit", TRIAL_STEPS)
        product = 1.0
        for side in (0, 1):
            self._fix((*node.fixed, (column, side)))
            self.solver.run()
            reached = self.base_ns + self.solver.getInfo().objective_function_value * self.unit_ns
            product *= max(MIN_GAIN, (reached - node.bound_ns) / self.unit_ns)
        self.solver.setOptionValue("simplex_iteration_limit", 2**31 - 1)
        return product
