"""What a planned module says about itself."""

from __future__ import annotations

from collections.abc import Sequence

from remat.execute.planned import Planned
from remat_solvers.plan import Offload
from remat_solvers.schedule import baseline
from remat_solvers.simulate import simulate
from remat_solvers.units import format_bytes, format_ns

__all__ = ["report_text"]


def report_text(planned: Sequence[Planned]) -> str:
    """A few lines per planned call."""
    return "\n\n".join(_describe(p) for p in planned)


def _describe(planned: Planned) -> str:
    problem, plan, result = planned.problem, planned.plan, planned.result
    timeline, unmodified = simulate(problem, plan), baseline(problem)
    computed = plan.sequence
    lines = [
        f"{problem.name}: {len(problem.ops)} ops, {len(computed) - len(set(computed))} recomputations",
        f"  peak  {format_bytes(timeline.peak_bytes)}, store-all {format_bytes(unmodified.peak_bytes)}",
        f"  time  {format_ns(timeline.time_ns)}, store-all {format_ns(unmodified.time_ns)}",
    ]
    if timeline.host_bytes:
        times = sum(isinstance(action, Offload) for action in plan)
        waits = f"{format_ns(timeline.wait_ns)} of waits"
        lines.append(f"  away  {format_bytes(timeline.host_bytes)} in {times} copies, {waits}")
    if result is not None:
        lines.insert(1, f"  budget {format_bytes(result.budget_bytes)}, {result.solver}: {result.status.sentence}")
        if result.gap is not None:
            lines.append(f"  proven: no plan is more than {100 * result.gap:.2f} % of a store-all step faster")
    if problem.costs is not None:
        costs = problem.costs
        lines.append(f"  costs  {costs.source} on {costs.device}, torch {costs.torch}")
        if not costs.workspace:
            lines.append("  the workspace of kernels is not known to an estimate: a real peak may be higher")
    return "\n".join(lines)
