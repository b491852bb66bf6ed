"""Tests of the kinds and names of operators."""

from __future__ import annotations

import pytest

from remat_solvers.problem import Op
from remat_solvers.toolkit.graphs.op_kinds import op_kind, op_name


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("aten.mm.default", "matmul"),
        ("addmm", "matmul"),
        ("aten.convolution.default", "conv"),
        ("convolution_backward", None),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", "attention"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", None),
        ("add.Tensor", None),
        ("", None),
    ],
)
def test_the_kind_of_an_op_follows_from_its_target(target: str, kind: str | None) -> None:
    assert op_kind(Op("op", "forward", (), (), 0, target=target)) == kind


def test_the_name_of_an_operator() -> None:
    assert [op_name(t) for t in ("aten.add.Tensor", "add.Tensor", "mylib.scale", "")] == ["add", "add", "mylib", ""]
