"""Recognises uniform chains by their graph and solves them exactly: Griewank's binomial optimum, with its proof.

The chain. Forward ops F1..Fn, each of which computes one state x_i from x_(i-1) (F1 from constants); backward ops
Bn..B1, each of which computes the gradient g_(i-1) from g_i and one state: all read x_(i-1) (the state before) or all
read x_i (the state after). g_n is computed by an op without inputs, or x_n stands in its place. Only g_0 and x_n may be
results. The states that count, x_1..x_t, are of one size, and the Fi that compute them take one time f. A problem that
deviates from this, or that has a link, is not recognised.

Theorem. Let c be the largest number of x_1..x_t that are on the device while an op runs that reads one of them and a
gradient. In every plan, F1..Ft run together at least

    sum over k >= 0 of max(0, t - N(c, k)),      N(c, k) = binom(c + k, k) - 1

times, = r (t + 1) - binom(c + r, c + 1), r the least with t + 1 <= binom(c + r, c). This is the number that Griewank
and Walther (Algorithm 799: revolve, ACM TOMS 26(1), 2000) find for t + 1 steps and c snapshots, the start counted. So
every plan, in any order and with frees and recomputations anywhere, takes at least the time of all ops plus f times
(that number - t).

Why it holds for every plan. Any g_0 was computed by a run of B1, from a g_1 that a run of B2 computed, and so back to
the first B that reads one of x_1..x_t. These runs read x_t, x_(t-1), .., x_1, in this order: a game of pebbles. Fi puts
one on i if there is one on i - 1 (0 always has one), pebbles go at any time, and t, t - 1, .., 1 are visited in this
order: at its visit, i has a pebble, and at most c positions have one.

    Claim: if each Fi runs at most k times, t <= N(c, k).
    By induction on c + k; t = 0 where c = 0 or k = 0. Take the least y such that, from the visit of t to that of y, at
    every moment some of 1..y has a pebble (y = t is such). If y > 1, then y - 1 is not such: at some moment after the
    visit of t and before its own none of 1..y-1 has a pebble. All of F1..F(y-1) had run by then, so they run at most
    k - 1 times afterwards, and y - 1 <= N(c, k - 1). Above y, at most c - 1 pebbles are left at the visits of t..y+1;
    merge 0..y into one position that always has a pebble: t - y <= N(c - 1, k). The sum is t <= N(c, k).

In any game, merge i - 1 and i for every Fi that runs more than k times: a game with no more pebbles in which each
step left runs at most k times. So at most N(c, k) of F1..Ft run at most k times, for every k. That is the sum. (The
first proof, for plans that keep what they store: Griewank, Optimization Methods and Software 1, 1992.)

In bytes, c follows from the values that B holds beside the states: its gradients, its workspace, results of the
forward. As x_n may be of another size, the theorem is also taken for F1..Fj and x_1..x_j alone, for every j; the others
run at least once. The plan is revolve's, with the most snapshots up to c whose replay fits. It meets the bound where
that is c and all B leave room for as many states: F beside a gradient must need no more room than B (it computes a
state, too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from remat_solvers.bounds import time_bound_ns
from remat_solvers.problem import Problem
from remat_solvers.schedule import plan_from_sequence, tangents_op
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.chains.binomial import binomial_schedule, forward_steps
from remat_solvers.toolkit.chains.schedule import Advance, Back


@dataclass(frozen=True, slots=True)
class UniformChain:
    """The ops of a problem in the roles of the module's docstring."""

    problem: Problem
    forward: tuple[int, ...]  # F1..Fn
    tangents: int | None  # computes g_n; None: x_n stands in its place
    backward: tuple[int, ...]  # Bn..B1
    reads_after: bool  # Bi reads x_i, not x_(i-1)
    states: tuple[int, ...]  # x_1..x_t

    @property
    def step_ns(self) -> int:
        """The time of each of F1..Ft."""
        return self.problem.ops[self.forward[0]].time_ns

    def max_states(self, budget_bytes: int) -> list[int]:
        """Per state x_1..x_t: how many states fit while the backward op that reads it runs; may be negative."""
        problem, ops, states = self.problem, self.problem.ops, set(self.states)
        kept = set(problem.results) & {ops[self.forward[-1]].outputs[0]}
        room_bytes = budget_bytes - problem.static_bytes
        counts = []
        for op in (ops[b] for b in reversed(self.backward)):
            if not states.isdisjoint(op.inputs):
                beside = (kept | {*op.inputs, *op.outputs}) - states
                beside_bytes = op.workspace_bytes + sum(map(self._size, beside))
                counts.append((room_bytes - beside_bytes) // self._size(self.states[0]))
        return counts

    def bound_ns(self, budget_bytes: int) -> tuple[int, int]:
        """A bound on the time of all plans within the budget, and its j; the budget allows a state at every visit."""
        max_states = list(accumulate(self.max_states(budget_bytes), max))
        repeats, minus_j = max((_forward_runs(j, states) - j, -j) for j, states in enumerate(max_states, 1))
        return time_bound_ns(self.problem) + self.step_ns * repeats, -minus_j

    def sequence(self, j: int, states: int) -> list[int]:
        """The ops of revolve's schedule for x_1..x_j that holds at most so many states (at least 1) between two ops.

        The rest of the chain runs once, at the boundary.
        """
        n = len(self.forward)
        sequence: list[int] = []
        backward_left = list(self.backward)
        for step in binomial_schedule(j + 1, min(states, j + 1)):
            if isinstance(step, Advance):
                sequence += self.forward[step.first : step.end]
            elif isinstance(step, Back):
                if len(backward_left) == n:
                    sequence += [*self.forward[j:], *([] if self.tangents is None else [self.tangents])]
                after = step.stage - (1 if self.reads_after else 0)  # backward ops that come later
                sequence += backward_left[: len(backward_left) - after]
                backward_left = backward_left[len(backward_left) - after :]
        return sequence

    def _size(self, value: int) -> int:
        described = self.problem.values[value]
        return 0 if described.kind == "constant" else described.bytes


def solve_uniform_chain(problem: Problem, budget_bytes: int) -> tuple[list[int], int] | None:
    """An op sequence within the budget and a bound on the time of every plan; where they are equal, it is optimal.

    None: the problem is no uniform chain, or no schedule of revolve fits.
    """
    chain = recognise_uniform_chain(problem)
    if chain is None:
        return None
    max_states = chain.max_states(budget_bytes)
    if min(max_states) < 1:
        return None
    bound_ns, binding = chain.bound_ns(budget_bytes)
    schedules = [_fastest(chain, j, max(max_states[:j]), budget_bytes) for j in (binding, len(max_states))]
    fastest = min((schedule for schedule in schedules if schedule is not None), default=None)
    return None if fastest is None else (fastest[1], bound_ns)


def _fastest(chain: UniformChain, j: int, max_states: int, budget_bytes: int) -> tuple[int, list[int]] | None:
    """Time and ops of the schedule for x_1..x_j with the largest number of states, up to `max_states`, that fits."""
    low, high = 0, min(max_states, j)
    states = high  # nearly always the answer
    best: tuple[int, list[int]] | None = None
    while low < high:
        sequence = chain.sequence(j, states)
        timeline = simulate(chain.problem, plan_from_sequence(chain.problem, sequence))
        if timeline.peak_bytes <= budget_bytes:
            low, best = states, (timeline.time_ns, sequence)
        else:
            high = states - 1
        states = (low + high + 1) // 2
    return best


def recognise_uniform_chain(problem: Problem) -> UniformChain | None:
    """The problem as a uniform chain of two steps or more; None where it deviates anywhere."""
    ops = problem.ops
    forward = problem.forward_ops
    tangents = tangents_op(problem)
    backward = tuple(op for op in problem.backward_ops if op != tangents)
    if problem.link is not None or len(forward) < 2 or len(backward) != len(forward):
        return None
    if any(len(ops[i].outputs) != 1 for i in (*forward, *backward, *([] if tangents is None else [tangents]))):
        return None
    states = [ops[f].outputs[0] for f in forward]
    gradients = [states[-1] if tangents is None else ops[tangents].outputs[0], *(ops[b].outputs[0] for b in backward)]
    constants = {v for v, value in enumerate(problem.values) if value.kind == "constant"}
    reads = [set(op.inputs) - constants for op in ops]
    reads_after = states[0] in reads[backward[-1]]
    if not set(problem.results) - constants <= {states[-1], gradients[-1]}:
        return None
    for f, before in zip(forward, [None, *states], strict=False):
        if reads[f] != {before} - {None}:
            return None
    for k, b in enumerate(backward):
        i = len(forward) - k
        read = states[i - 1 : i] if reads_after else states[max(0, i - 2) : i - 1]
        if reads[b] != {gradients[k], *read}:
            return None
    t = len(forward) - 1
    if reads_after and tangents is not None and states[-1] not in problem.results:
        t += _identical(problem, (forward[0], forward[-1]))
    if not _identical(problem, forward[:t]) or problem.values[states[0]].bytes == 0:
        return None
    return UniformChain(problem, forward, tangents, backward, reads_after, tuple(states[:t]))


def _identical(problem: Problem, forward: Sequence[int]) -> bool:
    """Whether these ops take one time, compute states of one size and are recomputable."""
    ops = [problem.ops[f] for f in forward]
    kinds = {(op.time_ns, problem.values[op.outputs[0]].bytes, op.recomputable) for op in ops}
    return len(kinds) == 1 and ops[0].recomputable


def _forward_runs(steps: int, states: int) -> int:
    """The number of runs of F1..Ft in the theorem."""
    return forward_steps(steps + 1, min(states, steps + 1)) - (steps + 1)
