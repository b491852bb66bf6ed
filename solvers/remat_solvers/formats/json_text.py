"""JSON that is deterministic byte for byte, written whole or not at all, and read with every type checked.

The other files of this folder say which keys a document has. A FormatError names the place of whatever is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from remat_solvers.errors import FormatError
from remat_solvers.problem import MAX_INT

VERSION = 1  # of every format
FINGERPRINT_DIGITS = 64

T = TypeVar("T")


def header(name: str) -> dict[str, Any]:
    """The first two keys of every document: its format and its version."""
    return {"format": name, "version": VERSION}


def plain(item: Any) -> dict[str, Any]:
    """The fields of a dataclass as a dict, in their order; nested ones stay as they are."""
    return {f.name: getattr(item, f.name) for f in fields(item)}


def dump(document: Mapping[str, Any]) -> bytes:
    """The document as one line of ASCII."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def write(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, then rename; the temporary file goes if anything fails.

    A link is followed, and what is no regular file (`/dev/stdout`, a pipe) is written to, never replaced.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def parse(content: bytes) -> Any:
    """The JSON in `content`. Raises FormatError for a key that appears twice, NaN, infinities and huge integers."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"byte {error.start}", "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}") from None
    except FormatError:
        raise
    except ValueError:  # the interpreter refuses to read integers of thousands of digits
        raise FormatError("top level", "holds an integer with too many digits") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FormatError(f"key {shorten(key)}", "appears twice in one object")
            seen.add(key)
    return document


def _no_constant(word: str) -> NoReturn:
    raise FormatError(word, "is not a number that JSON knows")


def record(place: str, item: Any, kind: type[T]) -> T:
    """`item` as the dataclass `kind`, every key present, none unknown, every type exact."""
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {shorten(item)}")
    check_keys(place, item, tuple(f.name for f in fields(kind)))  # type: ignore[arg-type]
    return convert(place, item, kind)


def check_keys(place: str, item: dict[str, Any], keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Raise FormatError where `item` lacks one of `keys` that is not optional, or has another."""
    for key in item:
        if key not in keys:
            raise FormatError(place, f"has an unknown key {shorten(key)}")
    for key in keys:
        if key not in item and key not in optional:
            raise FormatError(place, f"lacks the key {key!r}")


def convert(place: str, item: Any, kind: type[T]) -> T:
    """`item` as `kind`, without any coercion; FormatError where its type is another."""
    try:
        return msgspec.convert(item, kind, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise FormatError(place + path.strip("`").removeprefix("$"), message) from None
    except UnicodeEncodeError:  # a lone surrogate where a word is expected
        raise FormatError(place, "holds text that is not Unicode") from None


def list_of(place: str, item: Any) -> list[Any]:
    """`item`, which must be a list."""
    if not isinstance(item, list):
        raise FormatError(place, f"must be a list, not {shorten(item)}")
    return item


def size(place: str, number: Any) -> int:
    """`number`, which must be an integer of at least 0 that fits 63 bits."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_INT:
        raise FormatError(place, f"must be an integer from 0 to 2**63 - 1, not {shorten(number)}")
    return number


def duration(place: str, number: Any) -> int:
    """The time of a plan in ns. Copies over a slow link may take 2**63 and more."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise FormatError(place, f"must be an integer from 0 on, not {shorten(number)}")
    return number


def fingerprint(item: Any) -> str:
    """`item`, which must be the fingerprint of a problem."""
    digits: str = convert("problem", item, str)
    if len(digits) != FINGERPRINT_DIGITS or set(digits) - set("0123456789abcdef"):
        raise FormatError("problem", f"must be a fingerprint of {FINGERPRINT_DIGITS} hexadecimal digits")
    return digits


def shorten(item: Any) -> str:
    """`item` for an error message, cut to a readable length."""
    text = ascii(item)
    return text if len(text) <= 40 else text[:37] + "..."
