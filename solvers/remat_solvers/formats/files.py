"""Reading and writing files: the format that a document names decides who reads it.

docs/plan-format.md lists every key. Reading never executes anything. What is not exactly of its format is refused
with a FormatError (or, where the graph itself is not well formed, a ProblemError) that names the place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from remat_solvers.errors import FormatError
from remat_solvers.formats.certificate import CERTIFICATE_FORMAT, encode_certificate, read_certificate
from remat_solvers.formats.json_text import VERSION, parse, shorten, write
from remat_solvers.formats.plan import PLAN_FORMAT, PlanFile, encode_plan, read_plan
from remat_solvers.formats.problem import PROBLEM_FORMAT, encode_problem, read_problem
from remat_solvers.formats.sweep import SWEEP_FORMAT, encode_sweep, read_sweep
from remat_solvers.pareto import Sweep
from remat_solvers.problem import Problem
from remat_solvers.result import Certificate, Result

Document: TypeAlias = Problem | PlanFile | Sweep | Certificate
D = TypeVar("D", Problem, PlanFile, Sweep, Certificate)
WORDS: dict[type, str] = {Problem: "problem", PlanFile: "plan", Sweep: "sweep", Certificate: "certificate"}
READERS: dict[str, Callable[[dict[str, Any]], Document]] = {
    PROBLEM_FORMAT: read_problem,
    PLAN_FORMAT: read_plan,
    SWEEP_FORMAT: read_sweep,
    CERTIFICATE_FORMAT: read_certificate,
}


def save_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Write `problem` to `path`, whole or not at all."""
    write(Path(path), encode_problem(problem))


def save_plan(path: str | os.PathLike[str], plan: PlanFile | Result) -> None:
    """Write a plan, or the plan of a result, to `path`, whole or not at all."""
    write(Path(path), encode_plan(PlanFile.from_result(plan) if isinstance(plan, Result) else plan))


def save_sweep(path: str | os.PathLike[str], sweep: Sweep) -> None:
    """Write `sweep`, its plans included, to `path`, whole or not at all."""
    write(Path(path), encode_sweep(sweep))


def save_certificate(path: str | os.PathLike[str], certificate: Certificate) -> None:
    """Write `certificate` to `path`, whole or not at all."""
    write(Path(path), encode_certificate(certificate))


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
    """The certificate in `path`. It is not checked here: `check_certificate` does that."""
    return _load(path, Certificate)


def _load(path: str | os.PathLike[str], kind: type[D]) -> D:
    loaded = load(path)
    if not isinstance(loaded, kind):
        raise FormatError("format", f"{os.fspath(path)} holds a {WORDS[type(loaded)]}, not a {WORDS[kind]}")
    return loaded


def decode(content: bytes) -> Document:
    """Decode a problem, plan, sweep or certificate. Raises FormatError or ProblemError with the place of an error."""
    try:
        return _document(parse(content))
    except RecursionError:
        raise FormatError("top level", "is nested too deeply") from None


def _document(document: Any) -> Document:
    if not isinstance(document, dict):
        raise FormatError("top level", "must be an object")
    kind = document.get("format")
    if not isinstance(kind, str) or kind not in READERS:
        raise FormatError("format", f"must be one of {', '.join(READERS)}, not {shorten(kind)}")
    version = document.get("version")
    if isinstance(version, bool) or version != VERSION or not isinstance(version, int):
        raise FormatError("version", f"this release reads version {VERSION}, not {shorten(version)}")
    return READERS[kind](document)
