"""Checks the options of a solver against the types of its dataclass's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf, isfinite
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from remat_solvers.errors import InputError

NONE = type(None)
Ranges: TypeAlias = Mapping[str, tuple[float, float]]  # by option; both ends included


def check_options(solver: Any, **ranges: tuple[float, float]) -> None:
    """Raise InputError, which names the option, for a field of `solver` whose value does not have the field's type.

    Types are bool, int, float, a Literal of strings, a tuple of such literals (never empty), each perhaps with None.
    Numbers are finite and within `ranges[field]`; a field without an entry there takes numbers of at least 1.
    """
    hints = get_type_hints(type(solver))
    for option in option_names(type(solver)):
        value = getattr(solver, option)
        types = [kind for kind in get_args(hints[option]) if kind is not NONE]
        optional = len(types) < len(get_args(hints[option]))
        if optional and value is None:
            continue
        expected = _expected(types[0] if optional else hints[option], value, *ranges.get(option, (1, inf)))
        if expected:
            alternative = "None or " if optional else ""
            raise InputError(f"{solver.name}: {option} must be {alternative}{expected}, not {value!r}")


def option_names(kind: type) -> list[str]:
    """The names of the options of a solver's class: its fields, except those with `metadata={"option": False}`."""
    return [field.name for field in fields(kind) if field.metadata.get("option", True)]


def _expected(kind: Any, value: Any, smallest: float, largest: float) -> str:
    """A description of the values of type `kind`, where `value` is none; else an empty string."""
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if number and smallest <= value <= largest and (isinstance(value, int) or isfinite(value)):
            return ""
        noun = "an integer" if kind is int else "a number"
        return f"{noun} of at least {smallest:g}" if largest == inf else f"{noun} from {smallest:g} to {largest:g}"
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return "" if isinstance(value, str) and value in choices else f"one of {', '.join(choices)}"
    if get_origin(kind) is tuple:
        choices = get_args(get_args(kind)[0])
        valid = isinstance(value, tuple) and value and all(isinstance(v, str) and v in choices for v in value)
        return "" if valid else f"a tuple of one or more of {', '.join(choices)}"
    raise AssertionError(f"an option of type {kind}")
