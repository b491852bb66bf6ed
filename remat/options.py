"""The options of `solve` and `solve_in_parts`: each is declared once, with its type, default and meaning.

The functions take them as one object, as single keywords, or both; a keyword replaces the field of the object:

    remat.solve(model, "8GiB", args, solver="chen")
    remat.solve(model, "8GiB", args, options=remat.StepOptions(solver="chen"), seed=1)
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, TypeVar, cast

from torch import Tensor

from remat.capture.costs.roofline import Hardware
from remat.capture.exported import Differentiate
from remat.execute.module import OnChange
from remat.execute.offload.tiers import HostTier, Tier
from remat_solvers.errors import InputError
from remat_solvers.problem import Link
from remat_solvers.registry import Solver
from remat_solvers.result import Limits, OnProgress

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options", bound="StepOptions | Parts")
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class StepOptions:
    """Options for the capture, planning and execution of a training step."""

    solver: str | Solver = "auto"
    """A name of the registry (`remat solvers` lists them), or a solver object with options of its own."""

    limits: Limits = Limits(seconds=60)  # noqa: RUF009  (frozen)
    """Limits of the time and the work of the solver."""

    seed: int = 0
    """For solvers that draw random numbers: the same seed gives the same plan."""

    on_progress: OnProgress | None = None
    """Called with every `Progress` that the solver reports. It is not pickled with the module."""

    costs: str | Hardware = "measure"
    """The source of op times: "measure", "roofline", "roofline:NAME" or a `Hardware`; see `export`."""

    unroll_rnn: bool = False
    """Plan inside nn.LSTM, nn.GRU and nn.RNN instead of treating each as one op; see `export`."""

    differentiate: Differentiate = "loss"
    """Plan for the gradient of the loss alone, or of "all" outputs; see `export`."""

    link: Link | str | None = None
    """The link to the tier: a `Link`, a rate such as "25GB/s", or "auto" (measured once per machine). None: plans only
    recompute."""

    tier: Tier = HostTier()  # noqa: RUF009  (stateless)
    """The destination of offloaded values: `HostTier()` or `DiskTier(folder)`."""

    optimizer: Any = None
    """A torch.optim class or instance whose state counts as always resident."""

    accumulate: bool = False
    """Gradients stay resident between steps, and count as such: for gradient accumulation."""

    reserve_bytes: int = 0
    """Bytes that are always in use beside those of `optimizer` and `accumulate`."""

    on_change: OnChange = "error"
    """The treatment of a training call that differs from the planned one in shape, dtype, device, training mode or
    autocast: "error", "replan" (each kind of call is planned once) or "original" (it runs without a plan)."""

    def __repr__(self) -> str:
        return _repr(self)


class StepKeywords(TypedDict, total=False):
    """The fields of `StepOptions`, as keywords that a type checker knows."""

    solver: str | Solver
    limits: Limits
    seed: int
    on_progress: OnProgress | None
    costs: str | Hardware
    unroll_rnn: bool
    differentiate: Differentiate
    link: Link | str | None
    tier: Tier
    optimizer: Any
    accumulate: bool
    reserve_bytes: int
    on_change: OnChange


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Parts:
    """Options that split a batch into parts, and combine the losses of the parts into that of the batch."""

    reduction: Reduction = "mean"
    """The loss of the batch is the mean or the sum over its rows."""

    count: Callable[..., Any] | None = None
    """For a mean that is not over rows: returns the weight of a part in it from the arguments of the part, such as
    `lambda tokens, labels: (labels != -100).sum()`."""

    whole: Collection[int | str] = ()
    """Arguments that are not split, by position or keyword. Tensors without dimensions always are."""

    loss: Callable[[Any], Tensor] | None = None
    """Selects the loss from the output of the model, such as `lambda output: output.loss`."""

    def __repr__(self) -> str:
        return _repr(self)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise InputError(f"reduction must be mean or sum, not {self.reduction!r}")
        if self.count is not None and self.reduction == "sum":
            raise InputError("count weighs the parts of a mean; a sum has no weights")


class PartsKeywords(TypedDict, total=False):
    """The fields of `Parts`, as keywords that a type checker knows."""

    reduction: Reduction
    count: Callable[..., Any] | None
    whole: Collection[int | str]
    loss: Callable[[Any], Tensor] | None


class InPartsKeywords(StepKeywords, PartsKeywords, total=False):
    """The fields of `StepOptions` and `Parts`, as keywords that a type checker knows."""


def changed(options: Options, kind: type[Options], changes: Mapping[str, Any]) -> Options:
    """`options` with those of `changes` that are fields of it. Raises InputError where it is not of that kind."""
    if not isinstance(options, kind):
        raise InputError(f"{options!r} is not a remat.{kind.__name__}")
    return replace(options, **{f.name: changes[f.name] for f in fields(kind) if f.name in changes})


def takes_options(*kinds: type[StepOptions | Parts]) -> Callable[[Function], Function]:
    """A decorator for functions whose `**changes` are the fields of `kinds`.

    It lists the fields in the signature, for `help`, and raises TypeError for a name that is none of them.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        explicit = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        listed = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for kind in kinds
            for f in fields(kind)
        ]
        signature = own.replace(parameters=[*explicit, *listed])

        @functools.wraps(function)
        def checked(*args: Any, **keywords: Any) -> Any:
            unknown = next((name for name in keywords if name not in signature.parameters), None)
            if unknown is not None:
                close = difflib.get_close_matches(unknown, signature.parameters, n=1)
                hint = f"did you mean {close[0]}?" if close else f"options are {', '.join(p.name for p in listed)}"
                raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {unknown!r}: {hint}")
            return function(*args, **keywords)

        vars(checked)["__signature__"] = signature
        return cast(Function, checked)

    return decorate


def _repr(options: StepOptions | Parts) -> str:
    """The call that makes `options`, without the fields that are as by default."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default}
    return f"{type(options).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
