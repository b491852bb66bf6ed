"""Certificates as JSON: encode_certificate writes one, read_certificate reads one.

{"format": "remat.certificate", "version": 1, "problem": <fingerprint>, "budget_bytes": ..., "order": "given", "at":
 [...], "bound_ns": null | ..., "intervals": [[0, 1], ...], "leaves": [{"fixed": [...], "multipliers": [...]}, ...]}
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from remat_solvers.errors import FormatError
from remat_solvers.formats.json_text import (
    check_keys,
    convert,
    dump,
    fingerprint,
    header,
    list_of,
    plain,
    shorten,
    size,
)
from remat_solvers.result import Certificate, Leaf, Order

N = TypeVar("N", int, float)

CERTIFICATE_FORMAT = "remat.certificate"


def certificate_to_dict(certificate: Certificate) -> dict[str, Any]:
    """The certificate as plain JSON data; of a row or variable its word, its indices, and the number given to it."""
    leaves = [
        {name: [[word, *indices, number] for word, indices, number in part] for name, part in plain(leaf).items()}
        for leaf in certificate.leaves
    ]
    return {**header(CERTIFICATE_FORMAT), **plain(certificate), "leaves": leaves, "order": certificate.order.value}


def encode_certificate(certificate: Certificate) -> bytes:
    """The certificate as one line of JSON."""
    return dump(certificate_to_dict(certificate))


def read_certificate(document: dict[str, Any]) -> Certificate:
    """The certificate in `document`. Raises FormatError with the place of the error."""
    check_keys("top level", document, ("format", "version", *(f.name for f in fields(Certificate))))
    bound_ns = document["bound_ns"]
    return Certificate(
        problem=fingerprint(document["problem"]),
        budget_bytes=size("budget_bytes", document["budget_bytes"]),
        order=convert("order", document["order"], Order),
        at=tuple(size(f"at[{i}]", op) for i, op in enumerate(list_of("at", document["at"]))),
        bound_ns=None if bound_ns is None else size("bound_ns", bound_ns),
        intervals=convert("intervals", document["intervals"], tuple[tuple[int, int], ...]),
        leaves=tuple(_leaf(f"leaves[{i}]", item) for i, item in enumerate(list_of("leaves", document["leaves"]))),
    )


def _leaf(place: str, item: Any) -> Leaf:
    if not isinstance(item, dict):
        raise FormatError(place, f"must be an object, not {shorten(item)}")
    check_keys(place, item, ("fixed", "multipliers"))
    return Leaf(
        fixed=tuple(_weighed(f"{place}.fixed[{i}]", x, int) for i, x in enumerate(list_of(place, item["fixed"]))),
        multipliers=tuple(
            _weighed(f"{place}.multipliers[{i}]", x, float) for i, x in enumerate(list_of(place, item["multipliers"]))
        ),
    )


def _weighed(place: str, item: Any, number: type[N]) -> tuple[str, tuple[int, ...], N]:
    """A word, its indices, and a number."""
    if not isinstance(item, list) or len(item) < 3:
        raise FormatError(place, f"must be a list of a word, indices and a number, not {shorten(item)}")
    word, *indices, last = item
    where = tuple(size(f"{place}[{i}]", index) for i, index in enumerate(indices, start=1))
    return convert(place, word, str), where, convert(place, last, number)
