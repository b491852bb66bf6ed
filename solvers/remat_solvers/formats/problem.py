"""Problems as JSON: encode_problem writes one, read_problem reads one.

{"format": "remat.problem", "version": 1, "name": ..., "values": [...], "ops": [...], "results": [...],
 "link": null | {...}, "reserve_bytes": 0, "costs": {...}}                        `costs` only where known
"""

from __future__ import annotations

from typing import Any

from remat_solvers.formats.json_text import check_keys, convert, dump, header, list_of, plain, record, size
from remat_solvers.problem import Costs, Link, Op, Problem, Value

PROBLEM_FORMAT = "remat.problem"
PROBLEM_KEYS = ("format", "version", "name", "values", "ops", "results", "link", "reserve_bytes", "costs")


def encode_problem(problem: Problem) -> bytes:
    """The problem as one line of JSON."""
    document = {
        **header(PROBLEM_FORMAT),
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


def read_problem(document: dict[str, Any]) -> Problem:
    """The problem in `document`. Raises FormatError or ProblemError with the place of the error."""
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
