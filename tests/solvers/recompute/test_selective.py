"""Tests of selective: matrix products, convolutions and attention are kept; all other values are recomputed."""

from __future__ import annotations

from collections import Counter

import pytest

from remat_solvers.errors import InputError
from remat_solvers.generate import chain
from remat_solvers.recompute.selective import Selective
from remat_solvers.result import Status
from remat_solvers.schedule import baseline, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from tests.solvers.makers import corpus_problem, layers


@pytest.mark.parametrize(("name", "peak", "overhead"), [("unet", 0.558, 11.62), ("r50", 0.594, 24.64)])
def test_selective_on_real_graphs(name: str, peak: float, overhead: float) -> None:
    """The figures are from an earlier, independent study of the same graphs: .558 at 11.6 %, .594 at 24.6 %."""
    problem = corpus_problem(name)
    unmodified = baseline(problem)
    line = simulate(problem, plan_from_sequence(problem, Selective().sequence(problem, 1)))
    assert line.peak_bytes / unmodified.peak_bytes == pytest.approx(peak, abs=5e-4)
    assert 100 * (line.time_ns / unmodified.time_ns - 1) == pytest.approx(overhead, abs=5e-3)


def test_every_second_product_is_also_dropped() -> None:
    problem = layers("mm", "relu", "mm", "relu", "mm", "relu")
    assert Counter(Selective().sequence(problem, 1))[2] == 1
    computations = Counter(Selective().sequence(problem, 2))
    assert [computations[op] for op in range(6)] == [1, 2, 2, 2, 1, 2]


def test_selective_is_not_applicable_without_ops_to_keep() -> None:
    problem = chain(8)
    result = solve(problem, 7, solver="selective")
    assert result.status is Status.NOT_APPLICABLE
    assert "matmul" in result.reason


@pytest.mark.parametrize("wrong", [{"keep": ("norm",)}, {"every": 0}])
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Selective(**wrong)  # type: ignore[arg-type]
