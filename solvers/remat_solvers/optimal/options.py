"""The options of `auto`: which plans it looks for, when it may stop, and which of its parts take part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from remat_solvers.errors import InputError
from remat_solvers.plan import Plan

RENAMED = {  # former name of an option -> its name
    "apart": "subprocess",
    "repeats": "lagrangian",
    "decomposed": "windows",
    "states": "state_search",
}


@dataclass(frozen=True)
class AutoOptions:
    """Options of `auto`. Each Boolean but `certify` switches a part off, so that its effect can be measured."""

    order: Literal["any", "given", "free"] = "any"  # of first computations; any: they may move
    within: float = 5e-4  # gap between plan and bound, as a fraction of store-all's time, at which the solve ends
    chains: bool = True  # uniform chains are recognised and solved in closed form
    state_search: bool = True  # A* over all states of a small problem
    lagrangian: bool = True  # bounds and plans for networks of many identical layers
    methods: bool = True  # plans of published methods as warm starts
    search: bool = True  # simulated annealing over op sequences
    windows: bool = True  # half of the annealing works on one window of the best sequence at a time
    program: bool = True  # the integer program over few moments
    cuts: bool = True  # interval cuts in the program
    lazy: bool = True  # moments are added to the program
    subprocess: bool = True  # the program runs in a process of its own, on another core
    certify: bool = False  # a certificate of the bound, which check_certificate accepts, in some more seconds
    starts: tuple[Plan, ...] = field(default=(), repr=False, metadata={"option": False})  # further warm starts

    def __new__(cls, *_: object, **options: object) -> Self:
        """Raise InputError, which gives the new name, for the former name of an option."""
        for old, new in RENAMED.items():
            if old in options:
                raise InputError(f"auto: the option {old!r} is called {new!r} now")
        return super().__new__(cls)
