"""`remat compare` on problem files and on a MODEL: the table, its JSON, and the messages for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remat_solvers.formats import load_problem, save_problem
from remat_solvers.generate import chain
from remat_solvers.registry import solver_names
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from tests.remat.cli.invoke import BAD_INPUT, run, run_json

FAST = ("--solver", "chen", "--solver", "checkmate", "--solver", "store-all")


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "chain.json"
    save_problem(path, chain(12))
    return path


def test_json_has_a_row_for_every_solver_named(problem: Path) -> None:
    answer = run_json("compare", problem, "--budget", "60%", *FAST)
    unmodified = simulate(load_problem(problem), store_all(load_problem(problem)))
    assert answer["budget_bytes"] == unmodified.peak_bytes * 60 // 100
    assert answer["store_all_time_ns"] == unmodified.time_ns
    assert answer["seconds"] == 30
    rows = {row["solver"]: row for row in answer["rows"]}
    assert set(rows) == {"chen", "checkmate", "store-all"}
    assert (rows["checkmate"]["status"], rows["checkmate"]["gap"]) == ("optimal", 0)
    assert answer["given_bound_ns"] == rows["checkmate"]["time_ns"] <= rows["chen"]["time_ns"]
    assert rows["chen"]["overhead"] == rows["chen"]["time_ns"] / unmodified.time_ns - 1
    assert (rows["store-all"]["status"], rows["store-all"]["time_ns"]) == ("not_found", None)
    assert all(row["seconds"] > 0 and row["error"] is None for row in rows.values())


def test_the_table_for_people(problem: Path) -> None:
    done = run("compare", problem, "--budget", "60%", *FAST, columns=160)
    for word in (
        "chen",
        "checkmate",
        "store-all",
        "gap",
        "time over store-all",
        "optimal",
        "0.00%",
        "store-all: smallest peak found: 13 B",
    ):
        assert word in done.stdout
    assert "chen: feasible" in done.stderr


def test_every_registered_solver_runs_and_none_recomputes_where_store_all_fits(problem: Path) -> None:
    answer = run_json("compare", problem, "--budget", "100%", "--time-limit", "20")
    assert {row["solver"] for row in answer["rows"]} >= set(solver_names())
    assert {(row["status"], row["overhead"]) for row in answer["rows"]} == {("optimal", 0)}


def test_the_exit_code_is_0_without_any_plan(problem: Path) -> None:
    answer = run_json("compare", problem, "--budget", "1", *FAST)
    assert {row["status"] for row in answer["rows"]} == {"infeasible"}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--budget", "lots"), "8GiB"),
        (("--budget", "60%", "--solver", "chne"), "did you mean chen"),
        (("--budget", "60%", "--time-limit", "0"), "--time-limit"),
        (("--budget", "60%", "--link", "fast"), "25GB/s"),
        (("--budget", "60%", "--solver", "torch-budget"), "give the MODEL, such as train.py:make_model"),
    ],
)
def test_bad_input_is_reported_before_anything_runs(problem: Path, args: tuple[str, ...], word: str) -> None:
    done = run("compare", problem, *args, code=BAD_INPUT)
    assert done.stdout == ""
    assert word in done.stderr


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A MODEL whose forward prints, as users' models do."""
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        print('a line of the model')\n"
        "        return super().forward(x)\n"
        "def make():\n"
        "    blocks = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Dropout(0.1))"
        " for _ in range(6)]\n"
        "    return Net(*blocks), (torch.ones(512, 8),)\n"
    )
    return f"{source}:make"


def test_a_model(model: str) -> None:
    compared = run_json("compare", model, "--budget", "80%", "--costs", "roofline", "--time-limit", "5", *FAST)
    rows = {row["solver"]: row["status"] for row in compared["rows"]}
    assert rows == {"chen": "feasible", "checkmate": rows["checkmate"], "store-all": "not_found"}


def test_torch_budget_is_a_row_of_a_model(model: str) -> None:
    """It runs by its name or with all others; without a plan, its row has the smallest peak that it reached."""
    options = (model, "--costs", "roofline", "--solver", "torch-budget")
    alone = run_json("compare", *options, "--budget", "50%")
    (row,) = alone["rows"]
    assert (row["solver"], row["status"]) == ("torch-budget", "not_found")
    assert alone["budget_bytes"] < row["smallest_peak_bytes"] < alone["store_all_peak_bytes"]
    smallest = run_json("compare", *options, "--solver", "chen", "--budget", str(row["smallest_peak_bytes"]))
    rows = {row["solver"]: row for row in smallest["rows"]}
    assert rows["torch-budget"]["peak_bytes"] == row["smallest_peak_bytes"]
    assert rows["chen"]["status"] == "feasible"
    all_methods = run_json("compare", model, "--costs", "roofline", "--budget", "100%")
    assert {row["solver"] for row in all_methods["rows"]} == {*solver_names(), "torch-budget"}
    assert {row["status"] for row in all_methods["rows"]} == {"optimal"}


def test_a_crash_of_a_solver_in_this_process_is_a_row(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **options: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("remat.model_solvers.torch_budget.min_cut_rematerialization_partition", crash)
    answer = run(
        "compare",
        model,
        "--budget",
        "80%",
        "--costs",
        "roofline",
        "--solver",
        "chen",
        "--solver",
        "torch-budget",
        "--json",
    )
    rows = {row["solver"]: row for row in json.loads(answer.stdout)["rows"]}
    assert rows["chen"]["status"] == "feasible"
    assert (rows["torch-budget"]["status"], rows["torch-budget"]["error"]) == ("failed", "RuntimeError: no such luck")
    assert "torch-budget: RuntimeError: no such luck" in answer.stderr
