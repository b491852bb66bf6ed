"""A plan as two fx graphs: one that runs in the forward call, one that runs in the backward call.

Every Compute becomes a node at its planned place, as often as the plan says. Views are emitted again from the
live base. A value is dropped where the plan frees it: generated code lets go of a name after its last use, and
where the Free comes later than that, a `hold` keeps the value until then.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _BoxedCodeGen

from remat.capture.joint import JointGraph, device_of, is_random, tensors_of
from remat.capture.lower import Lowered
from remat.capture.rnn.ops import RNN_FORWARD, RUNTIME_CALLS
from remat.execute.emitted_calls import drawing, hold, remembering, replaying
from remat_solvers.errors import ApplyError
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.schedule import forward_action_count

__all__ = ["Emitted", "emit"]

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_functional.default


@dataclass(frozen=True)
class Emitted:
    """The two graphs and how they are fed.

    forward(list of session, `forward_inputs`) -> (outputs, saved tensors, saved objects);
    backward(list of saved tensors, saved objects, `backward_inputs`, tangents) -> gradients.
    The session carries what is offloaded; it is the last saved object. Plans that offload nothing have none.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    forward_inputs: tuple[int, ...]  # indices into JointGraph.inputs
    backward_inputs: tuple[int, ...]  # indices into JointGraph.inputs
    tangents: tuple[int, ...]  # indices into JointGraph.tangents
    offloaded: tuple[int, ...]  # values that the plan offloads; without any there is no session


@dataclass
class _Instance:
    """One life of a value on the device."""

    node: fx.Node | None  # None: the recomputation does not make this output
    last_use: int  # statement
    coming: bool = False  # fetched and not read since


@dataclass
class _Phase:
    """One graph under construction."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    placeholders: dict[fx.Node, fx.Node] = field(default_factory=dict)  # joint placeholder -> here
    live: dict[int, _Instance] = field(default_factory=dict)
    views: dict[fx.Node, tuple[fx.Node, tuple[_Instance, ...]]] = field(default_factory=dict)
    statements: int = 0


def emit(joint: JointGraph, lowered: Lowered, plan: Plan, *, updates: bool = True) -> Emitted:
    """Graphs that execute `plan`; with updates=False the model's buffers are left alone.

    Raises ApplyError for actions this executor does not do.
    """
    return _Emitter(joint, lowered, plan, updates).run()


class _Emitter:
    def __init__(self, joint: JointGraph, lowered: Lowered, plan: Plan, updates: bool) -> None:
        self._updates = updates
        self._joint, self._lowered, self._plan = joint, lowered, plan
        self._problem = lowered.problem
        self._times = Counter(action.op for action in plan if isinstance(action, Compute))
        self._computed: set[int] = set()
        self._states: dict[int, fx.Node] = {}  # generator state per recomputed random op
        self._position = {node: i for i, (node, _) in enumerate(joint.inputs)}
        self._tangent = {node: i for i, (node, _) in enumerate(joint.tangents)}
        self._offloaded = dict.fromkeys(action.value for action in plan if isinstance(action, Offload))
        self._sent: set[int] = set()  # of these, those with a host copy by now
        self._session: fx.Node | None = None  # in the graph under construction
        self._phase = _Phase()

    def run(self) -> Emitted:
        self._take_session()
        end = forward_action_count(self._problem, self._plan)
        for action in self._plan[:end]:
            self._emit(action)
        forward, later = self._phase, self._plan[end:]
        saved = [v for v in self._needed_later(later) if v in forward.live and self._has_node(v)]
        tensors = [v for v in saved if not self._is_object(v)]
        objects = [v for v in saved if self._is_object(v)]
        states = [op for op in self._states if self._is_recomputed(op, later)]
        self._arrive(self._problem.results)
        outputs = [self._get(o.node) for o in self._joint.outputs if o.node is not None]
        saved_nodes = [forward.live[v].node for v in tensors]
        object_nodes = [forward.live[v].node for v in objects] + [self._states[op] for op in states]
        object_nodes += [self._session] if self._session is not None else []
        forward.graph.output((tuple(outputs), tuple(saved_nodes), tuple(object_nodes)))

        backward = self._phase = _Phase()
        for value in [*tensors, *objects]:
            name = self._problem.values[value].name.replace(".", "_")
            saved_node = backward.graph.placeholder(f"saved_{name}")
            backward.live[value] = _Instance(saved_node, 0, forward.live[value].coming)
        for op in states:
            self._states[op] = backward.graph.placeholder(f"rng_{self._problem.ops[op].name}")
        self._take_session()
        for action in later:
            self._emit(action)
        self._arrive(self._problem.results)
        self._hold_to_the_end()
        gradients = [self._get(node) for node, _ in self._joint.gradients]
        backward.graph.output(tuple(gradients))
        return Emitted(
            self._module(forward),
            self._module(backward),
            self._inputs(forward),
            self._inputs(backward),
            tuple(self._tangent[node] for node in backward.placeholders if node in self._tangent),
            tuple(self._offloaded),
        )

    # --- actions

    def _emit(self, action: Action) -> None:
        match action:
            case Compute(op):
                self._compute(op)
            case Free(value):
                self._free(value)
            case Offload(value):
                self._offload(value)
            case Fetch(value):
                self._fetch(value)

    def _compute(self, op: int) -> None:
        node = self._lowered.op_nodes[op]
        if node is None:
            for tangent, _ in self._joint.tangents:
                (value,) = self._lowered.values_of[tangent]
                self._phase.live[value] = _Instance(self._placeholder(tangent), self._phase.statements)
            return
        again = op in self._computed
        self._computed.add(op)
        if node.target is aten.copy_.default and not self._updates:
            return
        self._arrive(self._problem.ops[op].inputs)
        statistics_kept = again and node.target is _BATCH_NORM and self._updated(node)
        if statistics_kept:  # without the buffers, which the next forward may have updated by then
            target: Any = aten._native_batch_norm_legit.no_stats
            args, kwargs = self._arguments((*node.args[:3], *node.args[5:]), node.kwargs)
        else:
            target, args, kwargs = self._call(node)
        graph = self._phase.graph
        if op in self._states:
            made = graph.call_function(replaying(target), (device_of(node), self._states[op], *args), kwargs)
        elif is_random(node) and self._times[op] > 1:
            drawn = graph.call_function(remembering(target), (device_of(node), *args), kwargs)
            made = graph.call_function(operator.getitem, (drawn, 0))
            self._states[op] = graph.call_function(operator.getitem, (drawn, 1))
        else:
            made = graph.call_function(drawing(target) if is_random(node) else target, args, kwargs)
        self._phase.statements += 1
        for value in self._problem.ops[op].inputs:
            if value in self._phase.live:
                self._phase.live[value].last_use = self._phase.statements
        self._take_outputs(op, made, statistics_kept)

    def _call(self, node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        target = RUNTIME_CALLS.get(node.target, node.target)
        return target, *self._arguments(node.args, node.kwargs)

    def _arguments(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(fx.map_arg(args, self._get)), dict(fx.map_arg(kwargs, self._get))

    def _take_outputs(self, op: int, made: fx.Node, statistics_kept: bool) -> None:
        for value in self._problem.ops[op].outputs:
            if value in self._phase.live:
                continue  # the fresh copy of what is there already goes
            _, position = self._lowered.base[value]
            if position is None:
                node: fx.Node | None = made
            elif statistics_kept and position > 2:
                node = None
            else:
                node = self._phase.graph.call_function(operator.getitem, (made, position))
            self._phase.live[value] = _Instance(node, self._phase.statements)

    def _free(self, value: int) -> None:
        instance = self._phase.live.pop(value, None)
        if instance is None or instance.node is None:
            return  # the recomputation did not make it
        if value in self._offloaded:
            self._phase.graph.call_method("release", (self._session, value, instance.node))
            return
        unused_input = instance.node.op == "placeholder" and not instance.node.users
        if unused_input or instance.last_use < self._phase.statements:
            self._phase.graph.call_function(hold, (instance.node,))

    def _hold_to_the_end(self) -> None:
        """What the plan never frees is on the device until the end."""
        left = [i.node for v, i in self._phase.live.items() if v not in self._problem.results and i.node is not None]
        if left:
            self._phase.graph.call_function(hold, tuple(left))

    def _take_session(self) -> None:
        self._session = self._phase.graph.placeholder("session") if self._offloaded else None

    def _offload(self, value: int) -> None:
        instance = self._phase.live.get(value)
        if instance is None or instance.node is None:
            return  # the recomputation did not make it, since nobody reads it any more
        self._sent.add(value)
        self._phase.graph.call_method("offload", (self._session, value, instance.node))

    def _fetch(self, value: int) -> None:
        if value not in self._sent:
            self._phase.live[value] = _Instance(None, self._phase.statements)
            return
        node = self._phase.graph.call_method("fetch", (self._session, value))
        self._phase.statements += 1  # it allocates: what is freed later is held until then
        self._phase.live[value] = _Instance(node, self._phase.statements, coming=True)

    def _arrive(self, values: Iterable[int]) -> None:
        """Wait for those of `values` that are being fetched."""
        for value in values:
            instance = self._phase.live.get(value)
            if instance is not None and instance.coming:
                self._phase.graph.call_method("wait_for_fetch", (self._session, value))
                instance.coming = False

    def _updated(self, node: fx.Node) -> bool:
        """Whether all that reads the new statistics of this batch norm are buffer updates, done by now."""
        readers = [reader for user in node.users if user.args[1] in (3, 4) for reader in user.users]
        ops = {n: i for i, n in enumerate(self._lowered.op_nodes) if n is not None} if readers else {}
        return all(reader.target is aten.copy_.default and ops[reader] in self._computed for reader in readers)

    # --- tensors

    def _get(self, node: fx.Node | None) -> fx.Node:
        """The tensor (or object) of joint node `node`, as a node of the graph under construction."""
        assert node is not None
        if node.op == "placeholder" and node not in self._tangent:
            return self._placeholder(node)
        if node.op == "get_attr":
            return self._attribute(node)
        known = self._phase.views.get(node)
        if known is not None and all(self._phase.live.get(v) is i for v, i in self._owners(node, known[1])):
            return known[0]
        if node not in self._lowered.views:
            return self._base(self._lowered.values_of[node][0])
        made = self._view(node)
        owners = tuple(self._phase.live[v] for v in self._lowered.values_of[node] if v in self._phase.live)
        self._phase.views[node] = (made, owners)
        return made

    def _owners(self, node: fx.Node, instances: tuple[_Instance, ...]) -> list[tuple[int, _Instance]]:
        values = [v for v in self._lowered.values_of[node] if self._problem.values[v].kind != "constant"]
        return list(zip(values, instances, strict=True))

    def _base(self, value: int) -> fx.Node:
        instance = self._phase.live[value]
        if instance.node is None:
            raise ApplyError(f"value {self._problem.values[value].name} is read after a recomputation without it")
        return instance.node

    def _view(self, node: fx.Node) -> fx.Node:
        if node.target is operator.getitem:
            source, position = node.args
            assert isinstance(source, fx.Node)
            if source not in self._lowered.views:  # one output of an op
                (value,) = self._lowered.values_of[node]
                if self._lowered.base[value] == (source, position):
                    return self._base(value)
                return self._same_storage(node, value)
        elif not isinstance(node.target, torch._ops.OpOverload):
            return self._same_storage(node, self._lowered.values_of[node][0])
        target, args, kwargs = self._call(node)
        return self._phase.graph.call_function(target, args, kwargs)

    def _same_storage(self, node: fx.Node, value: int) -> fx.Node:
        """A tensor in the storage of `value` that is no view of its base in the joint graph."""
        tensor: Tensor = node.meta["val"]
        holder, _ = self._lowered.base[value]
        base = self._get(holder) if self._problem.values[value].kind == "constant" else self._base(value)
        layout = (tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))
        return self._phase.graph.call_function(aten.as_strided.default, (base, *layout))

    def _placeholder(self, node: fx.Node) -> fx.Node:
        if node not in self._phase.placeholders:
            self._phase.placeholders[node] = self._phase.graph.placeholder(node.name)  # put in order at the end
        return self._phase.placeholders[node]

    def _attribute(self, node: fx.Node) -> fx.Node:
        return self._phase.graph.get_attr(str(node.target))

    # --- between the phases

    def _needed_later(self, later: tuple[Action, ...]) -> list[int]:
        """Values that backward reads or frees before it makes them itself, in order of first use; and what stays."""
        needed: dict[int, None] = {}
        made: set[int] = set()
        for action in later:
            if isinstance(action, Compute):
                op = self._problem.ops[action.op]
                needed.update(dict.fromkeys(v for v in op.inputs if v not in made))
                made.update(v for v in op.outputs if v not in needed)
            elif isinstance(action, Fetch):
                made.add(action.value)
            elif action.value not in made:
                needed[action.value] = None
        freed = {action.value for action in later if isinstance(action, Free)}
        results = set(self._problem.results)
        return [*needed, *(v for v in self._phase.live if v not in needed and v not in freed and v not in results)]

    def _has_node(self, value: int) -> bool:
        return self._phase.live[value].node is not None

    def _is_object(self, value: int) -> bool:
        node, position = self._lowered.base[value]
        return node.target is RNN_FORWARD and position == len(tensors_of(node)) - 1

    def _is_recomputed(self, op: int, later: tuple[Action, ...]) -> bool:
        return any(isinstance(action, Compute) and action.op == op for action in later)

    def _inputs(self, phase: _Phase) -> tuple[int, ...]:
        return tuple(self._position[node] for node in phase.placeholders if node in self._position)

    def _module(self, phase: _Phase) -> fx.GraphModule:
        _order_placeholders(phase, self._position)
        phase.graph.set_codegen(_BoxedCodeGen())
        root: nn.Module = self._joint.graph_module
        module = fx.GraphModule(root, phase.graph)
        module.graph.lint()
        return module


def _order_placeholders(phase: _Phase, position: dict[fx.Node, int]) -> None:
    """Saved values first, then inputs, then tangents, each in order of creation."""
    inputs = [made for node, made in phase.placeholders.items() if node in position]
    tangents = [made for node, made in phase.placeholders.items() if node not in position]
    others = [n for n in phase.graph.find_nodes(op="placeholder") if n not in inputs and n not in tangents]
    anchor = phase.graph._root
    for node in [*others, *inputs, *tangents]:
        anchor.append(node)
        anchor = node
