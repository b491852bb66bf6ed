"""Problems and plans as JSON, versioned, deterministic byte for byte, written whole or not at all.

    {"format": "remat.problem", "version": 1, "name": ..., "values": [...], "ops": [...], "results": [...],
     "link": null | {...}, "reserve_bytes": 0, "costs": {...}}                        `costs` only where known
    {"format": "remat.plan", "version": 1, "problem": <fingerprint>, "budget_bytes": ..., "solver": ...,
     "status": ..., "peak_bytes": ..., "time_ns": ..., "bound_ns": null | ..., "actions": [["compute", 3], ...]}
    {"format": "remat.sweep", "version": 1, "problem": <fingerprint>, ..., "points": [{..., "actions": [...]}, ...]}
    {"format": "remat.certificate", "version": 1, "problem": <fingerprint>, "budget_bytes": ..., "order": "given", "at":
     [...], "bound_ns": null | ..., "intervals": [[0, 1], ...], "leaves": [{"fixed": [...], "multipliers": [...]}, ...]}

docs/plan-format.md lists every key. Reading never executes anything. What is not exactly of this form is refused
with a FormatError (or, where the graph itself is not well formed, a ProblemError) that names the place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from remat_solvers.errors import FormatError, InputError
from remat_solvers.formats.json_text import (
    check_keys,
    convert,
    dump,
    duration,
    list_of,
    parse,
    plain,
    record,
    shorten,
    size,
    write,
)
from remat_solvers.pareto import Point, Sweep
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Costs, Link, Op, Problem, Value
from remat_solvers.result import Certificate, Leaf, Order, Result, Status

__all__ = [
    "PlanFile",
    "certificate_to_dict",
    "decode",
    "encode_certificate",
    "encode_plan",
    "encode_problem",
    "encode_sweep",
    "load",
    "load_certificate",
    "load_plan",
    "load_problem",
    "load_sweep",
    "result_to_dict",
    "save_certificate",
    "save_plan",
    "save_problem",
    "save_sweep",
    "sweep_to_dict",
]

N = TypeVar("N", int, float)

PROBLEM_FORMAT = "remat.problem"
PLAN_FORMAT = "remat.plan"
SWEEP_FORMAT = "remat.sweep"
CERTIFICATE_FORMAT = "remat.certificate"
VERSION = 1

PROBLEM_KEYS = ("format", "version", "name", "values", "ops", "results", "link", "reserve_bytes", "costs")
PLAN_KEYS = (
    "format",
    "version",
    "problem",
    "budget_bytes",
    "solver",
    "status",
    "peak_bytes",
    "time_ns",
    "bound_ns",
    "actions",
)
ACTIONS: Mapping[str, Callable[[int], Action]] = {"compute": Compute, "free": Free, "offload": Offload, "fetch": Fetch}
STATUSES: Mapping[str, Status] = {status.value: status for status in Status}
FINGERPRINT_DIGITS = 64


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan with what it was made for: the header of a plan file and its actions."""

    problem: str  # fingerprint of the problem it was made for
    budget_bytes: int
    solver: str  # registry name
    status: Status
    peak_bytes: int  # as replayed when it was made
    time_ns: int  # as replayed when it was made
    bound_ns: int | None  # proven lower bound on the time within the budget; None: none proven
    plan: Plan

    @classmethod
    def from_result(cls, result: Result) -> PlanFile:
        """The file that `result` makes. Raises InputError where it has no plan: no plan, no file."""
        if result.plan is None or result.peak_bytes is None or result.time_ns is None:
            raise InputError(f"there is no plan to write: {result.status.sentence} {result.reason}".rstrip())
        return cls(
            problem=result.problem,
            budget_bytes=result.budget_bytes,
            solver=result.solver,
            status=result.status,
            peak_bytes=result.peak_bytes,
            time_ns=result.time_ns,
            bound_ns=result.bound_ns,
            plan=result.plan,
        )


Document: TypeAlias = Problem | PlanFile | Sweep | Certificate
D = TypeVar("D", Problem, PlanFile, Sweep, Certificate)
WORDS: Mapping[type, str] = {Problem: "problem", PlanFile: "plan", Sweep: "sweep", Certificate: "certificate"}


# ---------------------------------------------------------------- writing


def encode_problem(problem: Problem) -> bytes:
    """The problem as one line of JSON."""
    document = {
        **_header(PROBLEM_FORMAT),
        "name": problem.name,
        "values": [plain(v) for v in problem.values],
        "ops": [plain(op) for op in problem.ops],
        "results": problem.results,
        "link": None if problem.link is None else plain(problem.link),
        "reserve_bytes": problem.reserve_bytes,
    }
    if problem.costs is not None:
        document["costs"] = plain(problem.costs)
    return dump(document)


def encode_plan(plan: PlanFile) -> bytes:
    """The plan file as one line of JSON."""
    document = {**_header(PLAN_FORMAT), **plain(plan)}
    document["status"] = plan.status.value
    document["actions"] = _plain_actions(document.pop("plan"))
    return dump(document)


def result_to_dict(result: Result) -> dict[str, Any]:
    """The result as plain JSON data, keys in the order of its fields; the plan as its list of actions."""
    document = plain(result)
    for name in ("status", "stopped", "order"):
        document[name] = document[name].value
    document["options"] = dict(result.options)
    document["plan"] = None if result.plan is None else _plain_actions(result.plan)
    certificate = result.certificate
    document["certificate"] = None if certificate is None else certificate_to_dict(certificate)
    return document


def sweep_to_dict(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain JSON data; each point's plan as its list of actions, None where it has none."""
    points = []
    for point in sweep.points:
        document = plain(point)
        plan = document.pop("plan")
        points.append({**document, "actions": None if plan is None else _plain_actions(plan)})
    link = None if sweep.link is None else plain(sweep.link)
    return {**_header(SWEEP_FORMAT), **plain(sweep), "link": link, "points": points}


def encode_sweep(sweep: Sweep) -> bytes:
    """The sweep as one line of JSON."""
    return dump(sweep_to_dict(sweep))


def certificate_to_dict(certificate: Certificate) -> dict[str, Any]:
    """The certificate as plain JSON data; of a row or variable its word, its indices, and the number given to it."""
    leaves = [
        {name: [[word, *indices, number] for word, indices, number in part] for name, part in plain(leaf).items()}
        for leaf in certificate.leaves
    ]
    return {**_header(CERTIFICATE_FORMAT), **plain(certificate), "leaves": leaves, "order": certificate.order.value}


def encode_certificate(certificate: Certificate) -> bytes:
    """The certificate as one line of JSON."""
    return dump(certificate_to_dict(certificate))


def save_certificate(path: str | os.PathLike[str], certificate: Certificate) -> None:
    """Write `certificate` to `path`, whole or not at all."""
    write(Path(path), encode_certificate(certificate))


def save_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Write `problem` to `path`, whole or not at all."""
    write(Path(path), encode_problem(problem))


def save_plan(path: str | os.PathLike[str], plan: PlanFile | Result) -> None:
    """Write a plan, or the plan of a result, to `path`, whole or not at all."""
    write(Path(path), encode_plan(PlanFile.from_result(plan) if isinstance(plan, Result) else plan))


def save_sweep(path: str | os.PathLike[str], sweep: Sweep) -> None:
    """Write `sweep`, its plans included, to `path`, whole or not at all."""
    write(Path(path), encode_sweep(sweep))


def _header(name: str) -> dict[str, Any]:
    return {"format": name, "version": VERSION}


def _plain_actions(plan: Plan) -> list[tuple[str, int]]:
    words = {kind: word for word, kind in ACTIONS.items()}
    return [(words[type(a)], a.op if isinstance(a, Compute) else a.value) for a in plan]


# ---------------------------------------------------------------- reading


def load(path: str | os.PathLike[str]) -> Document:
    """The problem, plan, sweep or certificate in `path`, whichever its "format" says."""
    return decode(Path(path).read_bytes())


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """The problem in `path`."""
    return _load(path, Problem)


def load_plan(path: str | os.PathLike[str]) -> PlanFile:
    """The plan in `path`."""
    return _load(path, PlanFile)


def load_sweep(path: str | os.PathLike[str]) -> Sweep:
    """The sweep in `path`."""
    return _load(path, Sweep)


def load_certificate(path: str | os.PathLike[str]) -> Certificate:
    """The certificate in `path`; whether it proves anything is asked of `check_certificate`."""
    return _load(path, Certificate)


def _load(path: str | os.PathLike[str], kind: type[D]) -> D:
    loaded = load(path)
    if not isinstance(loaded, kind):
        raise FormatError("format", f"{os.fspath(path)} holds a {WORDS[type(loaded)]}, not a {WORDS[kind]}")
    return loaded


def decode(content: bytes) -> Document:
    """What `content` spells: a problem, plan, sweep or certificate. FormatError or ProblemError names a wrong place."""
    try:
        return _document(parse(content))
    except RecursionError:
        raise FormatError("top level", "is nested too deeply") from None


def _document(document: Any) -> Document:
    if not isinstance(document, dict):
        raise FormatError("top level", "must be an object")
    kind = document.get("format")
    readers: dict[str, Callable[[dict[str, Any]], Document]] = {
        PROBLEM_FORMAT: _problem,
        PLAN_FORMAT: _plan_file,
        SWEEP_FORMAT: _sweep,
        CERTIFICATE_FORMAT: _certificate,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise FormatError("format", f"must be one of {', '.join(readers)}, not {shorten(kind)}")
    version = document.get("version")
    if isinstance(version, bool) or version != VERSION or not isinstance(version, int):
        raise FormatError("version", f"this release reads version {VERSION}, not {shorten(version)}")
    return readers[kind](document)


def _problem(document: dict[str, Any]) -> Problem:
    check_keys("top level", document, PROBLEM_KEYS, optional=("costs",))
    link, costs = document["link"], document.get("costs")
    problem = Problem(
        name=convert("name", document["name"], str),
        ops=tuple(record(f"ops[{i}]", item, Op) for i, item in enumerate(list_of("ops", document["ops"]))),
        values=tuple(
            record(f"values[{i}]", item, Value) for i, item in enumerate(list_of("values", document["values"]))
        ),
        results=convert("results", document["results"], tuple[int, ...]),
        link=None if link is None else record("link", link, Link),
        reserve_bytes=convert("reserve_bytes", document["reserve_bytes"], int),
        costs=None if costs is None else record("costs", costs, Costs),
    )
    if problem.costs is not None:
        size("costs.threads", problem.costs.threads)
        for i, spread in enumerate(problem.costs.spread_ns):
            size(f"costs.spread_ns[{i}]", spread)
    return problem


def _plan_file(document: dict[str, Any]) -> PlanFile:
    check_keys("top level", document, PLAN_KEYS)
    fingerprint = _fingerprint(document["problem"])
    status = document["status"]
    if not isinstance(status, str) or status not in STATUSES:
        raise FormatError("status", f"must be one of {', '.join(STATUSES)}, not {shorten(status)}")
    bound_ns = document["bound_ns"]
    return PlanFile(
        problem=fingerprint,
        budget_bytes=size("budget_bytes", document["budget_bytes"]),
        solver=convert("solver", document["solver"], str),
        status=STATUSES[status],
        peak_bytes=size("peak_bytes", document["peak_bytes"]),
        time_ns=duration("time_ns", document["time_ns"]),
        bound_ns=None if bound_ns is None else duration("bound_ns", bound_ns),
        plan=_actions("actions", document["actions"]),
    )


def _sweep(document: dict[str, Any]) -> Sweep:
    names = [f.name for f in fields(Sweep)]
    check_keys("top level", document, ("format", "version", *names))
    points = tuple(_point(f"points[{i}]", item) for i, item in enumerate(list_of("points", document["points"])))
    told = {name: document[name] for name in names if name != "points"}
    _fingerprint(told["problem"])
    return replace(convert("", {**told, "points": ()}, Sweep), points=points)


def _certificate(document: dict[str, Any]) -> Certificate:
    check_keys("top level", document, ("format", "version", *(f.name for f in fields(Certificate))))
    bound_ns = document["bound_ns"]
    return Certificate(
        problem=_fingerprint(document["problem"]),
        budget_bytes=size("budget_bytes", document["budget_bytes"]),
        order=convert("order", document["order"], Order),
        at=tuple(size(f"at[{i}]", op) for i, op in enumerate(list_of("at", document["at"]))),
        bound_ns=None if bound_ns is None else size("bound_ns", bound_ns),
        intervals=convert("intervals", document["intervals"], tuple[tuple[int, int], ...]),
        leaves=tuple(_leaf(f"leaves[{i}]", item) for i, item in enumerate(list_of("leaves", document["leaves"]))),
    )


def _leaf(place: str, item: Any) -> Leaf:
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {shorten(item)}")
    check_keys(place, item, ("fixed", "multipliers"))
    return Leaf(
        fixed=tuple(_weighed(f"{place}.fixed[{i}]", x, int) for i, x in enumerate(list_of(place, item["fixed"]))),
        multipliers=tuple(
            _weighed(f"{place}.multipliers[{i}]", x, float) for i, x in enumerate(list_of(place, item["multipliers"]))
        ),
    )


def _weighed(place: str, item: Any, number: type[N]) -> tuple[str, tuple[int, ...], N]:
    """A word, its indices, and a number."""
    if not isinstance(item, list) or len(item) < 3:
        raise FormatError(place, f"must be a list of a word, indices and a number, not {shorten(item)}")
    word, *indices, last = item
    where = tuple(size(f"{place}[{i}]", index) for i, index in enumerate(indices, start=1))
    return convert(place, word, str), where, convert(place, last, number)


def _point(place: str, item: Any) -> Point:
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {shorten(item)}")
    names = [f.name for f in fields(Point) if f.name != "plan"]
    check_keys(place, item, (*names, "actions"))
    plan = None if item["actions"] is None else _actions(f"{place}.actions", item["actions"])
    return replace(convert(place, {**{name: item[name] for name in names}, "plan": None}, Point), plan=plan)


def _fingerprint(item: Any) -> str:
    fingerprint: str = convert("problem", item, str)
    if len(fingerprint) != FINGERPRINT_DIGITS or set(fingerprint) - set("0123456789abcdef"):
        raise FormatError("problem", f"must be a fingerprint of {FINGERPRINT_DIGITS} hexadecimal digits")
    return fingerprint


def _actions(place: str, items: Any) -> Plan:
    return Plan(_action(f"{place}[{i}]", item) for i, item in enumerate(list_of(place, items)))


def _action(place: str, item: Any) -> Action:
    if not isinstance(item, list) or len(item) != 2:
        raise FormatError(place, f"must be a pair [word, index], not {shorten(item)}")
    word, index = item
    if not isinstance(word, str) or word not in ACTIONS:
        raise FormatError(f"{place}[0]", f"must be one of {', '.join(ACTIONS)}, not {shorten(word)}")
    return ACTIONS[word](size(f"{place}[1]", index))
