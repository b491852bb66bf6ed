"""Chain methods on small real problems: overheads lie between proven bounds and those of plainer forms in a study."""

from __future__ import annotations

import pytest

from remat_solvers.registry import create
from remat_solvers.result import Status
from remat_solvers.schedule import baseline
from remat_solvers.solving import solve
from tests.solvers.makers import corpus_problem

# Overheads in per cent: proven lower bounds, and the study's Chen, rotor (two options per block) and Kusumoto.
PROVEN = {("unet", 0.8): 2.877, ("r50", 0.9): 1.14, ("r50", 0.4): 12.99, ("gpt", 0.4): 15.67, ("lstm", 0.4): 17.7}
STUDIED = {("rotor", "r50", 0.4): 31.3, ("rotor", "gpt", 0.4): 28.4, ("kusumoto", "unet", 0.8): 28.6}


@pytest.mark.parametrize("name", ["chain50", "gpt", "r50", "unet"])
@pytest.mark.parametrize("method", ["gruslys", "revolve", "kusumoto", "rotor"])
def test_on_the_corpus(method: str, name: str) -> None:
    problem = corpus_problem(name)
    unmodified = baseline(problem)
    for budget in (0.9, 0.8, 0.4, 0.3):
        result = solve(problem, int(budget * unmodified.peak_bytes), solver=method)
        if result.time_ns is None:
            assert method == "kusumoto"
            assert budget <= 0.4
            assert result.status is Status.NOT_FOUND
            assert result.smallest_peak_bytes is not None
            assert result.budget_bytes < result.smallest_peak_bytes < unmodified.peak_bytes
        else:
            overhead = 100 * (result.time_ns / unmodified.time_ns - 1)
            assert PROVEN.get((name, budget), 0) <= overhead
            assert overhead <= STUDIED.get((method, name, budget), 1200)


@pytest.mark.parametrize(
    ("method", "options"), [("gruslys", {"strategy": "mixed"}), ("revolve", {}), ("rotor", {"cuts": "renewed"})]
)
def test_on_an_unrolled_lstm(method: str, options: dict[str, object]) -> None:
    problem = corpus_problem("lstm")
    unmodified = baseline(problem)
    for budget, max_overhead in ((0.9, 30), (0.5, 30), (0.4, 40)):
        result = solve(problem, int(budget * unmodified.peak_bytes), solver=create(method, **options))
        assert result.time_ns is not None
        overhead = 100 * (result.time_ns / unmodified.time_ns - 1)
        assert PROVEN.get(("lstm", budget), 0) <= overhead <= max_overhead
