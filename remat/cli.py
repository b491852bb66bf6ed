"""The command line. Each command parses, asks the library, and prints; what is heavy is imported inside it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remat.terminal import Commands, ExitCode, check_writable, log, print_json, progress_printer

if TYPE_CHECKING:
    from remat.capture.exported import Exported
    from remat.execute.offload.tiers import Tier
    from remat_solvers.codec import PlanFile
    from remat_solvers.problem import Problem
    from remat_solvers.result import Result

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a PyTorch model within a memory budget: plan what to keep, recompute and offload.\n\n"
    "MODEL is file.py:function or package.module:function returning (model, args) or (model, args, kwargs).",
)

Source = Annotated[str, typer.Argument(metavar="MODEL|PROBLEM", help="file.py:function, or an exported problem.json")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function or package.module:function")]
ProblemFile = Annotated[Path, typer.Argument(metavar="PROBLEM", help="an exported problem.json")]
PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, in bytes and ns")]
LinkRate = Annotated[
    str | None,
    typer.Option(help="rate to the host, such as 25GB/s; auto: measured, for a MODEL; default: the problem's"),
]
TierName = Annotated[str, typer.Option(help="where values go that leave the device: host, or disk (on a CPU)")]
Scratch = Annotated[Path | None, typer.Option(help="folder of the disk tier; default: the system's temporary one")]
Costs = Annotated[str, typer.Option(help="measure on this device, or roofline:NAME for an estimate")]


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the problem.json to write")],
    costs: Costs = "measure",
    json: AsJson = False,
) -> int:
    """Capture MODEL's training step as a problem file."""
    from remat.summary import describe_problem, problem_line
    from remat_solvers.codec import save_problem

    check_writable(output)
    problem = _export(model, costs).problem
    save_problem(output, problem)
    if json:
        print_json({"problem_file": str(output), **describe_problem(problem)})
    else:
        print(f"{output}: {problem_line(problem)}")
    return ExitCode.OK


@app.command()
def solve(
    source: Source,
    budget: Annotated[str, typer.Option(help="8GiB, 800MB, bytes, or 60% of the store-all peak")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the plan.json to write")] = None,
    solver: Annotated[str, typer.Option(help="a name from `remat solvers`")] = "auto",
    link: LinkRate = None,
    tier: TierName = "host",
    scratch: Scratch = None,
    time_limit: Annotated[float, typer.Option(help="seconds")] = 60.0,
    costs: Costs = "measure",
    seed: Annotated[int, typer.Option(help="for methods that draw")] = 0,
    json: AsJson = False,
) -> int:
    """Find the fastest plan within a budget."""
    import remat_solvers
    from remat.model_methods import bind, check_name
    from remat.summary import describe_problem, result_lines
    from remat_solvers.budget import parse_budget
    from remat_solvers.codec import result_to_dict, save_plan
    from remat_solvers.errors import InputError
    from remat_solvers.result import Limits
    from remat_solvers.units import parse_link

    # What does not depend on the problem is checked before minutes of work.
    if not time_limit > 0:
        raise InputError(f"--time-limit must be more than 0 seconds, not {time_limit:g}")
    parse_budget(budget, 10**15)
    check_name(solver, has_model=not _is_file(source))
    given = None if link in (None, "auto") else parse_link(link)
    place = _tier(tier, scratch, link=link, has_model=not _is_file(source))
    check_writable(output)

    problem, exported = _problem(source, costs)
    if link == "auto" and exported is not None:
        from remat.execute.offload.measure import measure_link

        given = measure_link(exported.device, place)
    if given is not None:
        problem = dataclasses.replace(problem, link=given)
    with _quiet():
        result = remat_solvers.solve(
            problem,
            parse_budget(budget, describe_problem(problem)["store_all_peak_bytes"]),
            solver=solver if exported is None else bind(solver, exported),
            limits=Limits(None if time_limit == float("inf") else time_limit),
            on_progress=progress_printer(),
            seed=seed,
        )
    written = output if result.plan is not None else None
    if written is not None:
        save_plan(written, result)
    if json:
        more = {"plan_file": None if written is None else str(written), **_traffic(problem, place)}
        print_json({**result_to_dict(result), **more})
    else:
        log(f"{result.solver}: {result.status}. {result.status.sentence} {result.reason}".rstrip())
        print("\n".join(result_lines(result, written)), file=sys.stdout if result.plan is not None else sys.stderr)
    return _code(result)


@app.command()
def compare(
    source: Source,
    budget: Annotated[str, typer.Option(help="8GiB, 800MB, bytes, or 60% of the store-all peak")],
    solver: Annotated[list[str] | None, typer.Option(help="a name from `remat solvers`; may be repeated")] = None,
    link: LinkRate = None,
    tier: TierName = "host",
    scratch: Scratch = None,
    time_limit: Annotated[float, typer.Option(help="seconds for each method")] = 30.0,
    costs: Costs = "measure",
    seed: Annotated[int, typer.Option(help="for methods that draw")] = 0,
    json: AsJson = False,
) -> int:
    """Ask every solver, and show them side by side.

    Each works in a process of its own; what needs the model itself, in this one.
    """
    from remat.model_methods import MODEL_ENTRIES, bind, check_name
    from remat.summary import comparison_notes, comparison_table, describe_problem, row_line
    from remat_solvers.budget import parse_budget
    from remat_solvers.comparison import compare as ask
    from remat_solvers.errors import InputError
    from remat_solvers.registry import solver_names
    from remat_solvers.result import Limits
    from remat_solvers.units import parse_link

    if not time_limit > 0:
        raise InputError(f"--time-limit must be more than 0 seconds, not {time_limit:g}")
    parse_budget(budget, 10**15)
    for name in solver or ():
        check_name(name, has_model=not _is_file(source))
    given = None if link in (None, "auto") else parse_link(link)
    place = _tier(tier, scratch, link=link, has_model=not _is_file(source))

    problem, exported = _problem(source, costs)
    if link == "auto" and exported is not None:
        from remat.execute.offload.measure import measure_link

        given = measure_link(exported.device, place)
    if given is not None:
        problem = dataclasses.replace(problem, link=given)
    names = solver or [*solver_names(), *(() if exported is None else (e.name for e in MODEL_ENTRIES))]
    asked = [name if exported is None else bind(name, exported) for name in names]
    with _quiet():
        comparison = ask(
            problem,
            parse_budget(budget, describe_problem(problem)["store_all_peak_bytes"]),
            solvers=[name for name in asked if isinstance(name, str)],
            here=[bound for bound in asked if not isinstance(bound, str)],
            limits=Limits(None if time_limit == float("inf") else time_limit),
            seed=seed,
            on_row=lambda row: log(row_line(row)),
        )
    if json:
        print_json({**comparison.to_dict(), **_traffic(problem, place)})
    else:
        from rich.console import Console

        Console().print(comparison_table(comparison))
        print("\n".join(["", *comparison_notes(comparison)]))
    return ExitCode.OK


@app.command()
def simulate(problem: ProblemFile, plan: PlanPath, json: AsJson = False) -> int:
    """Replay PLAN on PROBLEM: its peak, its time, its memory."""
    from remat.summary import describe_problem, replay_lines
    from remat_solvers.errors import PlanError
    from remat_solvers.simulate import simulate as replay

    loaded, made = _pair(problem, plan)
    try:
        timeline = replay(loaded, made.plan)
    except PlanError as error:
        log(f"the plan cannot be replayed: {error}. `remat validate` names everything that is wrong with it.")
        return ExitCode.FAILED
    if json:
        replayed = {**dataclasses.asdict(timeline), "memory_bytes": timeline.memory_bytes.tolist()}
        recorded = {"recorded_peak_bytes": made.peak_bytes, "recorded_time_ns": made.time_ns}
        print_json({**replayed, **recorded, "budget_bytes": made.budget_bytes, **describe_problem(loaded)})
    else:
        print("\n".join(replay_lines(loaded, made, timeline)))
    return ExitCode.OK


@app.command()
def validate(problem: ProblemFile, plan: PlanPath, json: AsJson = False) -> int:
    """Check PLAN against every rule, its own budget included."""
    from remat_solvers.validate import validate as check

    loaded, made = _pair(problem, plan)
    violations = check(loaded, made.plan, made.budget_bytes)
    if json:
        print_json({"valid": not violations, "violations": [dataclasses.asdict(v) for v in violations]})
    else:
        print("\n".join(map(str, violations)) or f"valid: {len(made.plan)} actions")
    return ExitCode.FAILED if violations else ExitCode.OK


@app.command()
def verify(model: Model, plan: PlanPath, tier: TierName = "host", scratch: Scratch = None, json: AsJson = False) -> int:
    """Run PLAN on MODEL and compare outputs, gradients, buffers, random state and peak with the original."""
    import remat
    from remat.models import load_model
    from remat_solvers.codec import load_plan
    from remat_solvers.errors import ApplyError, OffloadError

    made = load_plan(plan)  # before the model, which may take long
    place = _tier(tier, scratch)
    with _quiet():
        loaded = load_model(model)
        try:
            verification = remat.verify(loaded.model, made, loaded.args, loaded.kwargs, tier=place)
        except (ApplyError, OffloadError) as error:
            log(f"the plan cannot be run: {error}")
            return ExitCode.FAILED
    if json:
        print_json(dataclasses.asdict(verification))
    else:
        print(verification)
    return ExitCode.OK if verification.ok else ExitCode.FAILED


@app.command()
def solvers(json: AsJson = False) -> int:
    """List the registered solvers and what each can do."""
    from remat.model_methods import MODEL_ENTRIES
    from remat_solvers.registry import ENTRIES

    entries = [*ENTRIES, *MODEL_ENTRIES]
    if json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return ExitCode.OK
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "family", "swaps", "exact", "summary", box=None)
    for entry in entries:
        table.add_row(
            entry.name, entry.family, *(("no", "yes")[x] for x in (entry.supports_link, entry.exact)), entry.summary
        )
    Console().print(table)
    return ExitCode.OK


def main() -> None:
    """The `remat` program."""
    app()


def _tier(name: str, scratch: Path | None, *, link: str | None = None, has_model: bool = True) -> Tier:
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


def _traffic(problem: Problem, tier: Tier) -> dict[str, object]:
    """The link that was planned with, and the tier at its end, for JSON."""
    if problem.link is None:
        return {"link": None, "tier": None}
    return {"link": dataclasses.asdict(problem.link), "tier": tier.name}


def _is_file(source: str) -> bool:
    """Whether `source` is a problem file rather than a MODEL."""
    return source.endswith(".json") or (":" not in source and not source.endswith(".py"))


def _problem(source: str, costs: str) -> tuple[Problem, Exported | None]:
    """The problem in a file; or that of a MODEL, and its export."""
    from remat_solvers.codec import load_problem

    if _is_file(source):
        return load_problem(source), None
    exported = _export(source, costs)
    return exported.problem, exported


def _export(model: str, costs: str) -> Exported:
    import remat
    from remat.models import load_model

    with _quiet():
        loaded = load_model(model)
        log(f"exporting {model}")
        return remat.export(loaded.model, loaded.args, loaded.kwargs, costs=costs)


def _pair(problem: Path, plan: Path) -> tuple[Problem, PlanFile]:
    """A problem and a plan that was made for it."""
    from remat_solvers.codec import load_plan, load_problem
    from remat_solvers.match import check_match

    loaded, made = load_problem(problem), load_plan(plan)
    check_match(loaded, made.plan, made.problem)
    return loaded, made


def _code(result: Result) -> ExitCode:
    from remat_solvers.result import Status, Stopped

    if result.plan is not None:
        return ExitCode.OK
    cut_short = result.stopped is not Stopped.COMPLETE and result.status is Status.NOT_FOUND
    return ExitCode.LIMIT if cut_short else ExitCode.NO_PLAN


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
