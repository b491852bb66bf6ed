"""Tests of files: round trips, exact bytes, and all the errors of invalid files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers import formats
from remat_solvers.errors import FormatError, InputError, ProblemError
from remat_solvers.generate import adversarial, chain, random_plan, training_graph
from remat_solvers.problem import Costs, Link, Problem
from remat_solvers.result import Status
from remat_solvers.solving import solve
from tests.paths import CORPUS
from tests.solvers.makers import corpus_problem

NAMES = ("chain50", "gpt", "lstm", "r50", "rl250", "unet")


def plan_file(problem: Problem, seed: int = 0) -> formats.PlanFile:
    plan = random_plan(problem, seed)
    return formats.PlanFile(problem.fingerprint, 100, "chen", Status.FEASIBLE, 90, 80, None, plan)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    source = CORPUS / f"{name}.json"
    formats.save_problem(tmp_path / "again.json", formats.load_problem(source))
    assert (tmp_path / "again.json").read_bytes().strip() == source.read_bytes().strip()


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), link=st.booleans())
@settings(max_examples=150, deadline=None)
def test_problems_and_plans_survive_the_round_trip(n: int, seed: int, link: bool) -> None:
    for problem in (training_graph(n, seed, link=link), adversarial(seed)):
        content = formats.encode_problem(problem)
        assert formats.decode(content) == problem
        assert formats.encode_problem(problem) == content
        file = plan_file(problem, seed)
        assert formats.decode(formats.encode_plan(file)) == file


def test_costs_are_written_only_where_known() -> None:
    problem = training_graph(3, 1)
    assert b'"costs"' not in formats.encode_problem(problem)
    costs = Costs("measure", "cpu", 1, "2.13", workspace=True, spread_ns=(1,) * len(problem.ops))
    decoded = formats.decode(formats.encode_problem(replace(problem, costs=costs)))
    assert isinstance(decoded, Problem)
    assert decoded.costs == costs


def test_names_of_any_kind_survive() -> None:
    problem = replace(training_graph(1, 1), name='Größe \u2028 \U0001f600 "quoted" \\ \x00')
    assert formats.decode(formats.encode_problem(problem)) == problem


def document(kind: str) -> dict[str, Any]:
    problem = training_graph(4, 3, link=True)
    content = formats.encode_problem(problem) if kind == "problem" else formats.encode_plan(plan_file(problem))
    loaded: dict[str, Any] = json.loads(content)
    return loaded


def test_keys_are_in_the_order_of_the_format() -> None:
    assert list(document("plan")) == [
        *("format", "version", "problem", "budget_bytes", "solver", "status"),
        *("peak_bytes", "time_ns", "bound_ns", "actions"),
    ]
    problem = document("problem")
    assert list(problem) == ["format", "version", "name", "values", "ops", "results", "link", "reserve_bytes"]
    assert list(problem["values"][0]) == ["name", "bytes", "kind"]
    assert list(problem["ops"][0]) == [
        *("name", "phase", "inputs", "outputs", "time_ns", "workspace_bytes", "recomputable", "effects"),
        *("target", "module", "source"),
    ]


BAD = [True, False, None, 1.0, 1.5, "1", [], {}, -1, 2**63, 10**30]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize(
    "path",
    [
        ("values", 0, "bytes"),
        ("ops", 0, "time_ns"),
        ("ops", 0, "workspace_bytes"),
        ("ops", 0, "outputs", 0),
        ("results", 0),
        ("reserve_bytes",),
        ("link", "to_host_bytes_per_s"),
        ("link", "latency_ns"),
        ("version",),
    ],
)
def test_a_number_of_a_problem_is_an_integer_in_range(path: tuple[str | int, ...], bad: object) -> None:
    check_refused("problem", path, bad)


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("path", [("budget_bytes",), ("peak_bytes",), ("actions", 0, 1), ("version",)])
def test_a_number_of_a_plan_is_an_integer_in_range(path: tuple[str | int, ...], bad: object) -> None:
    check_refused("plan", path, bad)


@pytest.mark.parametrize("bad", [bad for bad in BAD if type(bad) is not int or bad < 0], ids=repr)
def test_a_time_of_a_plan_is_an_integer(bad: object) -> None:
    check_refused("plan", ("time_ns",), bad)


def test_a_plan_over_a_slow_link_survives_the_round_trip() -> None:
    """16 GiB at a byte per second in both directions take more than 2**63 ns."""
    problem = replace(chain(4, size_bytes=2**34), link=Link(1, 1))
    result = solve(problem, 3 * 2**34, solver="swap-only")
    assert result.time_ns is not None
    assert result.time_ns > 2**63
    file = formats.PlanFile.from_result(result)
    assert formats.decode(formats.encode_plan(file)) == file


@pytest.mark.parametrize("bad", [1, None, "other", [], True], ids=repr)
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("problem", ("format",)),
        ("problem", ("values", 1, "kind")),
        ("problem", ("ops", 0, "phase")),
        ("problem", ("ops", 0)),
        ("problem", ("values",)),
        ("problem", ("link",)),
        ("plan", ("format",)),
        ("plan", ("status",)),
        ("plan", ("problem",)),
        ("plan", ("actions", 0)),
        ("plan", ("actions", 0, 0)),
    ],
)
def test_a_word_is_one_of_its_kind(kind: str, path: tuple[str | int, ...], bad: object) -> None:
    if (path, bad) in ((("link",), None), (("values",), [])):
        return  # allowed, or refused for another reason
    check_refused(kind, path, bad)


def check_refused(kind: str, path: tuple[str | int, ...], bad: object) -> None:
    edited = document(kind)
    part: Any = edited
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = bad
    with pytest.raises((FormatError, ProblemError)) as error:
        formats.decode(json.dumps(edited).encode())
    assert str(path[0]) in error.value.place


@pytest.mark.parametrize("kind", ["problem", "plan"])
def test_every_key_is_needed_and_no_other_is_known(kind: str) -> None:
    for key in document(kind):
        edited = document(kind)
        del edited[key]
        with pytest.raises(FormatError):
            formats.decode(json.dumps(edited).encode())
    with pytest.raises(FormatError, match="unknown key 'more'"):
        formats.decode(json.dumps({**document(kind), "more": 1}).encode())


@pytest.mark.parametrize("part", ["values", "ops"])
def test_every_key_of_an_item_is_needed_and_no_other_is_known(part: str) -> None:
    for key in document("problem")[part][0]:
        edited = document("problem")
        del edited[part][0][key]
        with pytest.raises(FormatError, match=rf"{part}\[0\]: lacks the key"):
            formats.decode(json.dumps(edited).encode())
    edited = document("problem")
    edited[part][2]["more"] = 1
    with pytest.raises(FormatError, match=rf"{part}\[2\]: has an unknown key 'more'"):
        formats.decode(json.dumps(edited).encode())


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "line 1"),
        (b"null", "top level"),
        (b"[]", "top level"),
        (b"{}", "format"),
        (b"\xff{}", "byte 0"),
        (b'{"format":"remat.problem","version":1,"name":"a"', "line 1"),
        (b'{"format":"remat.problem","version":2}', "version"),
        (b'{"format":"remat.plan","version":1,"version":1}', "key 'version'"),
        (b'{"a":{"b":[{"c":1,"c":1}]}}', "key 'c'"),
        (b'{"format":NaN}', "NaN"),
        (b'{"format":-Infinity}', "-Infinity"),
        (b"[" * 200_000, "top level"),
        (b'{"format":' + b"9" * 6000 + b"}", "top level"),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_the_error_of_an_invalid_file_names_the_place(content: bytes, place: str) -> None:
    with pytest.raises(FormatError) as error:
        formats.decode(content)
    assert place in error.value.place


def test_a_cycle_is_refused() -> None:
    edited = document("problem")
    edited["ops"][0]["inputs"] = [edited["ops"][-1]["outputs"][0]]
    with pytest.raises(ProblemError, match=r"ops\[0\].inputs\[0\].*cyclic"):
        formats.decode(json.dumps(edited).encode())


@given(seed=st.integers(0, 10**9), kind=st.sampled_from(["problem", "plan"]))
@settings(max_examples=600, deadline=None)
def test_damaged_bytes_are_refused_or_still_a_valid_file(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    content = bytearray(json.dumps(document(kind), separators=(",", ":")).encode())
    for _ in range(rng.randint(1, 4)):
        index = rng.randrange(len(content))
        match rng.randrange(4):
            case 0:
                content[index] = rng.randrange(256)
            case 1:
                content[index] = rng.choice(b'0123456789-.eE[]{},:"tfn\\')
            case 2:
                del content[index : index + rng.randint(1, 20)]
            case _:
                content[index:index] = content[index : index + rng.randint(1, 20)]
    try:
        loaded = formats.decode(bytes(content))
    except (FormatError, ProblemError):
        return
    encode = formats.encode_problem if isinstance(loaded, Problem) else formats.encode_plan
    assert formats.decode(encode(loaded)) == loaded  # type: ignore[operator]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    problem = training_graph(3, 1)
    formats.save_problem(tmp_path / "problem.json", problem)
    formats.save_plan(tmp_path / "plan.json", plan_file(problem))
    assert formats.load(tmp_path / "problem.json") == problem
    assert formats.load(tmp_path / "plan.json") == plan_file(problem)
    with pytest.raises(FormatError):
        formats.load_plan(tmp_path / "problem.json")
    with pytest.raises(FormatError):
        formats.load_problem(tmp_path / "plan.json")


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "problem.json"
    formats.save_problem(path, training_graph(3, 1))
    before = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        formats.save_problem(path, training_graph(5, 2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_result_becomes_a_plan_file_and_plain_data(tmp_path: Path) -> None:
    problem = corpus_problem("chain50")
    result = solve(problem, 40, solver="chen")
    formats.save_plan(tmp_path / "plan.json", result)
    file = formats.load_plan(tmp_path / "plan.json")
    assert (file.plan, file.problem, file.peak_bytes) == (result.plan, problem.fingerprint, result.peak_bytes)
    plain = json.loads(json.dumps(formats.result_to_dict(result)))
    assert (plain["status"], plain["budget_bytes"], plain["order"]) == ("feasible", 40, "given")
    assert plain["plan"] == json.loads((tmp_path / "plan.json").read_bytes())["actions"]


def test_a_result_without_a_plan_makes_no_file(tmp_path: Path) -> None:
    result = solve(training_graph(6, 1), 1)
    with pytest.raises(InputError, match="no plan to write"):
        formats.save_plan(tmp_path / "plan.json", result)
    assert not list(tmp_path.iterdir())
