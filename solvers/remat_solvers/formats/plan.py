"""Plans and results as JSON: encode_plan writes a plan file, read_plan reads one.

{"format": "remat.plan", "version": 1, "problem": <fingerprint>, "budget_bytes": ..., "solver": ...,
 "status": ..., "peak_bytes": ..., "time_ns": ..., "bound_ns": null | ..., "actions": [["compute", 3], ...]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remat_solvers.errors import FormatError, InputError
from remat_solvers.formats.certificate import certificate_to_dict
from remat_solvers.formats.json_text import (
    check_keys,
    convert,
    dump,
    duration,
    fingerprint,
    header,
    list_of,
    plain,
    shorten,
    size,
)
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.result import Result, Status

PLAN_FORMAT = "remat.plan"
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


def encode_plan(plan: PlanFile) -> bytes:
    """The plan file as one line of JSON."""
    document = {**header(PLAN_FORMAT), **plain(plan)}
    document["status"] = plan.status.value
    document["actions"] = plain_actions(document.pop("plan"))
    return dump(document)


def result_to_dict(result: Result) -> dict[str, Any]:
    """The result as plain JSON data, keys in the order of its fields; the plan as its list of actions."""
    document = plain(result)
    for name in ("status", "stopped", "order"):
        document[name] = document[name].value
    document["options"] = dict(result.options)
    document["plan"] = None if result.plan is None else plain_actions(result.plan)
    certificate = result.certificate
    document["certificate"] = None if certificate is None else certificate_to_dict(certificate)
    return document


def read_plan(document: dict[str, Any]) -> PlanFile:
    """The plan file in `document`. Raises FormatError with the place of the error."""
    check_keys("top level", document, PLAN_KEYS)
    status = document["status"]
    if not isinstance(status, str) or status not in STATUSES:
        raise FormatError("status", f"must be one of {', '.join(STATUSES)}, not {shorten(status)}")
    bound_ns = document["bound_ns"]
    return PlanFile(
        problem=fingerprint(document["problem"]),
        budget_bytes=size("budget_bytes", document["budget_bytes"]),
        solver=convert("solver", document["solver"], str),
        status=STATUSES[status],
        peak_bytes=size("peak_bytes", document["peak_bytes"]),
        time_ns=duration("time_ns", document["time_ns"]),
        bound_ns=None if bound_ns is None else duration("bound_ns", bound_ns),
        plan=read_actions("actions", document["actions"]),
    )


def plain_actions(plan: Plan) -> list[tuple[str, int]]:
    """The actions as pairs of a word and an index."""
    words = {kind: word for word, kind in ACTIONS.items()}
    return [(words[type(a)], a.op if isinstance(a, Compute) else a.value) for a in plan]


def read_actions(place: str, items: Any) -> Plan:
    """The plan that a list of pairs spells."""
    return Plan(_action(f"{place}[{i}]", item) for i, item in enumerate(list_of(place, items)))


def _action(place: str, item: Any) -> Action:
    if not isinstance(item, list) or len(item) != 2:
        raise FormatError(place, f"must be a pair [word, index], not {shorten(item)}")
    word, index = item
    if not isinstance(word, str) or word not in ACTIONS:
        raise FormatError(f"{place}[0]", f"must be one of {', '.join(ACTIONS)}, not {shorten(word)}")
    return ACTIONS[word](size(f"{place}[1]", index))
