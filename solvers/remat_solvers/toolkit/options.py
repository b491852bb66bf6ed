"""The options of a solver, checked against the types of its dataclass's fields before anything is done with them."""

from __future__ import annotations

from dataclasses import fields
from math import inf, isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from remat_solvers.errors import InputError

__all__ = ["check_options", "option_names"]

NONE = type(None)
Range = tuple[float, float]  # both ends included


def check_options(solver: Any, **ranges: Range) -> None:
    """Raise InputError, which names the option, for a field of `solver` whose value is not what its type says.

    Types are bool, int, float, a Literal of strings, a tuple of one (never empty), and None beside any of these.
    Numbers are finite and within `ranges[field]`; without an entry there, integers are positive.
    """
    for option, kind in _kinds(type(solver)).items():
        value = getattr(solver, option)
        least, most = ranges.get(option, (1, inf))
        optional = NONE in get_args(kind)
        if optional and value is None:
            continue
        for one in [k for k in get_args(kind) if k is not NONE] if optional else [kind]:
            expected = _expected(one, value, least, most)
        if expected:
            beside = "None or " if optional else ""
            raise InputError(f"{solver.name}: {option} must be {beside}{expected}, not {value!r}")


def option_names(kind: type) -> list[str]:
    """The options of a solver's class: its fields, without those that say `metadata={"option": False}`."""
    return [field.name for field in fields(kind) if field.metadata.get("option", True)]


def _kinds(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {name: hints[name] for name in option_names(kind)}


def _expected(kind: Any, value: Any, least: float, most: float) -> str:
    """What a value of this kind is, for people, where `value` is not; else nothing."""
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if number and least <= value <= most and (isinstance(value, int) or isfinite(value)):
            return ""
        what = "an integer" if kind is int else "a number"
        return f"{what} of at least {least:g}" if most == inf else f"{what} from {least:g} to {most:g}"
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return "" if isinstance(value, str) and value in choices else f"one of {', '.join(choices)}"
    if get_origin(kind) is tuple:
        choices = get_args(get_args(kind)[0])
        fine = isinstance(value, tuple) and value and all(isinstance(v, str) and v in choices for v in value)
        return "" if fine else f"a tuple of one or more of {', '.join(choices)}"
    raise AssertionError(f"an option of type {kind}")
