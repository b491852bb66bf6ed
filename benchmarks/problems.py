"""The problems of several benchmarks: small ones of the corpus, and large ones that are exported once.

Exports are stored in the temporary folder, and loaded from there without torch. Their costs are estimated by roofline
for a GPU of 100 TFLOP/s and 1.5 TB/s.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from remat_solvers import formats, generate
from remat_solvers.problem import Problem

__all__ = ["CORPUS", "NAMES", "load"]

CORPUS = Path(__file__).parents[1] / "tests" / "corpus"


def _gpt(layers: int, width: int, heads: int, batch: int, *, fused: bool) -> Problem:
    import gpt

    return gpt.step(layers, width, heads, batch, fused=fused)


GENERATED: Mapping[str, Callable[[], Problem]] = {
    "gpt48": partial(_gpt, 48, 1600, 25, 8, fused=True),  # 1,400 ops
    "gptm": partial(_gpt, 12, 768, 12, 8, fused=False),
    "gptm96": partial(_gpt, 96, 768, 12, 2, fused=False),  # 4,400 ops
    "gptm220": partial(_gpt, 220, 768, 12, 2, fused=False),  # 10,000 ops
    **{f"rl{n}": partial(generate.random_layered, n, seed=n) for n in (100, 500, 1000)},
    **{f"chain{n}": partial(generate.chain, n) for n in (100, 250, 500, 1000)},
}
NAMES = (*(path.stem for path in sorted(CORPUS.glob("*.json"))), *GENERATED)


def load(name: str) -> Problem:
    """Return the problem `name`, one of NAMES, without a link."""
    if name not in GENERATED:
        return formats.load_problem(CORPUS / f"{name}.json")
    cached = Path(tempfile.gettempdir()) / "remat-bench" / f"{name}.json"
    if not cached.exists():
        cached.parent.mkdir(exist_ok=True)
        formats.save_problem(cached, GENERATED[name]())
    return formats.load_problem(cached)
