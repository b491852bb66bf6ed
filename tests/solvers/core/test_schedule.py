"""Tests of plans built from sequences: frees by liveness against lifetimes by hand and by brute force."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.errors import PlanError
from remat_solvers.generate import adversarial, chain, training_graph
from remat_solvers.plan import Compute, Free
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.schedule import plan_from_sequence, store_all, tangents_op
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate


def store_all_peak(problem: Problem) -> int:
    """Peak of the store-all plan: at every op, all values computed so far that are still read or are results."""
    static = problem.reserve_bytes + sum(v.bytes for v in problem.values if v.kind == "constant")
    peak = static
    for index, op in enumerate(problem.ops):
        resident = op.workspace_bytes
        for v, value in enumerate(problem.values):
            if value.kind == "constant":
                continue
            producer = next(i for i, other in enumerate(problem.ops) if v in other.outputs)
            last_reader = max([producer, *(i for i, other in enumerate(problem.ops) if v in other.inputs)])
            if producer <= index and (index <= last_reader or v in problem.results):
                resident += value.bytes
        peak = max(peak, static + resident)
    return peak


@given(n=st.integers(1, 20), seed=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_the_peak_of_store_all_follows_from_lifetimes(n: int, seed: int) -> None:
    for problem in (training_graph(n, seed), adversarial(seed)):
        plan = store_all(problem)
        assert validate(problem, plan) == []
        line = simulate(problem, plan)
        assert line.peak_bytes == store_all_peak(problem)
        assert line.time_ns == sum(op.time_ns for op in problem.ops)


def test_each_instance_of_a_value_is_freed_after_its_last_reader() -> None:
    plan = plan_from_sequence(chain(3), [0, 1, 2, 0, 1, 3, 0, 4, 5])
    # F1 F2 F3 | F1 F2 B3 F1 B2 B1: F2 reads v0 both times, and B2 reads the third instance of v0.
    assert list(plan) == [
        *(Compute(0), Compute(1), Free(0), Compute(2), Free(1)),
        *(Compute(0), Compute(1), Free(0), Compute(3), Free(1), Free(2)),
        *(Compute(0), Compute(4), Free(0), Free(3), Compute(5), Free(4)),
    ]


def two_outputs() -> Problem:
    """split computes values 0 to 2: loss reads 0, b1 reads 1 and b2 reads 0; the output of loss is a forward result."""
    ops = (
        Op("split", "forward", (), (0, 1, 2), 1),
        Op("loss", "forward", (0,), (3,), 1),
        Op("tangents", "backward", (), (4,), 0, recomputable=False),
        Op("b1", "backward", (4, 1), (5,), 1),
        Op("b2", "backward", (5, 0), (6,), 1),
    )
    kinds = ("activation",) * 4 + ("gradient",) * 3
    values = tuple(Value(f"v{i}", 1, kind) for i, kind in enumerate(kinds))  # type: ignore[arg-type]
    return Problem("two outputs", ops, values, (3, 6))


def test_only_the_outputs_of_a_recomputed_op_that_are_read_stay() -> None:
    plan = plan_from_sequence(two_outputs(), [0, 1, 2, 0, 3, 0, 4])
    assert list(plan) == [
        *(Compute(0), Free(1), Free(2), Compute(1), Free(0), Compute(2)),
        *(Compute(0), Free(0), Free(2), Compute(3), Free(4), Free(1)),
        *(Compute(0), Free(1), Free(2), Compute(4), Free(5), Free(0)),
    ]


def test_a_forward_result_stays_when_its_op_is_recomputed() -> None:
    problem = two_outputs()
    plan = plan_from_sequence(problem, [0, 1, 2, 3, 1, 4])
    assert Free(3) not in plan
    assert validate(problem, plan) == []


def test_tangents_come_first_after_the_boundary() -> None:
    problem = two_outputs()
    assert tangents_op(problem) == 2
    plan = plan_from_sequence(problem, [0, 1, 0, 2, 3, 4])
    boundary = simulate(problem, plan).boundary
    assert plan[boundary] == Compute(2)
    assert tangents_op(chain(3)) is None


def test_a_sequence_that_reads_a_missing_value_is_refused() -> None:
    with pytest.raises(PlanError, match="op 1 reads value 0"):
        plan_from_sequence(chain(3), [1, 0, 2, 3, 4, 5])
    with pytest.raises(PlanError, match="result 5"):
        plan_from_sequence(chain(3), [0, 1, 2, 3, 4])
