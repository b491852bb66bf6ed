"""Sweeps as JSON: encode_sweep writes one, read_sweep reads one.

{"format": "remat.sweep", "version": 1, "problem": <fingerprint>, ..., "points": [{..., "actions": [...]}, ...]}
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from remat_solvers.errors import FormatError
from remat_solvers.formats.json_text import check_keys, convert, dump, fingerprint, header, list_of, plain, shorten
from remat_solvers.formats.plan import plain_actions, read_actions
from remat_solvers.pareto import Point, Sweep

SWEEP_FORMAT = "remat.sweep"


def sweep_to_dict(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain JSON data; each point's plan as its list of actions, None where it has none."""
    points = []
    for point in sweep.points:
        document = plain(point)
        plan = document.pop("plan")
        points.append({**document, "actions": None if plan is None else plain_actions(plan)})
    link = None if sweep.link is None else plain(sweep.link)
    return {**header(SWEEP_FORMAT), **plain(sweep), "link": link, "points": points}


def encode_sweep(sweep: Sweep) -> bytes:
    """The sweep as one line of JSON."""
    return dump(sweep_to_dict(sweep))


def read_sweep(document: dict[str, Any]) -> Sweep:
    """The sweep in `document`. Raises FormatError with the place of the error."""
    names = [f.name for f in fields(Sweep)]
    check_keys("top level", document, ("format", "version", *names))
    points = tuple(_point(f"points[{i}]", item) for i, item in enumerate(list_of("points", document["points"])))
    given = {name: document[name] for name in names if name != "points"}
    fingerprint(given["problem"])
    return replace(convert("", {**given, "points": ()}, Sweep), points=points)


def _point(place: str, item: Any) -> Point:
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {shorten(item)}")
    names = [f.name for f in fields(Point) if f.name != "plan"]
    check_keys(place, item, (*names, "actions"))
    plan = None if item["actions"] is None else read_actions(f"{place}.actions", item["actions"])
    return replace(convert(place, {**{name: item[name] for name in names}, "plan": None}, Point), plan=plan)
