"""Registers the solvers: their names, the classes that are imported lazily, and what each can do.

A solver's module is imported when the solver is created. To add a solver, write its file and one entry here.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, cast, runtime_checkable

from remat_solvers.errors import InputError
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Limits, OnProgress, Outcome

Family: TypeAlias = Literal["recompute", "swap", "optimal"]


class Solver(Protocol):
    """A method. Its options are the fields of a frozen dataclass."""

    name: ClassVar[str]  # registry name
    version: ClassVar[str]  # of the method's implementation

    def solve(
        self, problem: Problem, budget_bytes: int, *, limits: Limits, on_progress: OnProgress | None, seed: int
    ) -> Outcome:
        """The best plan this method finds within `budget_bytes`, or an honest status without one."""
        ...


@runtime_checkable
class FindsMinPeak(Solver, Protocol):
    """A method with a search of its own for the smallest peak; any other solves for one budget after the other."""

    def solve_min_peak(self, problem: Problem, *, limits: Limits, on_progress: OnProgress | None, seed: int) -> Outcome:
        """A plan of the smallest peak that this method finds within `limits`, whatever its time.

        The outcome has a plan and its peak (`smallest_peak_bytes`); it may prove a floor under the peak of every plan.
        """
        ...


@runtime_checkable
class WarmStarted(Solver, Protocol):
    """A method, a dataclass, that can start from known plans."""

    starts: tuple[Plan, ...]  # they may exceed the budget


def with_starts(solver: Solver, plans: tuple[Plan, ...]) -> Solver:
    """The same solver, which starts from `plans`, too; unchanged if it cannot be warm-started."""
    if not (is_dataclass(solver) and isinstance(solver, WarmStarted) and isinstance(solver.starts, tuple)):
        return solver
    return cast(Solver, replace(cast(Any, solver), starts=(*solver.starts, *plans)))


def with_certificate(solver: str | Solver) -> Solver:
    """The solver, which makes a certificate of its bound if it has an option for that (`certify`)."""
    method = create(solver) if isinstance(solver, str) else solver
    if not is_dataclass(method) or "certify" not in (field.name for field in fields(method)):
        return method
    return cast(Solver, replace(cast(Any, method), certify=True))


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered solver."""

    name: str
    path: str  # module:class
    family: Family
    summary: str  # one line for people
    needs_backward: bool = False  # not applicable to problems without backward ops
    supports_link: bool = False  # uses the link to the host where a problem has one
    exact: bool = False  # proves optimality or infeasibility when it runs to its end
    slow: bool = False  # takes seconds on thousands of ops, or its whole time limit


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="auto",
        path="remat_solvers.optimal.auto:Auto",
        family="optimal",
        summary="A portfolio: an integer program proves lower bounds while local search improves plans, "
        "warm-started by the fast published methods.",
        supports_link=True,
        exact=True,
        slow=True,
    ),
    Entry(
        name="store-all",
        path="remat_solvers.recompute.store_all:StoreAll",
        family="recompute",
        summary="The unmodified step, every value freed after its last use.",
    ),
    Entry(
        name="chen",
        path="remat_solvers.recompute.chen:Chen",
        family="recompute",
        summary="Chen et al. 2016: keep cuts, recompute the segments between them (sqrt, recursive, budget search).",
        needs_backward=True,
        slow=True,
    ),
    Entry(
        name="gruslys",
        path="remat_solvers.recompute.gruslys:Gruslys",
        family="recompute",
        summary="Gruslys et al. 2016: hidden, internal or mixed states of a recurrent network, by dynamic programming.",
        needs_backward=True,
    ),
    Entry(
        name="revolve",
        path="remat_solvers.recompute.revolve:Revolve",
        family="recompute",
        summary="Griewank and Walther 2000: binomial checkpointing of a chain of steps.",
        needs_backward=True,
    ),
    Entry(
        name="kusumoto",
        path="remat_solvers.recompute.kusumoto:Kusumoto",
        family="recompute",
        summary="Kusumoto et al. 2019: sequences of lower sets of the forward graph, by dynamic programming.",
        needs_backward=True,
        slow=True,
    ),
    Entry(
        name="rotor",
        path="remat_solvers.recompute.rotor:Rotor",
        family="recompute",
        summary="Beaumont et al. 2019: the best memory-persistent schedule of a chain of unequal stages.",
        needs_backward=True,
    ),
    Entry(
        name="rockmate",
        path="remat_solvers.recompute.rockmate:Rockmate",
        family="recompute",
        summary="Zhao et al. 2023: integer programs inside blocks, one for identical blocks; rotor's chain over them.",
        needs_backward=True,
        slow=True,
    ),
    Entry(
        name="checkmate",
        path="remat_solvers.recompute.checkmate:Checkmate",
        family="recompute",
        summary="Jain et al. 2020: an integer program over stages, coarsened for large graphs; offloads with a link.",
        supports_link=True,
        exact=True,
        slow=True,
    ),
    Entry(
        name="moccasin",
        path="remat_solvers.recompute.moccasin:Moccasin",
        family="recompute",
        summary="Bartan et al. 2023: retention intervals by constraint programming, up to C runs per op.",
        slow=True,
    ),
    Entry(
        name="brute-force",
        path="remat_solvers.recompute.brute_force:BruteForce",
        family="recompute",
        summary="Exhaustive search: the exact optimum of tiny problems.",
        exact=True,
        slow=True,
    ),
    Entry(
        name="dtr",
        path="remat_solvers.recompute.dtr:DTR",
        family="recompute",
        summary="Kirisame et al. 2021: evict by a heuristic (h, h_eq, h_local, LRU, size, MSPS), recompute on demand.",
        slow=True,
    ),
    Entry(
        name="belady",
        path="remat_solvers.recompute.belady:Belady",
        family="recompute",
        summary="Evict the value whose next use is farthest, weighed by size and cost; recompute on demand.",
    ),
    Entry(
        name="selective",
        path="remat_solvers.recompute.selective:Selective",
        family="recompute",
        summary="Keep matrix products, convolutions and attention; recompute the rest just in time.",
        needs_backward=True,
    ),
    Entry(
        name="segments",
        path="remat_solvers.recompute.segments:Segments",
        family="recompute",
        summary="Recompute each block in backward, as torch.utils.checkpoint around each block does.",
        needs_backward=True,
    ),
    Entry(
        name="superneurons",
        path="remat_solvers.swap.superneurons:SuperNeurons",
        family="swap",
        summary="Wang et al. 2018: offload checkpoints, recompute between them; an LRU cache of tensors.",
        needs_backward=True,
        supports_link=True,
    ),
    Entry(
        name="vdnn",
        path="remat_solvers.swap.vdnn:VDNN",
        family="swap",
        summary="Rhu et al. 2016: offload the inputs of all layers or of convolutions, prefetch within a window.",
        needs_backward=True,
        supports_link=True,
    ),
    Entry(
        name="meng",
        path="remat_solvers.swap.meng:Meng",
        family="swap",
        summary="Meng et al. 2017: swap the outputs of the early layers; fetch when compute still hides the copy.",
        needs_backward=True,
        supports_link=True,
    ),
    Entry(
        name="tflms",
        path="remat_solvers.swap.tflms:TFLMS",
        family="swap",
        summary="Le et al. 2018 (TFLMS): swap the first tensors of the graph; fetch them at a distance in the graph.",
        needs_backward=True,
        supports_link=True,
        slow=True,
    ),
    Entry(
        name="layrub",
        path="remat_solvers.swap.layrub:Layrub",
        family="swap",
        summary="Liu et al. 2018: offload every layer's data after its last forward reader; fetch it one layer ahead.",
        needs_backward=True,
        supports_link=True,
    ),
    Entry(
        name="pofo",
        path="remat_solvers.swap.pofo:POFO",
        family="swap",
        summary="Beaumont et al. 2021: keep, offload or recompute the stages of a chain, by one dynamic program.",
        needs_backward=True,
        supports_link=True,
        slow=True,
    ),
    Entry(
        name="swap-only",
        path="remat_solvers.swap.swap_only:SwapOnly",
        family="swap",
        summary="The fastest plan found that offloads values and recomputes nothing.",
        supports_link=True,
        slow=True,
    ),
    Entry(
        name="modnn",
        path="remat_solvers.swap.modnn:ModNN",
        family="swap",
        summary="After Chen et al. 2018: offload the values needed last, prefetch as soon as there is room.",
        supports_link=True,
    ),
    Entry(
        name="capuchin",
        path="remat_solvers.swap.capuchin:Capuchin",
        family="swap",
        summary="Peng et al. 2020: swap at no cost first, then swap or recompute by memory saved per second (MSPS).",
        supports_link=True,
        slow=True,
    ),
)


def solver_names() -> tuple[str, ...]:
    """The names that `create` knows, in the order of the registry."""
    return tuple(e.name for e in ENTRIES)


def entry(name: str) -> Entry:
    """The entry of `name`. Raises InputError, which suggests similar names, if there is none."""
    for known in ENTRIES:
        if known.name == name:
            return known
    close = difflib.get_close_matches(name, solver_names())
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(solver_names())}."
    raise InputError(f"there is no solver {name!r}: {hint}")


def create(name: str, **options: Any) -> Solver:
    """The solver of that name with these options. Raises InputError for a name or an option it does not have."""
    module, _, attribute = entry(name).path.partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    try:
        solver: Solver = kind(**options)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from None
    return solver
