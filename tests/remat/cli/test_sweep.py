"""`remat sweep` on problem files and on a MODEL: the table, the document, the files, and the messages for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remat.cli.app import app
from remat_solvers.formats import decode, load_plan, load_problem, load_sweep, save_problem
from remat_solvers.generate import chain
from remat_solvers.pareto import Sweep
from remat_solvers.problem import Link
from remat_solvers.result import Progress
from remat_solvers.simulate import simulate
from remat_solvers.validate import validate
from tests.remat.cli.invoke import BAD_INPUT, LIMIT, NO_PLAN, OK, run, run_json

STEP_NS = 150
EXTRA = {12: 39, 20: 31}  # by slots: the extra forwards of 50 uniform layers in the optimum, which is known
GRUSLYS = ("--solver", "gruslys")


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "chain.json"
    save_problem(path, chain(50))
    return path


def test_the_document_is_what_is_written(problem: Path, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    done = run("sweep", problem, "--budgets", "12,20", *GRUSLYS, "-o", path, "--json")
    assert json.loads(done.stdout) == json.loads(path.read_bytes())
    answer = json.loads(done.stdout)
    assert (answer["format"], answer["version"]) == ("remat.sweep", 1)
    assert {p["budget_bytes"]: p["time_ns"] - STEP_NS for p in answer["points"]} == EXTRA
    curve = decode(done.stdout.encode())
    assert isinstance(curve, Sweep)
    loaded = load_problem(problem)
    for point in curve.points:
        assert point.plan is not None
        assert validate(loaded, point.plan, point.budget_bytes) == []
        assert point.overhead == pytest.approx(EXTRA[point.budget_bytes] / STEP_NS)
    assert load_sweep(path) == curve


def test_a_folder_has_a_plan_file_for_every_point(problem: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    run("sweep", problem, "--points", "5", *GRUSLYS, "-o", folder)
    curve = load_sweep(folder / "sweep.json")
    assert len(curve.points) == 5
    assert {p.name for p in folder.iterdir()} == {
        "sweep.json",
        *(f"plan-{point.budget_bytes}.json" for point in curve.points),
    }
    loaded = load_problem(problem)
    for point in curve.points:
        plan_file = load_plan(folder / f"plan-{point.budget_bytes}.json")
        assert plan_file.plan == point.plan
        assert simulate(loaded, plan_file.plan).time_ns == plan_file.time_ns == point.time_ns
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain.json", "plans"]
    message = run("sweep", problem, "--budgets", "12", *GRUSLYS, "-o", folder, code=BAD_INPUT).stderr
    assert "holds files" in message
    empty = tmp_path / "empty"
    empty.mkdir()
    run("sweep", problem, "--budgets", "12", *GRUSLYS, "-o", empty)
    assert sorted(p.name for p in empty.iterdir()) == ["plan-12.json", "sweep.json"]
    assert empty.stat().st_mode == folder.stat().st_mode


def test_the_table_for_people(problem: Path) -> None:
    done = run("sweep", problem, "--budgets", "20,12,1", *GRUSLYS)
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "chain50: gruslys; store-all needs 51 B"
    assert lines[1].split() == ["budget", "peak", "time", "overhead", "bound", "gap", "seconds", "status"]
    assert lines[2].split()[-1] == "infeasible"
    assert "+26.00%" in lines[3]
    assert "+20.67%" in lines[4]
    assert "1 B: Every plan needs 3 B during op50" in done.stdout
    assert "12 B: feasible, +26.00% time" in done.stderr


def test_budgets_are_shares_of_store_all(problem: Path) -> None:
    answer = run_json("sweep", problem, "--budgets", "90%, 60% ,10", *GRUSLYS)
    assert [point["budget_bytes"] for point in answer["points"]] == [10, 51 * 60 // 100, 51 * 90 // 100]


def test_the_link_is_printed(problem: Path) -> None:
    answer = run_json("sweep", problem, "--budgets", "12", "--solver", "swap-only", "--link", "1GB/s")
    assert answer["link"]["to_host_bytes_per_s"] == 10**9
    curve = decode(json.dumps(answer).encode())
    assert isinstance(curve, Sweep)
    assert curve.link == Link(10**9, 10**9)


def test_without_any_plan(problem: Path, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    answer = run_json("sweep", problem, "--budgets", "1,2", "-o", path, code=NO_PLAN)
    assert [point["status"] for point in answer["points"]] == ["infeasible"] * 2
    slow = ("--solver", "checkmate", "--time-limit", "1e-9")
    answer = run_json("sweep", problem, "--budgets", "8", *slow, "-o", path, code=LIMIT)
    assert (answer["stopped"], answer["points"][0]["actions"]) == ("time", None)
    assert not path.exists()


def test_ctrl_c_keeps_the_points_so_far(problem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: Progress) -> None:
        """Ctrl-C at the first report of the first budget that has to be searched."""
        raise KeyboardInterrupt

    monkeypatch.setattr("remat.cli.app.progress_printer", lambda: interrupt)
    path = tmp_path / "curve.json"
    answer = run_json("sweep", problem, "--budgets", "100%,60%,50%", "-o", path)
    assert answer["stopped"] == "interrupt"
    points = load_sweep(path).points
    assert points[-1].time_ns == STEP_NS
    assert points[0].stopped == "interrupt"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--budgets", "60%,lots"), "8GiB"),
        (("--budgets", ""), "8GiB"),
        (("--points", "1"), "at least 2"),
        (("--points", "many"), "--points"),
        (("--solver", "chne"), "did you mean chen"),
        (("--time-limit", "0"), "--time-limit"),
        (("--link", "fast"), "25GB/s"),
        (("-o", "no-such-folder/curve.json"), "no-such-folder"),
        (("-o", "no-such-folder/plans"), "no-such-folder"),
    ],
)
def test_bad_input_is_reported_before_anything_runs(problem: Path, args: tuple[str, ...], word: str) -> None:
    done = run("sweep", problem, *args, code=BAD_INPUT)
    assert done.stdout == ""
    assert word in done.stderr


def test_a_model(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "def make():\n"
        "    blocks = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()) for _ in range(6)]\n"
        "    return torch.nn.Sequential(*blocks), (torch.ones(512, 8),)\n"
    )
    folder = tmp_path / "plans"
    answer = run_json(
        "sweep", f"{source}:make", "--costs", "roofline", "--points", "4", "--time-limit", "8", "-o", folder
    )
    times = [point["time_ns"] for point in answer["points"]]
    assert times == sorted(times, reverse=True)
    assert times[-1] == answer["store_all_time_ns"]
    smallest = folder / f"plan-{answer['points'][0]['budget_bytes']}.json"
    verified = CliRunner().invoke(app, ["verify", f"{source}:make", str(smallest)])
    assert verified.exit_code == OK, verified.output
