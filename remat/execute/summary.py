"""Describes planned calls for people."""

from __future__ import annotations

from collections.abc import Sequence

from remat.execute.planned import Planned
from remat_solvers.plan import Offload
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.units import format_bytes, format_ns


def report_text(planned: Sequence[Planned]) -> str:
    """Return a few lines for each planned call."""
    return "\n\n".join(_describe(p) for p in planned)


def _describe(planned: Planned) -> str:
    problem, plan, result = planned.problem, planned.plan, planned.result
    timeline, unmodified = simulate(problem, plan), baseline(problem)
    recomputations = len(plan.sequence) - len(set(plan.sequence))
    lines = [f"{problem.name}: {len(problem.ops)} ops, {recomputations} recomputations"]
    if result is not None:
        lines.append(f"budget   {format_bytes(result.budget_bytes)}, {result.solver}: {result.status.sentence}")
    lines += [
        f"peak     {format_bytes(timeline.peak_bytes)}, store-all {format_bytes(unmodified.peak_bytes)}",
        f"time     {format_ns(timeline.time_ns)}, store-all {format_ns(unmodified.time_ns)}",
    ]
    if timeline.host_bytes:
        copies = sum(isinstance(action, Offload) for action in plan)
        waits = f"{format_ns(timeline.wait_ns)} of waits"
        lines.append(f"offload  {format_bytes(timeline.host_bytes)} in {copies} copies, {waits}")
    if result is not None and result.gap is not None:
        lines.append(f"proven   no plan is faster by more than {100 * result.gap:.2f} % of a store-all step")
        lines.append(f"         {result.order.scope}")
    if problem.costs is not None:
        costs = problem.costs
        lines.append(f"costs    {costs.source} on {costs.device}, torch {costs.torch}")
        if not costs.workspace:
            lines.append("         an estimate does not include the workspace of kernels: the real peak may be higher")
    return "\n  ".join(lines)
