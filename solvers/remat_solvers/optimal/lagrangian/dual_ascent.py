"""Finds the memory prices at which the Lagrangian bound of program.py is highest.

L(lambda) is concave: the minimum of finitely many linear functions, one per point x,
time(x) + sum_k lambda_k (used_k(x) - capacity_k). It is maximised by Kelley's cutting planes: keep the linear functions
found so far, go to the prices where their minimum is largest, and add the function of the point found there. With few
moments there are few prices, so tens of steps suffice, whatever the size of the graph. A step is damped towards the
best prices so far (Wentges 1997), since the first steps would otherwise overshoot.

The rounding error of the sum. For any choice of states it is a sum of at most N doubles that are not negative, N the
number of tables and a few for the operations inside them; an operation is off by a factor of at most 1 + 2**-53. So the
minimum is off by less than N 2**-52 times itself, and the cost of the capacity likewise. `bound_ns` is lowered by that.
"""

from __future__ import annotations

from math import ceil, inf

import numpy as np

from remat_solvers.optimal.lagrangian.program import LagrangianProgram, Point
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.toolkit.arrays import Floats
from remat_solvers.toolkit.programs.highs import new_highs
from remat_solvers.toolkit.programs.rows import Rows

MAX_STEPS = 60
DAMPING = 0.3  # share of the best prices in the next ones
FIRST_PRICE_CAP = 4.0  # on the price of the whole capacity, in store-all times
MAX_PRICE_CAP = 1e6
MIN_GAIN = 1e-6  # of the store-all time: the ascent ends when no more than this can be gained
ROUNDING = 2.0**-52
EXTRA_OPERATIONS = 32  # inside a table, and for the cost of the capacity


class DualAscent:
    """Climbs to the best prices, step by step."""

    def __init__(self, program: LagrangianProgram, budget_bytes: int, prices: Floats | None = None) -> None:
        self.program = program
        self.capacity = program.capacity(budget_bytes)
        self.unit_ns = max(1, int(program.graph.time_ns.sum()))
        self.prices = np.zeros(program.moments) if prices is None else prices  # ns per byte, the best so far
        self.next = self.prices
        self.value = -inf  # of L, at `prices`
        self.upper_bound = inf  # of L, for all prices under the cap
        self.price_cap = FIRST_PRICE_CAP
        self.points: list[Point] = []
        self.weights = np.zeros(0)  # per point, in the optimal mixture of all points
        self.bound_ns = 0

    @property
    def done(self) -> bool:
        """Whether nothing more can be gained."""
        return self.impossible or self.upper_bound - self.value <= MIN_GAIN * self.unit_ns

    @property
    def impossible(self) -> bool:
        """Whether no point fits: the bound exceeds the time of every point (each op at most once in each stage)."""
        return self.bound_ns > (self.program.moments + 1) * self.unit_ns

    def climb(self, watch: Stopwatch) -> None:
        """Take steps until done, or until the watch expires."""
        for _ in range(MAX_STEPS):
            self.step()
            if self.done or watch.expired:
                return

    def step(self) -> None:
        """Evaluate L at the next prices, and choose the prices after them."""
        minimum, point = self.program.minimum(self.next)
        capacity_cost = float((self.next * self.capacity).sum())
        value = minimum - capacity_cost
        doubt = ROUNDING * (self.program.elimination.terms + EXTRA_OPERATIONS) * (abs(minimum) + abs(capacity_cost))
        self.bound_ns = max(self.bound_ns, ceil(value - doubt))
        self.points.append(point)
        if value > self.value:
            self.value, self.prices = value, self.next
        target = self._next_prices()
        self.next = target + DAMPING * (self.prices - target)
        if np.allclose(self.next, self.prices, rtol=1e-9, atol=0):
            self.next = target

    def _next_prices(self) -> Floats:
        """The prices where the minimum of the linear functions is largest. The LP has units of time and of capacity."""
        capacity = np.maximum(self.capacity, 1).astype(np.float64)
        over = np.array([p.used_bytes - self.capacity for p in self.points]) / capacity
        rows = Rows()
        times = np.array([p.time_ns for p in self.points]) / self.unit_ns
        rows.add_dense(np.column_stack((-over, np.ones(len(times)))), -inf, times)
        moments = len(capacity)
        costs, lower = np.array([0.0] * moments + [-1.0]), np.array([0.0] * moments + [-inf])
        while True:
            highs = new_highs()
            highs.passModel(rows.to_highs(costs, np.array([self.price_cap] * moments + [inf]), lower=lower))
            highs.run()
            solution = highs.getSolution()
            prices = np.array(solution.col_value)[:moments]
            if (
                self.price_cap >= MAX_PRICE_CAP
                or (prices < self.price_cap).all()
                or -highs.getInfo().objective_function_value > MAX_PRICE_CAP
            ):
                break
            self.price_cap *= 4
        self.upper_bound = -highs.getInfo().objective_function_value * self.unit_ns
        self.weights = -np.array(solution.row_dual)
        return prices * self.unit_ns / capacity
