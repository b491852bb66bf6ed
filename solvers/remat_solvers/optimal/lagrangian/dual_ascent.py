"""The prices at which the bound of layered_network.py is highest.

L(lambda) is concave: the least of finitely many lines, one per point x, time(x) + sum_k lambda_k (used_k(x) - room_k).
Kelley's cutting planes: keep the lines met so far, go to the prices where their least is largest, add the line found
there. With few moments there are few prices, so tens of steps suffice, whatever the size of the graph. A step is damped
towards the best prices so far (Wentges 1997), which spares the first wild ones.

What the sum may be wrong by. For any choice of states it is a sum of at most N doubles that are not negative, N the
number of tables and a few for what is inside them; an operation is off by a factor of at most 1 + 2**-53. So the
minimum is off by less than N 2**-52 times itself, and the rent of the room likewise. `bound_ns` has that taken off.
"""

from __future__ import annotations

from math import ceil, inf

import numpy as np

from remat_solvers.optimal.lagrangian.program import LagrangianProgram, Point
from remat_solvers.processes.stopwatch import Stopwatch
from remat_solvers.toolkit.arrays import Floats
from remat_solvers.toolkit.programs.highs import new_highs
from remat_solvers.toolkit.programs.rows import Rows

__all__ = ["DualAscent"]

MOST_STEPS = 60
DAMPING = 0.3  # share of the best prices in the next ones
FIRST_CAP = 4.0  # on a price of all the room, in store-all times
MOST_CAP = 1e6
CLOSE = 1e-6  # of the store-all time: what is still to gain when the ascent ends
ROUNDING = 2.0**-52
INSIDE = 32  # operations inside a table and in the rent


class DualAscent:
    """Climbs to the best prices, a step at a time."""

    def __init__(self, priced: LagrangianProgram, budget_bytes: int, prices: Floats | None = None) -> None:
        self.priced = priced
        self.room = priced.room(budget_bytes)
        self.unit_ns = max(1, int(priced.graph.time_ns.sum()))
        self.prices = np.zeros(priced.moments) if prices is None else prices  # ns per byte, the best so far
        self.next = self.prices
        self.value = -inf  # of the bound, at `prices`
        self.most = inf  # no prices under the cap give more
        self.cap = FIRST_CAP
        self.points: list[Point] = []
        self.weights = np.zeros(0)  # per point: in the mixture that the LP of all points would take
        self.bound_ns = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing more to gain."""
        return self.impossible or self.most - self.value <= CLOSE * self.unit_ns

    @property
    def impossible(self) -> bool:
        """Whether no point fits: the bound is above the time of every point, each op in each stage at most."""
        return self.bound_ns > (self.priced.moments + 1) * self.unit_ns

    def climb(self, watch: Stopwatch) -> None:
        """RefinementStep to the end, or until the watch expires."""
        for _ in range(MOST_STEPS):
            self.step()
            if self.done or watch.expired:
                return

    def step(self) -> None:
        """Ask for the point at the next prices."""
        minimum, point = self.priced.minimum(self.next)
        rent = float((self.next * self.room).sum())
        value = minimum - rent
        doubt = ROUNDING * (self.priced.program.terms + INSIDE) * (abs(minimum) + abs(rent))
        self.bound_ns = max(self.bound_ns, ceil(value - doubt))
        self.points.append(point)
        if value > self.value:
            self.value, self.prices = value, self.next
        target = self._master()
        self.next = target + DAMPING * (self.prices - target)
        if np.allclose(self.next, self.prices, rtol=1e-9, atol=0):
            self.next = target

    def _master(self) -> Floats:
        """The prices where the least of the lines is largest; per unit of time and of room inside."""
        room = np.maximum(self.room, 1).astype(np.float64)
        over = np.array([p.used_bytes - self.room for p in self.points]) / room
        rows = Rows()
        times = np.array([p.time_ns for p in self.points]) / self.unit_ns
        rows.add_dense(np.column_stack((-over, np.ones(len(times)))), -inf, times)
        moments = len(room)
        costs, lower = np.array([0.0] * moments + [-1.0]), np.array([0.0] * moments + [-inf])
        while True:
            highs = new_highs()
            highs.passModel(rows.to_highs(costs, np.array([self.cap] * moments + [inf]), lower=lower))
            highs.run()
            solution = highs.getSolution()
            prices = np.array(solution.col_value)[:moments]
            if (
                self.cap >= MOST_CAP
                or (prices < self.cap).all()
                or -highs.getInfo().objective_function_value > MOST_CAP
            ):
                break
            self.cap *= 4
        self.most = -highs.getInfo().objective_function_value * self.unit_ns
        self.weights = -np.array(solution.row_dual)
        return prices * self.unit_ns / room
