"""Chen, Chen, Hu: moDNN: Memory Optimal DNN Training on GPUs. DATE 2018.

moDNN schedules offload and prefetch together with the choice of convolution algorithms, and where even that is not
enough splits the batch, so that it reaches any budget down to a theoretical lower bound. This method is in the manner
of it: only the abstract was at hand, the rules below are from memory.

- The step is scheduled op by op. Where memory is short, the data whose next use is farthest in the future is offloaded,
  until the op fits (`demand_paging`). So all that an op does not use can be off the device, and the lower bound is the
  largest working set of a single op (`lower_bound_bytes`), which is reached exactly if the host has room.
- Offload starts as soon as the use before it is over, and compute waits for it only where an op would not fit
  otherwise. Prefetch starts as soon as there is room for the data from then on up to its use (`schedule_copies`), in
  the order of use.
- Every op has one implementation in a problem. Where there are several, with their times and workspaces,
  `kernel_choice.choose_workspaces` takes per op the fastest that fits the memory then free; solve the problem that it
  returns.
- Sub-batches change the model's call, not its plan: `remat.SubBatches`; `remat.solve_in_parts` chooses their size.

The same schedule without any copy ahead of need is tried too; the faster plan is returned. Nothing is recomputed, and
without a link there is nothing to schedule. There is no bound on the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from remat_solvers.problem import Problem
from remat_solvers.schedule import tangents_first
from remat_solvers.toolkit.transfers.demand_paging import DemandPaging, movable_values, smallest_paging_budget
from remat_solvers.toolkit.transfers.device import Overflow
from remat_solvers.toolkit.transfers.profile import StepProfile
from remat_solvers.toolkit.transfers.scheduler import schedule_copies
from remat_solvers.toolkit.trials import TrialMethod, Trials


@dataclass(frozen=True)
class ModNN(TrialMethod):
    """Offload the data whose next use is farthest in the future, prefetch as soon as there is room."""

    name: ClassVar[str] = "modnn"
    version: ClassVar[str] = "1"
    requires = ("link to the host",)

    def try_plans(self, trials: Trials) -> None:
        """Try the schedule with and without copies ahead of need."""
        problem = trials.problem
        profile = StepProfile.of(problem, range(len(problem.ops)))
        paged = DemandPaging(profile, movable_values(problem, profile.sequence), trials.budget_bytes, "farthest").run()
        if isinstance(paged, Overflow):
            self._explain(trials, profile, paged)
            return
        trials.replay(paged.plan, "on demand")
        ahead = schedule_copies(profile, paged.intervals, trials.budget_bytes, {i: i.last + 1 for i in paged.intervals})
        if not isinstance(ahead, Overflow):
            trials.replay(ahead, "ahead of need")

    def _explain(self, trials: Trials, profile: StepProfile, overflow: Overflow) -> None:
        """Set the reason for having no plan and, if the host has room for all values, the peak that can be reached."""
        assert trials.problem.link is not None
        unlimited = trials.problem.link.host_bytes is None
        host = "" if unlimited else ", or the host has no room for the other values"
        trials.reason = f"{overflow.place(profile)} needs {overflow.excess_bytes} bytes more than the budget{host}"
        if unlimited:
            trials.observe_peak(lower_bound_bytes(trials.problem))


def lower_bound_bytes(problem: Problem) -> int:
    """The largest working set of a single op, constants and reserve included: it suffices if the host has room.

    A working set is the inputs, the outputs and the workspace of the op; from the last forward op on also the forward
    results, which the caller owns then. At the end it is the results.
    """
    sequence = tangents_first(problem, range(len(problem.ops)))
    return smallest_paging_budget(problem, sequence, movable_values(problem, sequence))
