"""The options of `solve` and `solve_in_parts`: declared once, listed by `help`, and checked by name."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import remat
from remat.options import InPartsKeywords, Parts, PartsKeywords, StepKeywords, StepOptions
from remat_solvers.errors import InputError
from tests.paths import ROOT, child_environment
from tests.remat.modules import batch, layers


def test_each_class_of_keywords_has_the_fields_and_types_of_its_options() -> None:
    assert get_type_hints(StepKeywords) == get_type_hints(StepOptions)
    assert get_type_hints(PartsKeywords) == get_type_hints(Parts)
    assert get_type_hints(InPartsKeywords) == get_type_hints(StepOptions) | get_type_hints(Parts)


@pytest.mark.parametrize("function", [remat.export, remat.apply, remat.verify])
def test_functions_with_a_few_of_the_options_have_the_same_types_and_defaults(function: Callable[..., Any]) -> None:
    options = {field.name: field for field in fields(StepOptions)}
    signature = inspect.signature(function)
    shared = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert shared
    for parameter in shared:
        assert parameter.annotation == options[parameter.name].type
        assert repr(parameter.default) == repr(options[parameter.name].default) or parameter.name == "tier"


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (remat.solve, [StepOptions]),
        (remat.solve_in_parts, [Parts, StepOptions]),
        (remat.SubBatches, [Parts]),
    ],
)
def test_the_signature_lists_every_option_with_its_default(function: Callable[..., Any], kinds: list[Any]) -> None:
    parameters = inspect.signature(function).parameters
    for kind in kinds:
        for field in fields(kind):
            assert parameters[field.name].default == field.default
            assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


def test_a_keyword_replaces_a_field_of_the_object() -> None:
    args = (batch(rows=256),)
    options = StepOptions(solver="store-all", costs="roofline", seed=3)
    by_object = remat.solve(layers(), "100%", args, options=options)
    by_both = remat.solve(layers(), "100%", args, options=options, seed=4, costs="roofline:h100")
    assert (by_object.result.seed, by_object.problem.costs.source) == (3, "roofline:cpu")
    assert (by_both.result.seed, by_both.problem.costs.source) == (4, "roofline:h100")
    assert options.seed == 3


def test_a_misspelt_keyword_is_refused_with_the_nearest_name() -> None:
    calls: dict[str, Callable[..., Any]] = {
        r"^solve\(\) got an unexpected keyword argument 'sovler': did you mean solver\?$": lambda: remat.solve(
            layers(), "60%", (batch(),), sovler="chen"
        ),
        r"^solve_in_parts\(\) .*'reductoin': did you mean reduction\?$": lambda: remat.solve_in_parts(
            layers(), "60%", (batch(),), reductoin="sum"
        ),
        r"^SubBatches.__init__\(\) .*'hwole': did you mean whole\?$": lambda: remat.SubBatches(layers(), 2, hwole=(0,)),
        r"'zzz': options are reduction, count, whole, loss$": lambda: remat.SubBatches(layers(), 2, zzz=1),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=message):
            call()


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"\{'seed': 1\} is not a remat.StepOptions"):
        remat.solve(layers(), "60%", (batch(),), options={"seed": 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"StepOptions\(\) is not a remat.Parts"):
        remat.SubBatches(layers(), 2, parts=StepOptions())  # type: ignore[arg-type]


def test_the_representation_is_the_call_that_creates_it() -> None:
    assert repr(StepOptions()) == "StepOptions()"
    assert repr(StepOptions(solver="chen", seed=2)) == "StepOptions(solver='chen', seed=2)"
    assert repr(Parts(reduction="sum")) == "Parts(reduction='sum')"
    assert pickle.loads(pickle.dumps(Parts(whole=("mask",)))) == Parts(whole=("mask",))


def test_parts_have_a_plan_for_a_last_part_unless_on_change_is_given() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x).square().mean()

    def part(**keywords: Any) -> Any:
        options = StepOptions(solver="store-all", costs="roofline:a100")
        net = remat.solve_in_parts(Loss(), "50%", (torch.randn(1001, 32),), options=options, **keywords)
        assert isinstance(net, remat.SubBatches)
        return net.model

    last_rows = torch.randn(77, 32)
    assert part()(last_rows).requires_grad
    with pytest.raises(remat.ChangedError):
        part(on_change="error")(last_rows)


SNIPPET = """
from remat.api import solve
from remat.batching.sub_batch_size import solve_in_parts

def train(model, x):
    solve(model, "8GiB", (x,), solver="chen", seed=1)
    solve_in_parts(model, "8GiB", (x,), solver="chen", reduction="sum")
    solve(model, "8GiB", (x,), sovler="chen")
    solve(model, "8GiB", (x,), seed="one")
    solve_in_parts(model, "8GiB", (x,), reductoin="sum")
"""


def test_a_type_checker_reports_a_misspelt_keyword(tmp_path: Path) -> None:
    """Other modules than those of the options are left out, as objects of any type: to read torch takes a minute."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    sources = ["options.py", "api.py", "batching/sub_batches.py", "batching/sub_batch_size.py"]
    settings = ["--config-file=", "--check-untyped-defs", "--follow-imports=skip", "--explicit-package-bases"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, f"--cache-dir={tmp_path}", str(tmp_path / "snippet.py")]
        + [str(Path("remat") / source) for source in sources],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    errors = [line.partition(".py:")[2] for line in done.stdout.splitlines() if ": error: " in line]
    assert [error.partition(":")[0] for error in errors] == ["8", "9", "10"]
    assert 'Unexpected keyword argument "sovler" for "solve"; did you mean "solver"?' in errors[0]
    assert 'Unexpected keyword argument "reductoin"' in errors[2]
