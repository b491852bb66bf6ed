"""The module that replaces the user's model in training: it runs planned training steps.

It shares the parameters, buffers and submodules of the model, so nothing changes for names, state_dict, optimizers,
hooks on parameters and wrappers such as DDP. A training call runs the plan; evaluation and calls under no_grad run the
original; `on_change` decides about a training call that differs from what was planned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from remat.capture.call import Call, ModelState, read_call, read_model, signature_differences, unique_tensors
from remat.execute.planned import Planned, Planner
from remat.execute.program import Program
from remat.execute.summary import report_text
from remat_solvers.errors import ChangedError
from remat_solvers.plan import Plan
from remat_solvers.problem import Problem
from remat_solvers.result import Result

OnChange: TypeAlias = Literal["error", "replan", "original"]

SHARED = (  # the registries of a module that are those of its original
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class RematModule(nn.Module):
    """A model whose training step follows a plan. `remat.solve` and `remat.apply` return one."""

    original: nn.Module  # the user's model; held outside the registry of submodules
    _planned: tuple[Planned, ...]
    _on_change: OnChange
    _planner: Planner | None  # for on_change="replan"

    def __init__(
        self, model: nn.Module, planned: Planned, on_change: OnChange = "error", planner: Planner | None = None
    ) -> None:
        super().__init__()
        self._restore({"original": model, "_planned": (planned,), "_on_change": on_change, "_planner": planner})

    def _restore(self, own: Mapping[str, Any]) -> None:
        """Set the attributes `own`, and share the registries of the original: an entry of one is an entry of both."""
        self.__dict__.update(own)
        for registry in SHARED:
            self.__dict__[registry] = self.original.__dict__[registry]

    def _own(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in SHARED}

    # --- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plan in training with gradients enabled, and the original otherwise."""
        model = self.original
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # as part of a model that is captured, say
            return model(*args, **kwargs)
        state = read_model(model)
        call = read_call(model, state, args, kwargs)
        for planned in self._planned:
            if planned.signature == call.signature and planned.settings.match(model.modules()):
                return self._run(self._ready(planned, args, kwargs), state, call)
        if not self.training:
            return model(*args, **kwargs)
        return self._run_changed(state, call, args, kwargs)

    def _run(self, program: Program, state: ModelState, call: Call) -> Any:
        return program(list(state.parameters.values()), list(state.buffers.values()), unique_tensors(call.leaves))

    def _ready(self, planned: Planned, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        if planned.program is None:
            recaptured = planned.recaptured(self.original, args, kwargs)
            self.__dict__["_planned"] = tuple(recaptured if p is planned else p for p in self._planned)
            planned = recaptured
        assert planned.program is not None
        return planned.program

    def _run_changed(self, state: ModelState, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._on_change == "original":
            return self.original(*args, **kwargs)
        if self._on_change == "replan":
            assert self._planner is not None
            planned = self._planner(self.original, args, kwargs)
            self.__dict__["_planned"] = (*self._planned, planned)
            assert planned.program is not None
            return self._run(planned.program, state, call)
        model = self.original
        differences = (
            signature_differences(p.signature, call.signature, model) + p.settings.differences(model)
            for p in self._planned
        )
        fewest = min(differences, key=len, default=[])
        raise ChangedError(
            f"this call is not the one that was planned: {'; '.join(fewest)}. Solve for this call too, or pass "
            "on_change='replan' (plans each new kind of call once) or on_change='original' (runs it without a plan)."
        )

    # --- what was planned

    @property
    def result(self) -> Result | None:
        """The solver's answer for the first planned call; None where the plan came from a file."""
        return self._planned[0].result

    @property
    def problem(self) -> Problem:
        """The problem of the first planned call."""
        return self._planned[0].problem

    @property
    def plan(self) -> Plan:
        """The plan of the first planned call."""
        return self._planned[0].plan

    def report(self) -> str:
        """Describe the planned calls in a few lines for people: budget, peak, time, offloaded bytes, proven gap."""
        return report_text(self._planned)

    # --- standing in for the original

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" not in self.__dict__:
                raise
            return getattr(self.__dict__["original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_own(name):
            super().__setattr__(name, value)
        else:
            setattr(self.original, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            super().__delattr__(name)
        else:
            delattr(self.original, name)

    def _is_own(self, name: str) -> bool:
        return name in self.__dict__ or hasattr(type(self), name)

    # Containers: special methods are looked up on the class, not by __getattr__

    def __getitem__(self, key: Any) -> Any:
        return self.original[key]  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.original)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.original)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.original)  # type: ignore[call-overload, no-any-return]

    @property
    def training(self) -> bool:
        return self.original.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "original" in self.__dict__:
            self.original.training = mode

    def train(self, mode: bool = True) -> RematModule:
        self.original.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.original.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # when part of a module that is loaded
        self.original._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> RematModule:
        self.original._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"planned calls: {len(self._planned)}"

    # --- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> RematModule:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        nn.Module.__init__(copied)
        stateless = {name: self.__dict__[name] for name in ("_planned", "_on_change", "_planner")}  # shared
        others = {name: value for name, value in self._own().items() if name not in stateless}
        copied._restore(copy.deepcopy(others, memo) | stateless)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return self._own() | {"_planned": tuple(replace(planned, program=None) for planned in self._planned)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self._restore(state)
