"""The commands. Each reads its options, calls the library and prints; slow imports are inside the commands."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remat.cli.request import (
    AsJson,
    Costs,
    Request,
    Scratch,
    TierName,
    export_model,
    make_tier,
    quiet,
    read_request,
    takes_request,
)
from remat.cli.terminal import Commands, ExitCode, check_writable, log, print_json, print_table, progress_printer

if TYPE_CHECKING:
    from remat_solvers.formats import PlanFile
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

Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function or package.module:function")]
ProblemFile = Annotated[Path, typer.Argument(metavar="PROBLEM", help="an exported problem.json")]
PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json")]
StatedLink = Annotated[
    str | None,
    typer.Option("--link", help="rate to the host that PLAN assumes, such as 25GB/s; default: the problem's"),
]
SolverName = Annotated[str, typer.Option("--solver", help="a name from `remat solvers`")]


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the problem.json to write")],
    costs: Costs = "measure",
    json: AsJson = False,
) -> int:
    """Capture MODEL's training step as a problem file."""
    from remat.cli.text import describe_problem, problem_line
    from remat_solvers.formats import save_problem

    check_writable(output)
    problem = export_model(model, costs).problem
    save_problem(output, problem)
    if json:
        print_json({"problem_file": str(output), **describe_problem(problem)})
    else:
        print(f"{output}: {problem_line(problem)}")
    return ExitCode.OK


@app.command()
@takes_request(time_limit=60.0, time_limit_help="seconds")
def solve(
    request: Request,
    budget: Annotated[
        str, typer.Option(help="8GiB, 800MB, bytes, 60% of the unmodified peak, or min: the smallest found")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the plan.json to write")] = None,
    solver: SolverName = "auto",
    certificate: Annotated[Path | None, typer.Option(help="the certificate.json to write; takes up to 20 s")] = None,
) -> int:
    """Find the fastest plan within a budget."""
    import remat_solvers
    from remat.cli.text import result_lines
    from remat_solvers.formats import result_to_dict, save_certificate, save_plan
    from remat_solvers.registry import with_certificate
    from remat_solvers.units import ANY_PEAK_BYTES, read_budget

    check_writable(output)
    check_writable(certificate)
    read_budget(budget, ANY_PEAK_BYTES)
    loaded = read_request(request, [solver])
    with quiet():
        result = remat_solvers.solve(
            loaded.problem,
            budget,
            solver=with_certificate(loaded.solver(solver)) if certificate else loaded.solver(solver),
            limits=loaded.limits,
            on_progress=progress_printer(),
            seed=request.seed,
        )
    written = output if result.plan is not None else None
    if written is not None:
        save_plan(written, result)
    if certificate is not None and result.certificate is not None:
        save_certificate(certificate, result.certificate)
    elif certificate is not None:
        log(f"{result.solver} has no certificate for this answer, so {certificate} is not written")
    if request.json:
        plan_file = {"plan_file": None if written is None else str(written)}
        print_json({**result_to_dict(result), **plan_file, **loaded.describe_link()})
    else:
        log(f"{result.solver}: {result.status}. {result.status.sentence} {result.reason}".rstrip())
        print("\n".join(result_lines(result, written)), file=sys.stdout if result.plan is not None else sys.stderr)
    return _exit_code(result)


@app.command()
@takes_request(time_limit=30.0, time_limit_help="seconds for each solver")
def compare(
    request: Request,
    budget: Annotated[str, typer.Option(help="8GiB, 800MB, bytes, or 60% of the store-all peak")],
    solver: Annotated[list[str] | None, typer.Option(help="a name from `remat solvers`; may be repeated")] = None,
) -> int:
    """Solve with every solver, and show the results side by side.

    Each runs in a process of its own; a solver that needs the model itself runs in this one.
    """
    from remat.cli.text import comparison_notes, comparison_table, row_line
    from remat.model_solvers.registry import MODEL_ENTRIES
    from remat_solvers.comparing import compare as compare_solvers
    from remat_solvers.registry import solver_names
    from remat_solvers.units import ANY_PEAK_BYTES, parse_budget

    parse_budget(budget, ANY_PEAK_BYTES)
    loaded = read_request(request, solver or ())
    model_solvers = () if loaded.exported is None else (entry.name for entry in MODEL_ENTRIES)
    with quiet():
        comparison = compare_solvers(
            loaded.problem,
            budget,
            solvers=[loaded.solver(name) for name in solver or (*solver_names(), *model_solvers)],
            limits=loaded.limits,
            seed=request.seed,
            on_row=lambda row: log(row_line(row)),
        )
    if request.json:
        print_json({**comparison.to_dict(), **loaded.describe_link()})
    else:
        print_table(comparison_table(comparison), comparison_notes(comparison))
    return ExitCode.OK


@app.command()
@takes_request(time_limit=300.0, time_limit_help="seconds for the whole curve, divided evenly among the budgets")
def sweep(
    request: Request,
    points: Annotated[int, typer.Option(help="number of budgets to choose, from the smallest peak to store-all")] = 10,
    budgets: Annotated[str | None, typer.Option(help="these budgets instead, with commas: 90%,80%,8GiB")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a .json file, or a new folder of plans")
    ] = None,
    solver: SolverName = "auto",
) -> int:
    """Find the curve of time against peak, with a plan for each of its points."""
    import remat_solvers
    from remat.cli.sweep_files import check_sweep_path, save_sweep_files
    from remat.cli.text import point_line, sweep_notes, sweep_table
    from remat_solvers.formats import sweep_to_dict
    from remat_solvers.result import Status, Stopped
    from remat_solvers.units import ANY_PEAK_BYTES, parse_budget

    given = None if budgets is None else [budget.strip() for budget in budgets.split(",")]
    check_sweep_path(output)
    for budget in given or ():
        parse_budget(budget, ANY_PEAK_BYTES)
    loaded = read_request(request, [solver])
    with quiet():
        curve = remat_solvers.sweep(
            loaded.problem,
            budgets=given,
            points=points,
            solver=loaded.solver(solver),
            limits=loaded.limits,
            on_progress=progress_printer(),
            on_point=lambda point: log(point_line(point)),
            seed=request.seed,
        )
    with_plan = [point for point in curve.points if point.plan is not None]
    if with_plan and output is not None:
        save_sweep_files(output, curve)
    if request.json:
        print_json(sweep_to_dict(curve))
    else:
        print_table(sweep_table(curve), sweep_notes(curve, output if with_plan else None))
    if with_plan:
        return ExitCode.OK
    unfinished = any(point.status is Status.NOT_FOUND for point in curve.points) or not curve.points
    return ExitCode.LIMIT if unfinished and curve.stopped is not Stopped.COMPLETE else ExitCode.NO_PLAN


@app.command()
def simulate(problem: ProblemFile, plan: PlanPath, link: StatedLink = None, json: AsJson = False) -> int:
    """Replay PLAN on PROBLEM: its peak, its time, its memory."""
    from remat.cli.text import describe_problem, replay_lines
    from remat_solvers.errors import PlanError
    from remat_solvers.simulate import simulate as replay

    loaded, plan_file = _load_pair(problem, plan, link)
    try:
        timeline = replay(loaded, plan_file.plan)
    except PlanError as error:
        log(f"the plan cannot be replayed: {error}. `remat validate` lists every rule that it breaks.")
        return ExitCode.FAILED
    if json:
        replayed = {**dataclasses.asdict(timeline), "memory_bytes": timeline.memory_bytes.tolist()}
        recorded = {"recorded_peak_bytes": plan_file.peak_bytes, "recorded_time_ns": plan_file.time_ns}
        print_json({**replayed, **recorded, "budget_bytes": plan_file.budget_bytes, **describe_problem(loaded)})
    else:
        print("\n".join(replay_lines(loaded, plan_file, timeline)))
    return ExitCode.OK


@app.command()
def validate(problem: ProblemFile, plan: PlanPath, link: StatedLink = None, json: AsJson = False) -> int:
    """Check PLAN against every rule, its own budget included."""
    from remat_solvers.validate import validate as check

    loaded, plan_file = _load_pair(problem, plan, link)
    violations = check(loaded, plan_file.plan, plan_file.budget_bytes)
    if json:
        print_json({"valid": not violations, "violations": [dataclasses.asdict(v) for v in violations]})
    else:
        print("\n".join(map(str, violations)) or f"valid: {len(plan_file.plan)} actions")
    return ExitCode.FAILED if violations else ExitCode.OK


@app.command(name="check-certificate")
def check_certificate(
    problem: ProblemFile,
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="a certificate.json")],
    json: AsJson = False,
) -> int:
    """Prove the bound of CERTIFICATE again from PROBLEM, in exact arithmetic."""
    from remat_solvers.certificates.check import check_certificate as check
    from remat_solvers.errors import CertificateError
    from remat_solvers.formats import load_certificate, load_problem
    from remat_solvers.units import format_bytes, format_ns

    loaded, claimed = load_problem(problem), load_certificate(certificate)
    facts = {"budget_bytes": claimed.budget_bytes, "order": claimed.order.value, "claimed_bound_ns": claimed.bound_ns}
    try:
        bound_ns = check(loaded, claimed)
    except CertificateError as error:
        if json:
            print_json({"valid": False, **facts, "bound_ns": None, "message": str(error)})
        else:
            log(f"rejected: {error}")
        return ExitCode.FAILED
    if json:
        print_json({"valid": True, **facts, "bound_ns": bound_ns, "message": ""})
    else:
        within = f"within {format_bytes(claimed.budget_bytes)} ({claimed.order.sentence.removesuffix('.').lower()})"
        bound = "no plan fits" if bound_ns is None else f"no plan is faster than {format_ns(bound_ns)}"
        print(f"proven: {bound} {within}")
    return ExitCode.OK


@app.command()
def verify(model: Model, plan: PlanPath, tier: TierName = "host", scratch: Scratch = None, json: AsJson = False) -> int:
    """Run PLAN on MODEL and compare outputs, gradients, buffers, random state and peak with the original."""
    import remat
    from remat.cli.model_loading import load_model
    from remat_solvers.errors import ApplyError, OffloadError
    from remat_solvers.formats import load_plan

    plan_file = load_plan(plan)  # before the model, which may take long
    chosen_tier = make_tier(tier, scratch)
    with quiet():
        loaded = load_model(model)
        try:
            verification = remat.verify(loaded.model, plan_file, loaded.args, loaded.kwargs, tier=chosen_tier)
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
    from remat.model_solvers.registry import MODEL_ENTRIES
    from remat_solvers.registry import ENTRIES

    entries = [*ENTRIES, *MODEL_ENTRIES]
    if json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return ExitCode.OK
    from rich.table import Table

    table = Table("name", "family", "swaps", "exact", "summary", box=None)
    for entry in entries:
        table.add_row(
            entry.name, entry.family, *(("no", "yes")[x] for x in (entry.supports_link, entry.exact)), entry.summary
        )
    print_table(table)
    return ExitCode.OK


def main() -> None:
    """The `remat` program."""
    app()


def _load_pair(problem: Path, plan: Path, link: str | None) -> tuple[Problem, PlanFile]:
    """Load a problem, with `link` where one is stated, and a plan for it."""
    from remat_solvers.formats import load_plan, load_problem
    from remat_solvers.formats.plan_match import check_match
    from remat_solvers.units import parse_link

    stated = None if link is None else parse_link(link)
    loaded, plan_file = load_problem(problem), load_plan(plan)
    check_match(loaded, plan_file.plan, plan_file.problem)
    return loaded if stated is None else dataclasses.replace(loaded, link=stated), plan_file


def _exit_code(result: Result) -> ExitCode:
    from remat_solvers.result import Status, Stopped

    if result.plan is not None:
        return ExitCode.OK
    cut_short = result.stopped is not Stopped.COMPLETE and result.status is Status.NOT_FOUND
    return ExitCode.LIMIT if cut_short else ExitCode.NO_PLAN
