"""The command line on a MODEL: export, solve, verify, and models that cannot be planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remat_solvers.formats import load_plan, load_problem
from tests.paths import child_environment
from tests.remat.cli.invoke import BAD_INPUT, FAILED, run, run_json

TRAIN = """
import torch
from torch import nn

print("a model may print")

class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layer = lambda: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1))
        self.layers = nn.Sequential(*(layer() for _ in range(8)))

    def forward(self, x):
        return self.layers(x).square().mean()

class Branches(Net):
    def forward(self, x):
        if x.sum() > 0:
            return super().forward(x)
        return super().forward(-x)

def make():
    print("and so may its function")
    return Net(), (torch.randn(512, 64),)

def make_wider(): return Net(96), (torch.randn(512, 96),)
def make_larger_batch(): return Net(), (torch.randn(1024, 64),)
def make_branches(): return Branches(), (torch.randn(512, 64),)
def make_frozen(): return Net().requires_grad_(False), (torch.randn(512, 64),)
def make_wrong_shape(): return Net(), (torch.randn(512, 63),)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_export_solve_validate_verify(folder: Path) -> None:
    exported = run_json("export", "train.py:make", "-o", "problem.json")
    problem = load_problem("problem.json")
    assert exported["problem_file"] == "problem.json"
    assert (exported["ops"], exported["fingerprint"]) == (len(problem.ops), problem.fingerprint)
    assert problem.costs is not None
    assert problem.costs.source == "measure"

    answer = run_json("solve", "problem.json", "--budget", "70%", "-o", "plan.json")
    run("validate", "problem.json", "plan.json")
    run("simulate", "problem.json", "plan.json")

    verified = run_json("verify", "train.py:make", "plan.json")
    assert verified["ok"] is True
    assert verified["gradients_equal"] is True
    assert abs(verified["measured_peak_bytes"] - answer["peak_bytes"]) <= max(answer["peak_bytes"] // 100, 64 * 1024)
    text = run("verify", "train.py:make", "plan.json").stdout
    assert "bit-equal" in text
    assert "may print" not in text


def test_solve_takes_a_model(folder: Path) -> None:
    run("solve", "train.py:make", "--budget", "70%", "--costs", "roofline:cpu", "-o", "plan.json")
    text = run("export", "train.py:make", "--costs", "roofline:cpu", "-o", "problem.json").stdout
    assert text.startswith("problem.json: ")
    assert load_plan("plan.json").problem == load_problem("problem.json").fingerprint
    run("validate", "problem.json", "plan.json")
    assert run("export", "train.py:make", "--costs", "roofline:cpu", "-o", "problem.json").stdout.startswith(
        "problem.json: "
    )


def test_verification_fails_on_an_invalid_plan(folder: Path) -> None:
    run("solve", "train.py:make", "--budget", "70%", "--costs", "roofline:cpu", "-o", "plan.json")
    document = json.loads(Path("plan.json").read_text())
    document["actions"].remove(["compute", 0])
    Path("plan.json").write_text(json.dumps(document))
    assert "the plan" in run("verify", "train.py:make", "plan.json", code=FAILED).stderr


def test_a_plan_of_another_model_is_refused_with_the_difference(folder: Path) -> None:
    run("solve", "train.py:make", "--budget", "70%", "--costs", "roofline:cpu", "-o", "plan.json")
    for other in ("make_wider", "make_larger_batch"):
        done = run("verify", f"train.py:{other}", "plan.json", code=BAD_INPUT)
        assert done.stdout == ""
        assert "other sizes" in done.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("make_branches", "train.py:18"),  # the line that decides on data
        ("make_frozen", "parameter"),
        ("make_wrong_shape", "512, 63"),
        ("make_nothing", "does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["export", "solve"])
def test_models_that_cannot_be_planned(folder: Path, command: str, model: str, message: str) -> None:
    options = ["--budget", "70%"] if command == "solve" else []
    done = run(command, f"train.py:{model}", *options, "-o", "out.json", code=BAD_INPUT)
    assert message in done.stderr
    assert done.stdout == ""
    assert not Path("out.json").exists()


@pytest.mark.parametrize("costs", ["guess", "roofline:abacus", ""])
def test_costs_that_do_not_exist(folder: Path, costs: str) -> None:
    done = run("export", "train.py:make", "--costs", costs, "-o", "out.json", code=BAD_INPUT)
    assert "measure" in done.stderr or "cpu" in done.stderr


def test_torch_does_not_log_an_error_of_one_line(folder: Path) -> None:
    """The command runs in its own process, where the import of torch sets up its loggers."""
    command = [sys.executable, "-m", "remat", "export", "train.py:make_wrong_shape", "-o", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == BAD_INPUT
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_offload_from_solve_to_verify(folder: Path) -> None:
    """Solve for the disk tier with its measured link, and run the plan through it."""
    tier = ["--tier", "disk", "--scratch", folder]
    command = ["solve", "train.py:make", "--budget", "70%", "--solver", "swap-only", "-o", "plan.json"]
    answer = run_json(*command, "--link", "auto", *tier)
    assert answer["tier"] == "disk"
    assert answer["link"]["to_host_bytes_per_s"] > 10**6
    assert any(action[0] == "offload" for action in json.loads(Path("plan.json").read_text())["actions"])
    assert run_json("verify", "train.py:make", "plan.json", *tier)["gradients_equal"]
    run("verify", "train.py:make", "plan.json", "--tier", "disk", "--scratch", "missing", code=FAILED)


def test_compare_with_a_link_prints_it() -> None:
    command = ["compare", "train.py:make", "--budget", "70%", "--solver", "swap-only", "--costs", "roofline"]
    answer = run_json(*command, "--link", "25GB/s")
    assert answer["link"]["to_device_bytes_per_s"] == 25 * 10**9
    assert answer["tier"] == "host"
    assert answer["rows"][0]["status"] == "feasible"
    without = run_json(*command)
    assert without["link"] is without["tier"] is None
    assert without["rows"][0]["status"] == "not_applicable"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tier", "tape"), "host or disk"),
        (("--scratch", "."), "add --tier disk"),
        (("--link", "fast"), "not a rate"),
    ],
)
def test_tiers_that_cannot_be_used(options: tuple[str, ...], message: str) -> None:
    assert message in run("solve", "train.py:make", "--budget", "70%", *options, code=BAD_INPUT).output


def test_a_link_is_measured_for_a_model_only() -> None:
    run("export", "train.py:make", "--costs", "roofline", "-o", "problem.json")
    answer = run("solve", "problem.json", "--budget", "70%", "--link", "auto", code=BAD_INPUT)
    assert "state a rate" in answer.output
