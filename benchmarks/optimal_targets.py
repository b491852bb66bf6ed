"""The targets of `auto`, and the best results known before it, from an earlier study on one core.

Overheads and bounds are in per cent of the store-all time. A budget of 60 % is the static bytes plus 60 % of the other
bytes of the store-all peak. "Known" is (largest proven bound, smallest overhead of a replayed plan) for first
computations in the given order, or in any order where the case says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["CASES", "ROWS", "Case", "Known", "Target"]

Known = tuple[float | None, float | None]


@dataclass(frozen=True)
class Target:
    """The figures to reach; None where there is no target."""

    overhead: float | None = None  # per cent at most
    gap: float | None = None  # points of the store-all time at most, reached within the limit
    first_s: float | None = None  # seconds at most until a first plan is reported
    peak: float | None = None  # of the smallest plan, per cent of the store-all peak at most
    memory_gib: float | None = None  # of the process and its children at most

    def __str__(self) -> str:
        parts = (
            ("overhead", self.overhead, "%"),
            ("gap", self.gap, "%"),
            ("first", self.first_s, " s"),
            ("peak", self.peak, "%"),
            ("memory", self.memory_gib, " GiB"),
        )
        return ", ".join(f"{name} <= {maximum:.4g}{unit}" for name, maximum, unit in parts if maximum is not None)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    row: str
    problem: str  # of problems.py
    share: float | None  # budget in per cent; None: `slots`, or the smallest peak
    seconds: float  # limit
    target: Target
    known: Known = (None, None)
    options: Mapping[str, Any] = field(default_factory=dict)  # of auto
    link: str | None = None
    slots: int | None = None  # budget in values of a uniform chain
    note: str = ""


GIVEN: Mapping[str, Mapping[int, Known]] = {
    "unet": {90: (1.15, 1.15), 80: (2.877, 2.877), 60: (7.51, 7.53), 40: (13.68, 13.74)},
    "r50": {90: (1.14, 1.16), 80: (2.17, 2.22), 60: (5.77, 5.81), 40: (12.99, 13.00), 20: (26.4, 39.3)},
    "gpt": {90: (0.76, 0.77), 80: (1.53, 1.54), 60: (7.23, 7.23), 40: (15.67, 15.67)},
    "gptm": {90: (0.89, 0.92), 80: (2.61, 2.65), 60: (9.15, 9.17), 40: (15.29, 15.29), 20: (26.45, 26.45)},
    "gpt48": {80: (0.69, 0.70), 60: (2.24, 2.24), 40: (10.02, 10.02), 20: (18.18, 18.18)},
    "gptm96": {80: (2.19, 2.24), 60: (7.86, 7.91), 40: (13.52, 13.57), 20: (21.30, 21.36)},
    "lstm": {80: (2.02, 2.07), 60: (8.25, 10.26), 40: (17.7, 20.8)},
    "rl250": {90: (1.11, 1.16), 80: (5.26, 6.0)},
}
FREE: Mapping[str, Mapping[int, Known]] = {
    "rl250": {90: (0.0, 0.047), 80: (0.157, 1.95)},
    "rl1000": {90: (None, 0.000), 80: (None, 1.65)},
}
EXTRA_FORWARDS: Mapping[int, Mapping[int, int]] = {  # the exact optimum of uniform chains, by slots
    50: {8: 65, 12: 39, 20: 31},
    100: {8: 181, 15: 86, 20: 81, 40: 61},
    250: {10: 531, 25: 226},
    500: {16: 865, 24: 701},
    1000: {32: 1473, 64: 937},
}
FORWARD_AND_BACKWARD = 3  # time of a chain's layer, of which the forward is 1
SMALLEST = {
    "gpt": (24.8, 25.0, 24.9),
    "r50": (11.2, 17.0, 16.0),
    "unet": (22.3, 28.0, 26.0),
    "lstm": (19.9, 40.0, 35.0),
}
"""The floor, the smallest known peak, and the target, in per cent of the store-all peak."""


def _cases() -> Iterator[Case]:
    tight = Target(gap=0.1)
    for name in ("unet", "r50", "gpt"):
        for share in (90, 80, 60, 40):
            yield Case("corpus", name, share, 10, tight, GIVEN[name][share])
    for name, seconds in (("gpt48", 5), ("gptm96", 30)):
        for share in (80, 60, 40, 20):
            yield Case(name, name, share, seconds, tight, GIVEN[name][share])

    for name, first in (("rl1000", 1), ("gpt48", 1), ("lstm", 5), ("gptm96", 5)):
        for share in (80,) if name == "rl1000" else (60, 40):
            known = FREE["rl1000"][share] if name == "rl1000" else GIVEN[name][share]
            yield Case("first-feasible", name, share, 10, Target(first_s=first), known)
    for name, share in (("unet", 40), ("r50", 40), ("gpt", 40), ("gptm", 40), ("gptm", 20)):
        known = GIVEN[name][share]
        yield Case(
            "first-feasible", name, share, 10, Target(overhead=(known[1] or 0) + 1), known, note="within a point"
        )
    for name, share in (("rl250", 80), ("rl1000", 80)):
        known = FREE[name][share]
        yield Case(
            "first-feasible", name, share, 10, Target(overhead=(known[1] or 0) + 1), known, note="within a point"
        )

    for steps, table in EXTRA_FORWARDS.items():
        for slots, extra in table.items():
            exact = 100 * extra / (FORWARD_AND_BACKWARD * steps)
            chain = Case(
                "chains", f"chain{steps}", None, 20, Target(overhead=exact, gap=0.0), (exact, exact), slots=slots
            )
            searched = Target(overhead=exact + 0.5 * (1 + exact / 100))  # 0.5 % of the whole time
            yield chain
            yield replace(chain, target=searched, options={"chains": False}, note="not recognised")

    yield Case("free-order", "rl250", 80, 60, Target(overhead=1.9), FREE["rl250"][80])
    yield Case("free-order", "rl1000", 90, 60, Target(overhead=0.1), FREE["rl1000"][90])
    yield Case("free-order", "rl1000", 80, 60, Target(overhead=2.0), FREE["rl1000"][80])
    yield Case("tight", "r50", 20, 60, Target(overhead=38, gap=8), GIVEN["r50"][20], note="stretch")
    yield Case("tight", "lstm", 40, 60, Target(overhead=20, gap=2), GIVEN["lstm"][40], note="stretch")
    for name, (floor, found, goal) in SMALLEST.items():
        yield Case("smallest", name, None, 60, Target(peak=goal), (floor, found))
    yield Case("10000", "gptm220", 40, 120, Target(first_s=10, memory_gib=4, gap=100), note="gap reported")
    yield Case("link", "gpt48", 40, 60, Target(overhead=2), (0.94, None), link="25GB/s", note="without: 10.02 %")
    yield Case(
        "link", "gpt", 40, 60, Target(overhead=9.5), (8.99, None), link="25GB/s", note="stretch; without: 15.67 %"
    )


CASES = tuple(_cases())
ROWS = tuple(dict.fromkeys(case.row for case in CASES))
