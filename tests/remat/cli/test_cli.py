"""The command line on problem files: real invocations, exit codes, error messages, and the files that are left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remat_solvers.formats import load_plan, load_problem, save_problem
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.registry import solver_names
from remat_solvers.result import Progress
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from tests.paths import CORPUS, ROOT, child_environment
from tests.remat.cli.invoke import BAD_INPUT, FAILED, LIMIT, NO_PLAN, OK, run, run_json

CHAIN = CORPUS / "chain50.json"


def error(*args: object, code: int = BAD_INPUT) -> str:
    """Return the message of a command that fails: no stdout, and on stderr one line and perhaps a hint on usage."""
    done = run(*args, code=code)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) <= 2
    return done.stderr


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Write a plan for CHAIN within 60 % of store-all's peak, and return its path."""
    path = tmp_path / "plan.json"
    run("solve", CHAIN, "--budget", "60%", "-o", path)
    return path


def edit(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


# Valid input


def test_solve_then_simulate_then_validate(plan: Path) -> None:
    problem, plan_file = load_problem(CHAIN), load_plan(plan)
    replayed = simulate(problem, plan_file.plan)
    unmodified = baseline(problem)
    assert plan_file.budget_bytes == unmodified.peak_bytes * 60 // 100
    assert replayed.peak_bytes <= plan_file.budget_bytes

    answer = run_json("simulate", CHAIN, plan)
    assert (answer["peak_bytes"], answer["time_ns"]) == (replayed.peak_bytes, replayed.time_ns)
    assert answer["memory_bytes"] == replayed.memory_bytes.tolist()
    assert (answer["store_all_peak_bytes"], answer["store_all_time_ns"]) == (unmodified.peak_bytes, unmodified.time_ns)
    assert (answer["recorded_peak_bytes"], answer["recorded_time_ns"]) == (plan_file.peak_bytes, plan_file.time_ns)
    assert run_json("validate", CHAIN, plan) == {"valid": True, "violations": []}
    assert "of store-all's" in run("simulate", CHAIN, plan).stdout
    assert run("validate", CHAIN, plan).stdout == f"valid: {len(plan_file.plan)} actions\n"


def test_solve_prints_the_whole_result(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    answer = run_json("solve", CHAIN, "--budget", "60%", "--solver", "chen", "-o", path, "--seed", 7)
    plan_file = load_plan(path)
    assert answer["plan_file"] == str(path)
    assert len(answer["plan"]) == len(plan_file.plan)
    assert (answer["status"], answer["solver"], answer["seed"]) == (plan_file.status.value, "chen", 7)
    assert (answer["peak_bytes"], answer["time_ns"], answer["problem"]) == (
        plan_file.peak_bytes,
        plan_file.time_ns,
        plan_file.problem,
    )
    assert run_json("solve", CHAIN, "--budget", "60%", "--solver", "chen")["plan_file"] is None
    text = run("solve", CHAIN, "--budget", "60%")
    assert "of store-all's" in text.stdout
    assert "optimal" in text.stderr


def test_the_same_command_writes_the_same_bytes(plan: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.json"
    run("solve", CHAIN, "--budget", "60%", "-o", second)
    assert second.read_bytes() == plan.read_bytes()


def test_a_budget_above_store_all_fits_as_it_is(tmp_path: Path) -> None:
    answer = run_json("solve", CHAIN, "--budget", "900%", "-o", tmp_path / "plan.json")
    assert (answer["status"], answer["reason"], answer["gap"]) == ("optimal", "fits as it is", 0)


def test_the_link_option_reaches_the_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[Problem] = []

    def spy(problem: Problem, *args: Any, **kwargs: Any) -> Any:
        problems.append(problem)
        return solve(problem, *args, **kwargs)

    monkeypatch.setattr("remat_solvers.solving.solve", spy)
    run("solve", CHAIN, "--budget", "60%", "--link", "25GB/s")
    run("solve", CHAIN, "--budget", "60%")
    assert [problem.link for problem in problems] == [Link(25 * 10**9, 25 * 10**9), load_problem(CHAIN).link]


def test_a_plan_over_a_link_is_checked_over_that_link(tmp_path: Path) -> None:
    plan, link = tmp_path / "plan.json", ["--link", "25GB/s"]
    unlinked = tmp_path / "problem.json"
    unlinked.write_text(json.dumps({**json.loads(CHAIN.read_text()), "link": None}))
    answer = run_json("solve", unlinked, "--budget", "60%", "--solver", "swap-only", *link, "-o", plan)
    assert run_json("validate", unlinked, plan, *link)["valid"]
    assert run_json("simulate", unlinked, plan, *link)["time_ns"] == answer["time_ns"]
    assert "no link to the host" in run("validate", unlinked, plan, code=FAILED).stdout
    assert "not a rate" in error("validate", unlinked, plan, "--link", "auto")


def test_solvers_lists_the_registry_and_solvers_that_need_a_model() -> None:
    listed = run_json("solvers")
    assert tuple(entry["name"] for entry in listed) == (*solver_names(), "torch-budget")
    assert "for a MODEL only" in listed[-1]["summary"]
    assert all(name in run("solvers").stdout for name in solver_names())


def test_python_m_remat_and_the_program_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remat", "solvers", "--json"], capture_output=True, cwd=ROOT, env=child_environment()
    )
    assert json.loads(done.stdout) == run_json("solvers")


@pytest.mark.parametrize("args", [["--help"], ["solve", "--help"], ["solvers", "--json"], ["no-such-command"]])
def test_help_imports_no_slow_module(args: list[str]) -> None:
    script = (
        "import sys\nfrom remat.cli import main\ntry:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'networkx', 'numpy', 'rich', 'ortools', 'highspy', 'pulp', 'transformers',"
        " 'remat_solvers.simulate', 'remat_solvers.formats') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=ROOT, env=child_environment()
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == (BAD_INPUT if args == ["no-such-command"] else OK)


# No plan


def test_a_budget_below_any_plan_is_infeasible(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    answer = run_json("solve", CHAIN, "--budget", "1", "-o", path, code=NO_PLAN)
    assert (answer["status"], answer["plan"], answer["plan_file"]) == ("infeasible", None, None)
    assert "No plan's peak is below" in error("solve", CHAIN, "--budget", "1", code=NO_PLAN)
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_finds_none(tmp_path: Path) -> None:
    answer = run_json("solve", CHAIN, "--budget", "60%", "--solver", "store-all", code=NO_PLAN)
    assert answer["status"] == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_a_limit_before_any_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    command = ("solve", CORPUS / "r50.json", "--budget", "60%", "--time-limit", "1e-9", "-o", path)
    answer = run_json(*command, code=LIMIT)
    assert (answer["status"], answer["stopped"]) == ("not_found", "time")
    assert list(tmp_path.iterdir()) == []


# Invalid plans


def test_an_invalid_plan_fails_validation(plan: Path) -> None:
    actions = json.loads(plan.read_text())["actions"]
    edit(plan, actions=[["free", 10**6], *actions[:-1]])
    answer = run_json("validate", CHAIN, plan, code=FAILED)
    assert answer["valid"] is False
    assert (answer["violations"][0]["action"], answer["violations"][0]["rule"]) == (0, "index")
    assert "action 0: index" in run("validate", CHAIN, plan, code=FAILED).stdout
    assert "action 0" in error("simulate", CHAIN, plan, code=FAILED)


def test_a_plan_above_its_own_budget_fails_validation(plan: Path) -> None:
    edit(plan, budget_bytes=load_plan(plan).peak_bytes - 1)
    (violation,) = run_json("validate", CHAIN, plan, code=FAILED)["violations"]
    assert violation["rule"] == "peak"
    assert "1 over the budget" in violation["message"]


# Bad input


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["no-such-command"],
        ["solve"],
        ["solve", CHAIN],
        ["solve", CHAIN, "--budget"],
        ["solve", CHAIN, "--budget", "60%", "--time-limit", "soon"],
        ["solve", CHAIN, "--budget", "60%", "--no-such-option"],
        ["validate", CHAIN],
    ],
)
def test_usage_errors_have_exit_code_1(args: list[object]) -> None:
    assert "--help" in run(*args, code=BAD_INPUT).output


@pytest.mark.parametrize("budget", ["", "lots", "0", "0%", "-5", "-8GiB", "nan", "NaN%", "inf", "8 G", "1e9"])
def test_bad_budgets(budget: str, tmp_path: Path) -> None:
    message = error("solve", CHAIN, "--budget", budget, "-o", tmp_path / "plan.json")
    assert "8GiB" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_bad_time_limits(seconds: str) -> None:
    assert "--time-limit" in error("solve", CHAIN, "--budget", "60%", "--time-limit", seconds)


def test_bad_links_and_solvers() -> None:
    assert "25GB/s" in error("solve", CHAIN, "--budget", "60%", "--link", "fast")
    assert "did you mean chen" in error("solve", CHAIN, "--budget", "60%", "--solver", "chne")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (CHAIN.read_bytes()[:-100], "JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": "remat.problem", "version": 2}', "version"),
        (b'{"format": "remat.problem", "version": 1, "version": 1}', "twice"),
        (CHAIN.read_bytes().replace(b'"reserve_bytes":0', b'"reserve_bytes":NaN'), "NaN"),
        (CHAIN.read_bytes().replace(b'"reserve_bytes":0', b'"reserve_bytes":-1'), "reserve_bytes"),
        (CHAIN.read_bytes().replace(b'"reserve_bytes":0', b'"reserve_bytes":' + b"9" * 9999), "digits"),
        (CHAIN.read_bytes().replace(b'"reserve_bytes":0', b'"reserve_bytes":' + b"9" * 99), "reserve_bytes"),
        (CHAIN.read_bytes().replace(b'"inputs":[1]', b'"inputs":[999999]'), "inputs"),
        (CHAIN.read_bytes().replace(b'"inputs":[1]', b'"inputs":[60]'), "cyclic"),
    ],
)
def test_bad_problem_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_bytes(content)
    assert message in error("solve", path, "--budget", "60%", "-o", tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["problem.json"]


def test_files_that_are_missing_or_swapped(plan: Path, tmp_path: Path) -> None:
    assert "gone.json" in error("solve", tmp_path / "gone.json", "--budget", "60%")
    assert "gone.json" in error("validate", CHAIN, tmp_path / "gone.json")
    assert "a plan, not a problem" in error("validate", plan, CHAIN)
    assert "a problem, not a plan" in error("simulate", CHAIN, CHAIN)


def test_a_plan_for_another_graph_is_refused_with_the_difference(plan: Path, tmp_path: Path) -> None:
    for command in ("validate", "simulate"):
        message = error(command, CORPUS / "unet.json", plan)
        assert "the plan computes" in message
        assert "different ops, the graph has" in message

    def chain(name: str, size: int, *reads: int) -> Path:
        values = (Value("x", 1, "constant"), Value("a", size, "activation"), Value("b", size, "activation"))
        ops = (Op("f", "forward", (0,), (1,), 1), Op("g", "forward", reads, (2,), 1))
        path = tmp_path / name
        save_problem(path, Problem(name, ops, values, (2,)))
        return path

    small_plan = tmp_path / "small_plan.json"
    run("solve", chain("one", 8, 1), "--budget", "100%", "-o", small_plan)
    assert "other sizes" in error("validate", chain("larger", 16, 1), small_plan)
    actions = [["compute", 1], ["compute", 0], ["free", 1]]
    run("solve", chain("two", 8, 0), "--budget", "100%", "-o", small_plan)
    assert "connected differently" in error("validate", chain("one", 8, 1), edit(small_plan, actions=actions))


def test_another_link_or_other_times_are_the_same_graph(plan: Path, tmp_path: Path) -> None:
    document = json.loads(CHAIN.read_text())
    for op in document["ops"]:
        op["time_ns"] += 1
    other = tmp_path / "slower.json"
    other.write_text(json.dumps(document))
    assert "when it was solved" in run("simulate", other, plan).stdout


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # Root may write in read-only folders, but nobody in /proc nor below a file.
    for folder in (tmp_path / "gone", tmp_path / "file", Path("/proc/self")):
        message = error("solve", CHAIN, "--budget", "60%", "-o", folder / "plan.json")
        assert str(folder / "plan.json") in message
    assert "folder" in error("solve", CHAIN, "--budget", "60%", "-o", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_old_plan_survives_a_command_that_finds_none(plan: Path) -> None:
    before = plan.read_bytes()
    run("solve", CHAIN, "--budget", "1", "-o", plan, code=NO_PLAN)
    run("solve", CHAIN, "--budget", "lots", "-o", plan, code=BAD_INPUT)
    assert plan.read_bytes() == before


# Ctrl-C


def test_ctrl_c_before_any_plan_has_exit_code_3(tmp_path: Path) -> None:
    """The model's function simulates long work: it creates a file when it runs, then waits for the signal."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef make():\n    pathlib.Path('running').touch()\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "remat", "solve", "slow.py:make", "--budget", "60%", "-o", "plan.json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=child_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == LIMIT
    assert stdout == ""
    assert stderr == "interrupted: there is no result yet, and nothing was written\n"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["running", "slow.py"]


def test_ctrl_c_keeps_the_best_plan_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: Progress) -> None:
        """Ctrl-C at the moment at which the first plan is reported."""
        raise KeyboardInterrupt

    monkeypatch.setattr("remat.cli.app.progress_printer", lambda: interrupt)
    path = tmp_path / "plan.json"
    answer = run_json("solve", CHAIN, "--budget", "60%", "-o", path)
    assert answer["stopped"] == "interrupt"
    assert load_plan(path).peak_bytes == answer["peak_bytes"]
