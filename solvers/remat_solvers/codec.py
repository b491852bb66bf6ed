"""Problems and plans as JSON, versioned, deterministic byte for byte, written whole or not at all.

    {"format": "remat.problem", "version": 1, "name": ..., "values": [...], "ops": [...], "results": [...],
     "link": null | {...}, "reserve_bytes": 0, "costs": {...}}                        `costs` only where known
    {"format": "remat.plan", "version": 1, "problem": <fingerprint>, "budget_bytes": ..., "solver": ...,
     "status": ..., "peak_bytes": ..., "time_ns": ..., "bound_ns": null | ..., "actions": [["compute", 3], ...]}
    {"format": "remat.sweep", "version": 1, "problem": <fingerprint>, ..., "points": [{..., "actions": [...]}, ...]}

docs/plan-format.md lists every key. Reading never executes anything. What is not exactly of this form is refused
with a FormatError (or, where the graph itself is not well formed, a ProblemError) that names the place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from remat_solvers.curve import Point, Sweep
from remat_solvers.errors import FormatError, InputError
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import MAX_INT, Costs, Link, Op, Problem, Value
from remat_solvers.result import Result, Status

__all__ = [
    "PlanFile",
    "decode",
    "encode_plan",
    "encode_problem",
    "encode_sweep",
    "load",
    "load_plan",
    "load_problem",
    "load_sweep",
    "result_to_dict",
    "save_plan",
    "save_problem",
    "save_sweep",
    "sweep_to_dict",
]

PROBLEM_FORMAT = "remat.problem"
PLAN_FORMAT = "remat.plan"
SWEEP_FORMAT = "remat.sweep"
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

T = TypeVar("T")


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


# ---------------------------------------------------------------- writing


def encode_problem(problem: Problem) -> bytes:
    """The problem as one line of JSON."""
    document: dict[str, Any] = {
        "format": PROBLEM_FORMAT,
        "version": VERSION,
        "name": problem.name,
        "values": [_plain(v) for v in problem.values],
        "ops": [_plain(op) for op in problem.ops],
        "results": problem.results,
        "link": None if problem.link is None else _plain(problem.link),
        "reserve_bytes": problem.reserve_bytes,
    }
    if problem.costs is not None:
        document["costs"] = _plain(problem.costs)
    return _dump(document)


def encode_plan(plan: PlanFile) -> bytes:
    """The plan file as one line of JSON."""
    document = {"format": PLAN_FORMAT, "version": VERSION, **_plain(plan)}
    document["status"] = plan.status.value
    document["actions"] = _plain_actions(document.pop("plan"))
    return _dump(document)


def result_to_dict(result: Result) -> dict[str, Any]:
    """The result as plain JSON data, keys in the order of its fields; the plan as its list of actions."""
    plain = _plain(result)
    for name in ("status", "stopped", "order"):
        plain[name] = plain[name].value
    plain["options"] = dict(result.options)
    plain["plan"] = None if result.plan is None else _plain_actions(result.plan)
    return plain


def sweep_to_dict(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain JSON data; each point's plan as its list of actions, None where it has none."""
    points = []
    for point in sweep.points:
        plain = _plain(point)
        plan = plain.pop("plan")
        points.append({**plain, "actions": None if plan is None else _plain_actions(plan)})
    link = None if sweep.link is None else _plain(sweep.link)
    return {"format": SWEEP_FORMAT, "version": VERSION, **_plain(sweep), "link": link, "points": points}


def encode_sweep(sweep: Sweep) -> bytes:
    """The sweep as one line of JSON."""
    return _dump(sweep_to_dict(sweep))


def save_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Write `problem` to `path`, whole or not at all."""
    _write(Path(path), encode_problem(problem))


def save_plan(path: str | os.PathLike[str], plan: PlanFile | Result) -> None:
    """Write a plan, or the plan of a result, to `path`, whole or not at all."""
    _write(Path(path), encode_plan(PlanFile.from_result(plan) if isinstance(plan, Result) else plan))


def save_sweep(path: str | os.PathLike[str], sweep: Sweep) -> None:
    """Write `sweep`, its plans included, to `path`, whole or not at all."""
    _write(Path(path), encode_sweep(sweep))


def _plain(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item)}


def _plain_actions(plan: Plan) -> list[tuple[str, int]]:
    words = {kind: word for word, kind in ACTIONS.items()}
    return [(words[type(a)], a.op if isinstance(a, Compute) else a.value) for a in plan]


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, then rename; the temporary file goes if anything fails.

    A link is followed, and what is no regular file (`/dev/stdout`, a pipe) is written to, never replaced.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- reading


def load(path: str | os.PathLike[str]) -> Problem | PlanFile | Sweep:
    """The problem, the plan or the sweep in `path`, whichever its "format" says."""
    return decode(Path(path).read_bytes())


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """The problem in `path`."""
    loaded = load(path)
    if not isinstance(loaded, Problem):
        raise FormatError("format", f"{os.fspath(path)} holds a {_kind(loaded)}, not a problem")
    return loaded


def load_plan(path: str | os.PathLike[str]) -> PlanFile:
    """The plan in `path`."""
    loaded = load(path)
    if not isinstance(loaded, PlanFile):
        raise FormatError("format", f"{os.fspath(path)} holds a {_kind(loaded)}, not a plan")
    return loaded


def load_sweep(path: str | os.PathLike[str]) -> Sweep:
    """The sweep in `path`."""
    loaded = load(path)
    if not isinstance(loaded, Sweep):
        raise FormatError("format", f"{os.fspath(path)} holds a {_kind(loaded)}, not a sweep")
    return loaded


def _kind(loaded: Problem | PlanFile | Sweep) -> str:
    return {Problem: "problem", PlanFile: "plan", Sweep: "sweep"}[type(loaded)]


def decode(content: bytes) -> Problem | PlanFile | Sweep:
    """The problem, plan or sweep that `content` spells. Raises FormatError or ProblemError, naming the place."""
    try:
        return _document(_parse(content))
    except RecursionError:
        raise FormatError("top level", "is nested too deeply") from None


def _document(document: Any) -> Problem | PlanFile | Sweep:
    if not isinstance(document, dict):
        raise FormatError("top level", "must be an object")
    kind = document.get("format")
    readers: dict[str, Callable[[dict[str, Any]], Problem | PlanFile | Sweep]] = {
        PROBLEM_FORMAT: _problem,
        PLAN_FORMAT: _plan_file,
        SWEEP_FORMAT: _sweep,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise FormatError("format", f"must be one of {', '.join(readers)}, not {_shorten(kind)}")
    version = document.get("version")
    if isinstance(version, bool) or version != VERSION or not isinstance(version, int):
        raise FormatError("version", f"this release reads version {VERSION}, not {_shorten(version)}")
    return readers[kind](document)


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"byte {error.start}", "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}") from None
    except FormatError:
        raise
    except ValueError:  # the interpreter refuses to read integers of thousands of digits
        raise FormatError("top level", "holds an integer with too many digits") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FormatError(f"key {_shorten(key)}", "appears twice in one object")
            seen.add(key)
    return document


def _no_constant(word: str) -> NoReturn:
    raise FormatError(word, "is not a number that JSON knows")


def _problem(document: dict[str, Any]) -> Problem:
    _check_keys("top level", document, PROBLEM_KEYS, optional=("costs",))
    link, costs = document["link"], document.get("costs")
    problem = Problem(
        name=_convert("name", document["name"], str),
        ops=tuple(_record(f"ops[{i}]", item, Op) for i, item in enumerate(_list("ops", document["ops"]))),
        values=tuple(
            _record(f"values[{i}]", item, Value) for i, item in enumerate(_list("values", document["values"]))
        ),
        results=_convert("results", document["results"], tuple[int, ...]),
        link=None if link is None else _record("link", link, Link),
        reserve_bytes=_convert("reserve_bytes", document["reserve_bytes"], int),
        costs=None if costs is None else _record("costs", costs, Costs),
    )
    if problem.costs is not None:
        _size("costs.threads", problem.costs.threads)
        for i, spread in enumerate(problem.costs.spread_ns):
            _size(f"costs.spread_ns[{i}]", spread)
    return problem


def _plan_file(document: dict[str, Any]) -> PlanFile:
    _check_keys("top level", document, PLAN_KEYS)
    fingerprint = _fingerprint(document["problem"])
    status = document["status"]
    if not isinstance(status, str) or status not in STATUSES:
        raise FormatError("status", f"must be one of {', '.join(STATUSES)}, not {_shorten(status)}")
    bound_ns = document["bound_ns"]
    return PlanFile(
        problem=fingerprint,
        budget_bytes=_size("budget_bytes", document["budget_bytes"]),
        solver=_convert("solver", document["solver"], str),
        status=STATUSES[status],
        peak_bytes=_size("peak_bytes", document["peak_bytes"]),
        time_ns=_size("time_ns", document["time_ns"]),
        bound_ns=None if bound_ns is None else _size("bound_ns", bound_ns),
        plan=_actions("actions", document["actions"]),
    )


def _sweep(document: dict[str, Any]) -> Sweep:
    names = [f.name for f in fields(Sweep)]
    _check_keys("top level", document, ("format", "version", *names))
    points = tuple(_point(f"points[{i}]", item) for i, item in enumerate(_list("points", document["points"])))
    told = {name: document[name] for name in names if name != "points"}
    _fingerprint(told["problem"])
    return replace(_convert("", {**told, "points": ()}, Sweep), points=points)


def _point(place: str, item: Any) -> Point:
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {_shorten(item)}")
    names = [f.name for f in fields(Point) if f.name != "plan"]
    _check_keys(place, item, (*names, "actions"))
    plan = None if item["actions"] is None else _actions(f"{place}.actions", item["actions"])
    return replace(_convert(place, {**{name: item[name] for name in names}, "plan": None}, Point), plan=plan)


def _fingerprint(item: Any) -> str:
    fingerprint: str = _convert("problem", item, str)
    if len(fingerprint) != FINGERPRINT_DIGITS or set(fingerprint) - set("0123456789abcdef"):
        raise FormatError("problem", f"must be a fingerprint of {FINGERPRINT_DIGITS} hexadecimal digits")
    return fingerprint


def _actions(place: str, items: Any) -> Plan:
    return Plan(_action(f"{place}[{i}]", item) for i, item in enumerate(_list(place, items)))


def _action(place: str, item: Any) -> Action:
    if not isinstance(item, list) or len(item) != 2:
        raise FormatError(place, f"must be a pair [word, index], not {_shorten(item)}")
    word, index = item
    if not isinstance(word, str) or word not in ACTIONS:
        raise FormatError(f"{place}[0]", f"must be one of {', '.join(ACTIONS)}, not {_shorten(word)}")
    return ACTIONS[word](_size(f"{place}[1]", index))


def _record(place: str, item: Any, kind: type[T]) -> T:
    """`item` as the dataclass `kind`, every key present, none unknown, every type exact."""
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {_shorten(item)}")
    _check_keys(place, item, tuple(f.name for f in fields(kind)))  # type: ignore[arg-type]
    return _convert(place, item, kind)


def _check_keys(place: str, item: dict[str, Any], keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    for key in item:
        if key not in keys:
            raise FormatError(place, f"has an unknown key {_shorten(key)}")
    for key in keys:
        if key not in item and key not in optional:
            raise FormatError(place, f"lacks the key {key!r}")


def _convert(place: str, item: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(item, kind, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise FormatError(place + path.strip("`").removeprefix("$"), message) from None
    except UnicodeEncodeError:  # a lone surrogate where a word is expected
        raise FormatError(place, "holds text that is not Unicode") from None


def _list(place: str, item: Any) -> list[Any]:
    if not isinstance(item, list):
        raise FormatError(place, f"must be a list, not {_shorten(item)}")
    return item


def _size(place: str, number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_INT:
        raise FormatError(place, f"must be an integer from 0 to 2**63 - 1, not {_shorten(number)}")
    return number


def _shorten(item: Any) -> str:
    """`item` for an error message, cut to a readable length."""
    text = ascii(item)
    return text if len(text) <= 40 else text[:37] + "..."
