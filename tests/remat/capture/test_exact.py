"""The central invariant, on every model of the table: a step does what `simulate` predicts.

Expected values come from running the original model, and the store-all plan of the same graph. Peaks are those of
torch's allocator, as the profiler records them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils._pytree import tree_leaves

import remat
from remat.capture.exported import Exported
from remat.verification import TOLERANCE, TOLERANCE_BYTES, StepRecord, compare_steps, run_step
from remat_solvers.plan import Compute, Plan
from remat_solvers.problem import Problem
from remat_solvers.recompute.chen import STRATEGIES, Chen
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate
from tests.remat.models.exports import exported as exported_case
from tests.remat.models.exports import measured
from tests.remat.models.table import CASES, Case
from tests.remat.modules import CASE as BY_NAME

CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def chen_plans(exported: Exported) -> Iterator[Plan]:
    """Yield one plan of each published form, without regard to its peak."""
    for strategy in STRATEGIES:
        form = next(iter(Chen(strategy=strategy, candidates="crossing", keep_last=True).forms(exported.problem)))
        yield plan_from_sequence(exported.problem, form.sequence(exported.problem))


def check_peak(step: StepRecord, exported: Exported, plan: Plan) -> None:
    predicted = simulate(exported.problem, plan).peak_bytes
    measured = step.peak_bytes + exported.problem.constant_bytes
    assert abs(measured - predicted) <= max(TOLERANCE_BYTES, TOLERANCE * predicted)


def check_constants(problem: Problem, leaves: list[object]) -> None:
    """Constants are exactly the model's distinct storages, and every op that is not recomputable has a reason."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in leaves if isinstance(t, torch.Tensor)}
    names = [v for v in problem.values if v.kind == "constant" and not v.name.startswith("_tensor_constant")]
    assert sum(v.bytes for v in names) == sum(s.nbytes() for s in storages.values())
    for op in problem.ops:
        assert op.recomputable or op.effects or op.target in ("tangents", "remat.rnn_backward.default"), op


@CASE
def test_as_predicted_and_bit_equal(case: Case) -> None:
    exported, (_, args, kwargs) = measured(case), case.make()
    model = exported.model
    check_constants(exported.problem, [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))])
    unmodified = store_all(exported.problem)
    reference = run_step(remat.apply(exported, unmodified), args, kwargs, exported)
    check_peak(reference, exported, unmodified)
    eager = compare_steps(reference, run_step(model, args, kwargs, exported))
    assert eager.equal is case.eager_bit_equal, case.why_not
    assert eager.largest_difference < 1e-3
    for plan in chen_plans(exported):
        assert validate(exported.problem, plan) == []
        step = run_step(remat.apply(exported, plan), args, kwargs, exported)
        assert compare_steps(step, reference).equal
        check_peak(step, exported, plan)


@pytest.mark.parametrize("name", ["dropout", "drop-path", "attention-dropout", "noise"])
def test_random_ops_recomputed_many_times(name: str) -> None:
    """The plan keeps nothing for the backward: before every backward op, it recomputes the whole forward."""
    exported, (_, args, kwargs) = exported_case(BY_NAME[name]), BY_NAME[name].make()
    problem = exported.problem
    random = [i for i, op in enumerate(problem.ops) if "random" in op.effects]
    assert random
    sequence: list[int] = list(problem.forward_ops)
    for op in problem.backward_ops:
        if problem.ops[op].inputs:
            sequence += [i for i in problem.forward_ops if problem.ops[i].recomputable]
        sequence.append(op)
    plan = plan_from_sequence(problem, sequence)
    computations = sum(action == Compute(random[0]) for action in plan)
    assert computations > 5
    reference = run_step(remat.apply(exported, store_all(problem)), args, kwargs, exported)
    assert compare_steps(run_step(remat.apply(exported, plan), args, kwargs, exported), reference).equal
