"""Tests of segments: blocks by module or by structure are recomputed as torch.utils.checkpoint does."""

from __future__ import annotations

from collections import Counter

import pytest

from remat_solvers.errors import InputError
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.segments import Segments, blocks, wrapped
from remat_solvers.result import Status
from remat_solvers.solving import solve
from tests.solvers.makers import layers


def test_a_checkpointed_block_is_recomputed_once_and_its_ends_are_kept() -> None:
    """Each block has two ops: the first is inside, and the next block (or the start of backward) reads the second."""
    problem = layers(*["relu"] * 8, module="net.{}")
    assert blocks(problem) == {op: op // 2 for op in range(8)}
    runs = Counter(wrapped(problem, blocks(problem), 1))
    # No other forward op reads the last block's output, so it is inside and is recomputed as well.
    assert [runs[op] for op in range(8)] == [2, 1, 2, 1, 2, 1, 2, 2]
    runs = Counter(wrapped(problem, blocks(problem), 2))
    assert [runs[op] for op in range(8)] == [2, 1, 1, 1, 2, 1, 1, 1]


VALUES = (Value("a", 1, "activation"), Value("g", 1, "gradient"))


def test_blocks_by_level_and_by_structure() -> None:
    problem = layers(*["relu"] * 6, module="stage.0.layer.{}.act")
    assert len(set(blocks(problem, "inner").values())) == 3
    assert len(set(blocks(problem, "outer").values())) > 3  # only one outer number exists, so blocks are by structure
    assert blocks(layers(*["relu"] * 6)) == {0: 0, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    single = Problem("one", (Op("f", "forward", (), (0,), 1), Op("b", "backward", (0,), (1,), 1)), VALUES, (1,))
    result = solve(single, 1, solver="segments")
    assert result.status in (Status.INFEASIBLE, Status.NOT_APPLICABLE)


@pytest.mark.parametrize("wrong", [{"level": "all"}, {"every": 0}])
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Segments(**wrong)  # type: ignore[arg-type]
