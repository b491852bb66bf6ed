"""The method matrix: every registered method on every model of the table, each answer a valid plan or an honest status.

A quick method solves every budget of `matrix.budgets` on models of at most LARGE_OPS ops. Any other method (those that
the registry calls slow or keeps out of the portfolio of `auto`, and those that need the model's graph) does so on
models of at most SMALL_OPS ops; on a larger one it solves one share of the peak, a different one from model to model.
Every run has a limit of SECONDS, so slow methods only search for a short time; `scripts/bench methods` gives more.
"""

from __future__ import annotations

import pytest

from remat_solvers.registry import Entry
from tests.remat.models.exports import exported
from tests.remat.models.matrix import METHODS, SHARES, Budget, budgets, position, solve_case
from tests.remat.models.table import CASES, Case
from tests.solvers.checks import check_result

SECONDS = 0.5
SMALL_OPS, LARGE_OPS = 20, 1_000


def budgets_for(case: Case, entry: Entry) -> list[Budget]:
    """Return the budgets that are solved with this method on this model."""
    problem = exported(case).problem
    all_budgets = list(budgets(problem))
    if len(problem.ops) <= (SMALL_OPS if entry.slow else LARGE_OPS):
        return all_budgets
    share = SHARES[position(case) % len(SHARES)]
    return [budget for budget in all_budgets if budget.name.startswith(f"{share}%")]


@pytest.mark.parametrize(
    ("case", "entry"),
    [pytest.param(case, entry, id=f"{case.name}-{entry.name}") for case in CASES for entry in METHODS],
)
def test_answers_are_valid_plans_or_honest(case: Case, entry: Entry) -> None:
    for budget in budgets_for(case, entry):
        result = solve_case(case, entry.name, budget, SECONDS)
        assert result.budget_bytes == budget.bytes
        check_result(exported(case).problem, result)
        assert result.plan is not None or result.reason, "neither a reason nor the smallest peak that was reached"
