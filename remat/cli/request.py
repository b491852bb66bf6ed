"""The options that `solve`, `compare` and `sweep` share are declared here once, and turned into a problem to solve."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from remat.cli.terminal import log

if TYPE_CHECKING:
    from remat.capture.exported import Exported
    from remat.execute.offload.tiers import Tier
    from remat_solvers.problem import Problem
    from remat_solvers.registry import Solver
    from remat_solvers.result import Limits

EMPTY = inspect.Parameter.empty

Source = Annotated[str, typer.Argument(metavar="MODEL|PROBLEM", help="file.py:function, or an exported problem.json")]
LinkRate = Annotated[
    str | None,
    typer.Option(help="rate to the host, such as 25GB/s; auto: measured, for a MODEL; default: the problem's"),
]
TierName = Annotated[str, typer.Option(help="tier of offloaded values: host, or disk (on a CPU)")]
Scratch = Annotated[Path | None, typer.Option(help="folder of the disk tier; default: the system's temporary one")]
Costs = Annotated[str, typer.Option(help="measure on this device, or roofline:NAME for an estimate")]
Seed = Annotated[int, typer.Option(help="for solvers that draw random numbers")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, in bytes and ns")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options that several commands share, as they were given."""

    source: Source
    link: LinkRate = None
    tier: TierName = "host"
    scratch: Scratch = None
    time_limit: float  # in seconds; `takes_request` gives its default and its help text
    costs: Costs = "measure"
    seed: Seed = 0
    json: AsJson = False

    @property
    def has_model(self) -> bool:
        """Return whether the source is a MODEL rather than a problem file."""
        return not self.source.endswith(".json") and (":" in self.source or self.source.endswith(".py"))


def takes_request(*, time_limit: float, time_limit_help: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator for commands: it replaces their first parameter, a Request, by one option for each of its fields."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        kinds = get_type_hints(Request, include_extras=True)
        kinds["time_limit"] = Annotated[float, typer.Option(help=time_limit_help)]
        defaults = {f.name: f.default for f in dataclasses.fields(Request) if f.default is not dataclasses.MISSING}
        defaults["time_limit"] = time_limit
        source, *shared = [_parameter(name, kind, defaults.get(name, EMPTY)) for name, kind in kinds.items()]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [source, *(_parameter(p.name, p.annotation, p.default) for p in own), *shared]

        @functools.wraps(command)
        def with_request(**values: Any) -> int:
            request = Request(**{name: values.pop(name) for name in kinds})
            return command(request, **values)

        with_request.__annotations__ = {p.name: p.annotation for p in parameters}
        vars(with_request)["__signature__"] = inspect.Signature(parameters)
        return with_request

    return decorate


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


@dataclasses.dataclass(frozen=True)
class LoadedRequest:
    """A request that was checked, with its problem read or exported."""

    problem: Problem  # with the link of the request
    exported: Exported | None  # None: a problem file
    tier: Tier
    limits: Limits

    def solver(self, name: str) -> str | Solver:
        """The solver of that name, bound to the model where it needs one."""
        from remat.model_solvers.registry import bind

        return name if self.exported is None else bind(name, self.exported)

    def describe_link(self) -> dict[str, object]:
        """The link that plans use, and the tier at its end, for JSON."""
        if self.problem.link is None:
            return {"link": None, "tier": None}
        return {"link": dataclasses.asdict(self.problem.link), "tier": self.tier.name}


def read_request(request: Request, solvers: Sequence[str]) -> LoadedRequest:
    """Check all that does not depend on the problem, before minutes of work; then read or export the problem."""
    from remat.model_solvers.registry import check_name
    from remat_solvers.errors import InputError
    from remat_solvers.formats import load_problem
    from remat_solvers.result import Limits
    from remat_solvers.units import parse_link

    if not request.time_limit > 0:
        raise InputError(f"--time-limit must be more than 0 seconds, not {request.time_limit:g}")
    for name in solvers:
        check_name(name, has_model=request.has_model)
    link = None if request.link is None or request.link == "auto" else parse_link(request.link)
    tier = make_tier(request.tier, request.scratch)
    if request.link == "auto" and not request.has_model:
        raise InputError("--link auto measures from the device of a MODEL; for a problem file state a rate: 25GB/s")

    exported = export_model(request.source, request.costs) if request.has_model else None
    problem = load_problem(request.source) if exported is None else exported.problem
    if request.link == "auto" and exported is not None:
        from remat.execute.offload.link_speed import measure_link

        link = measure_link(exported.device, tier)
    if link is not None:
        problem = dataclasses.replace(problem, link=link)
    limits = Limits(None if request.time_limit == float("inf") else request.time_limit)
    return LoadedRequest(problem, exported, tier, limits)


def make_tier(name: str, scratch: Path | None) -> Tier:
    """The tier of that name. Raises InputError where there is none."""
    from remat.execute.offload.tiers import DiskTier, HostTier
    from remat_solvers.errors import InputError

    if name not in ("host", "disk"):
        raise InputError(f"--tier must be host or disk, not {name!r}")
    if scratch is not None and name != "disk":
        raise InputError("--scratch is the folder of the disk tier: add --tier disk")
    return DiskTier(scratch) if name == "disk" else HostTier()


def export_model(model: str, costs: str) -> Exported:
    """Export the training step of a MODEL."""
    import remat
    from remat.cli.model_loading import load_model

    with quiet():
        loaded = load_model(model)
        log(f"exporting {model}")
        return remat.export(loaded.model, loaded.args, loaded.kwargs, costs=costs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what the user's model prints to stderr, so that stdout has only the answer; silence torch's tracebacks."""
    tracing = logging.getLogger("torch._subclasses.fake_tensor")
    tracing.addFilter(_reject)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        tracing.removeFilter(_reject)


def _reject(record: logging.LogRecord) -> bool:
    """A filter that lets no record through."""
    return False
