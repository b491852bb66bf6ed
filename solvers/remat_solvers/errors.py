"""Every error the library raises on purpose.

    RematError
    ├── InputError (ValueError)     an argument that cannot be used
    │   ├── BudgetError             a budget that does not parse or is not positive
    │   ├── ProblemError            a problem that is not well formed; names the place
    │   ├── PlanError               a plan that cannot be replayed; names the action's index
    │   └── FormatError             a file that is not of its format; names the place
    ├── CertificateError            a certificate that does not prove what it claims
    ├── InfeasibleError             no plan within the budget; carries the `Result`
    ├── ExportError                 a model that cannot be captured; says which line and what to do
    ├── ApplyError                  a plan that cannot be executed on this graph
    ├── OffloadError                a copy to or from a tier failed; names the tier and the bytes
    └── ChangedError                a call that differs from what was planned; names the difference

Each message says what is wrong, where, and what to try next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remat_solvers.result import Result


class RematError(Exception):
    """Base of every error raised on purpose."""


class InputError(RematError, ValueError):
    """An argument that cannot be used."""


class BudgetError(InputError):
    """A budget that does not parse, or is not positive."""


class ProblemError(InputError):
    """A problem that is not well formed. `place` names the field, such as `ops[3].inputs[0]`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place
        self.message = message

    def __reduce__(self) -> tuple[type[ProblemError], tuple[str, str]]:
        return type(self), (self.place, self.message)


class PlanError(InputError):
    """A plan that cannot be replayed. `action` is the index of the offending action, None for the end."""

    def __init__(self, action: int | None, message: str) -> None:
        where = "at the end of the plan" if action is None else f"action {action}"
        super().__init__(f"{where}: {message}")
        self.action = action
        self.message = message

    def __reduce__(self) -> tuple[type[PlanError], tuple[int | None, str]]:
        return type(self), (self.action, self.message)


class FormatError(InputError):
    """A file that is not of its format. `place` names the key, index or byte."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place
        self.message = message

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str]]:
        return type(self), (self.place, self.message)


class CertificateError(RematError):
    """A certificate that does not prove its claim about the problem at hand. The message says what is wrong with it."""


class InfeasibleError(RematError):
    """No plan within the budget: proven (`result.status` is infeasible) or not found by the method."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.message = message
        self.result = result

    def __reduce__(self) -> tuple[type[InfeasibleError], tuple[str, Result]]:
        return type(self), (self.message, self.result)


class ExportError(RematError):
    """A model that cannot be captured. The message names the line of the model and what to do."""


class ApplyError(RematError):
    """A plan that cannot be executed on this graph."""


class OffloadError(RematError):
    """A copy to or from a tier failed. The step has failed too: its gradients must not be used."""

    def __init__(self, tier: str, size_bytes: int, message: str) -> None:
        super().__init__(f"offloading to {tier} failed for {size_bytes} bytes: {message}")
        self.tier = tier
        self.size_bytes = size_bytes
        self.message = message

    def __reduce__(self) -> tuple[type[OffloadError], tuple[str, int, str]]:
        return type(self), (self.tier, self.size_bytes, self.message)


class ChangedError(RematError):
    """A call that differs from the planned one: in shape, dtype, device, training mode, autocast, ..."""
