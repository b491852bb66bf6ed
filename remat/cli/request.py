"""What the commands have in common: a problem file or a MODEL, what is asked of it, and the link it may use."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remat.cli.terminal import log

if TYPE_CHECKING:
    from remat.capture.exported import Exported
    from remat.execute.offload.tiers import Tier
    from remat_solvers.problem import Problem
    from remat_solvers.registry import Solver
    from remat_solvers.result import Limits

__all__ = [
    "Costs",
    "LinkRate",
    "Question",
    "Scratch",
    "Seed",
    "Source",
    "TierName",
    "export_model",
    "pose",
    "quiet",
    "tier_named",
]

Source = Annotated[str, typer.Argument(metavar="MODEL|PROBLEM", help="file.py:function, or an exported problem.json")]
LinkRate = Annotated[
    str | None,
    typer.Option(help="rate to the host, such as 25GB/s; auto: measured, for a MODEL; default: the problem's"),
]
TierName = Annotated[str, typer.Option(help="where values go that leave the device: host, or disk (on a CPU)")]
Scratch = Annotated[Path | None, typer.Option(help="folder of the disk tier; default: the system's temporary one")]
Costs = Annotated[str, typer.Option(help="measure on this device, or roofline:NAME for an estimate")]
Seed = Annotated[int, typer.Option(help="for methods that draw")]


@dataclasses.dataclass(frozen=True)
class Question:
    """What `solve`, `compare` and `sweep` ask about."""

    problem: Problem  # with the link that was asked for
    exported: Exported | None  # None: a problem file
    tier: Tier
    limits: Limits

    def solver(self, name: str) -> str | Solver:
        """The method of that name, bound to the model where it needs one."""
        from remat.model_solvers.registry import bind

        return name if self.exported is None else bind(name, self.exported)

    def budget_bytes(self, budget: str) -> int:
        """A budget as it was written, in bytes."""
        from remat.cli.text import describe_problem
        from remat_solvers.units import parse_budget

        return parse_budget(budget, describe_problem(self.problem)["store_all_peak_bytes"])

    def traffic(self) -> dict[str, object]:
        """The link that was planned with, and the tier at its end, for JSON."""
        if self.problem.link is None:
            return {"link": None, "tier": None}
        return {"link": dataclasses.asdict(self.problem.link), "tier": self.tier.name}


def pose(
    source: str,
    budgets: Sequence[str],
    solvers: Sequence[str],
    *,
    link: str | None,
    tier: str,
    scratch: Path | None,
    time_limit: float,
    costs: str,
) -> Question:
    """Check all that does not depend on the problem, before minutes of work; then read or export the problem."""
    from remat.model_solvers.registry import check_name
    from remat_solvers.errors import InputError
    from remat_solvers.result import Limits
    from remat_solvers.units import parse_budget, parse_link

    if not time_limit > 0:
        raise InputError(f"--time-limit must be more than 0 seconds, not {time_limit:g}")
    for budget in budgets:
        parse_budget(budget, 10**15)
    for name in solvers:
        check_name(name, has_model=not _is_file(source))
    given = None if link in (None, "auto") else parse_link(link)
    place = tier_named(tier, scratch, link=link, has_model=not _is_file(source))

    problem, exported = _problem(source, costs)
    if link == "auto" and exported is not None:
        from remat.execute.offload.link_speed import measure_link

        given = measure_link(exported.device, place)
    if given is not None:
        problem = dataclasses.replace(problem, link=given)
    return Question(problem, exported, place, Limits(None if time_limit == float("inf") else time_limit))


def tier_named(name: str, scratch: Path | None, *, link: str | None = None, has_model: bool = True) -> Tier:
    """The tier of that name. Raises InputError where there is none, or where its link cannot be measured."""
    from remat.execute.offload.tiers import DiskTier, HostTier
    from remat_solvers.errors import InputError

    if name not in ("host", "disk"):
        raise InputError(f"--tier must be host or disk, not {name!r}")
    if scratch is not None and name != "disk":
        raise InputError("--scratch is the folder of the disk tier: add --tier disk")
    if link == "auto" and not has_model:
        raise InputError("--link auto measures from the device of a MODEL; for a problem file state a rate: 25GB/s")
    return DiskTier(scratch) if name == "disk" else HostTier()


def export_model(model: str, costs: str) -> Exported:
    """The training step of a MODEL."""
    import remat
    from remat.cli.model_loading import load_model

    with quiet():
        loaded = load_model(model)
        log(f"exporting {model}")
        return remat.export(loaded.model, loaded.args, loaded.kwargs, costs=costs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the user's model prints must not mix with the answer on stdout, nor torch's tracebacks with our errors."""
    tracing = logging.getLogger("torch._subclasses.fake_tensor")
    tracing.addFilter(_nothing)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        tracing.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that lets nothing through."""
    return False


def _is_file(source: str) -> bool:
    """Whether `source` is a problem file rather than a MODEL."""
    return source.endswith(".json") or (":" not in source and not source.endswith(".py"))


def _problem(source: str, costs: str) -> tuple[Problem, Exported | None]:
    """The problem in a file; or that of a MODEL, and its export."""
    from remat_solvers.formats import load_problem

    if _is_file(source):
        return load_problem(source), None
    exported = export_model(source, costs)
    return exported.problem, exported
