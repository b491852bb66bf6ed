"""Writes a plan as two fx graphs: one runs in the forward call, the other in the backward call.

Every Compute becomes a node at its place in the plan, as often as the plan has it. Views are emitted again from their
resident base. A value is freed where the plan frees it: generated code deletes a name after its last use, and where the
Free comes later than that, a call of `hold` keeps the value until then.
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
from remat.execute.emitted_calls import drawing, hold, recording, replaying
from remat_solvers.errors import ApplyError
from remat_solvers.plan import Action, Compute, Fetch, Free, Offload, Plan
from remat_solvers.schedule import forward_action_count

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_functional.default


@dataclass(frozen=True)
class Emitted:
    """The two graphs, and which inputs each of them takes.

    forward([session, *forward_inputs]) -> (outputs, saved tensors, saved objects)
    backward([*saved tensors, *saved objects, *backward_inputs, *tangents]) -> gradients

    The session holds the offloaded values; it is the last saved object. A plan that offloads nothing has none.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    forward_inputs: tuple[int, ...]  # indices into JointGraph.inputs
    backward_inputs: tuple[int, ...]  # indices into JointGraph.inputs
    tangents: tuple[int, ...]  # indices into JointGraph.tangents
    offloaded: tuple[int, ...]  # values that the plan offloads; if empty, there is no session


@dataclass
class _Residency:
    """The time that a value is on the device, once on the device."""

    node: fx.Node | None  # None: the recomputation does not compute this output
    last_use: int  # statement
    in_flight: bool = False  # fetched, and not waited for yet


@dataclass
class _Phase:
    """One graph under construction."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    placeholders: dict[fx.Node, fx.Node] = field(default_factory=dict)  # of the joint graph -> of this graph
    resident: dict[int, _Residency] = field(default_factory=dict)  # by value
    views: dict[fx.Node, tuple[fx.Node, tuple[_Residency, ...]]] = field(default_factory=dict)  # with their bases
    statements: int = 0  # emitted so far


def emit(joint: JointGraph, lowered: Lowered, plan: Plan, *, updates: bool = True) -> Emitted:
    """Graphs that execute `plan`; with updates=False they do not update the model's buffers.

    Raises ApplyError where the plan reads an output that its recomputation does not compute.
    """
    return _Emitter(joint, lowered, plan, updates).run()


class _Emitter:
    def __init__(self, joint: JointGraph, lowered: Lowered, plan: Plan, updates: bool) -> None:
        self._updates = updates
        self._joint, self._lowered, self._plan = joint, lowered, plan
        self._problem = lowered.problem
        self._compute_counts = Counter(plan.sequence)
        self._computed: set[int] = set()
        self._rng_states: dict[int, fx.Node] = {}  # by recomputed random op
        self._position = {node: i for i, (node, _) in enumerate(joint.inputs)}
        self._tangent = {node: i for i, (node, _) in enumerate(joint.tangents)}
        self._offloaded = dict.fromkeys(action.value for action in plan if isinstance(action, Offload))
        self._on_host: set[int] = set()  # of these, the ones with a host copy so far
        self._session: fx.Node | None = None  # in the graph under construction
        self._phase = _Phase()

    def run(self) -> Emitted:
        self._take_session()
        count = forward_action_count(self._problem, self._plan)
        for action in self._plan[:count]:
            self._emit(action)
        forward, backward_actions = self._phase, self._plan[count:]
        saved = [v for v in self._used_in_backward(backward_actions) if self._has_node(v)]
        tensors = [v for v in saved if not self._is_object(v)]
        objects = [v for v in saved if self._is_object(v)]
        backward_ops = {action.op for action in backward_actions if isinstance(action, Compute)}
        states = [op for op in self._rng_states if op in backward_ops]
        self._wait_for_fetches(self._problem.results)
        outputs = [self._get(o.node) for o in self._joint.outputs if o.node is not None]
        saved_nodes = [forward.resident[v].node for v in tensors]
        object_nodes = [forward.resident[v].node for v in objects] + [self._rng_states[op] for op in states]
        object_nodes += [self._session] if self._session is not None else []
        forward.graph.output((tuple(outputs), tuple(saved_nodes), tuple(object_nodes)))

        backward = self._phase = _Phase()
        for value in [*tensors, *objects]:
            name = self._problem.values[value].name.replace(".", "_")
            saved_node = backward.graph.placeholder(f"saved_{name}")
            backward.resident[value] = _Residency(saved_node, 0, forward.resident[value].in_flight)
        for op in states:
            self._rng_states[op] = backward.graph.placeholder(f"rng_{self._problem.ops[op].name}")
        self._take_session()
        for action in backward_actions:
            self._emit(action)
        self._wait_for_fetches(self._problem.results)
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
                self._phase.resident[value] = _Residency(self._placeholder(tangent), self._phase.statements)
            return
        is_recomputation = op in self._computed
        self._computed.add(op)
        if node.target is aten.copy_.default and not self._updates:
            return
        self._wait_for_fetches(self._problem.ops[op].inputs)
        without_statistics = is_recomputation and node.target is _BATCH_NORM and self._statistics_are_updated(node)
        if without_statistics:  # it does not read the buffers, which another forward may have updated since
            target: Any = aten._native_batch_norm_legit.no_stats
            args, kwargs = self._arguments((*node.args[:3], *node.args[5:]), node.kwargs)
        else:
            target, args, kwargs = self._call(node)
        graph = self._phase.graph
        if op in self._rng_states:
            result = graph.call_function(replaying(target), (device_of(node), self._rng_states[op], *args), kwargs)
        elif is_random(node) and self._compute_counts[op] > 1:
            pair = graph.call_function(recording(target), (device_of(node), *args), kwargs)
            result = graph.call_function(operator.getitem, (pair, 0))
            self._rng_states[op] = graph.call_function(operator.getitem, (pair, 1))
        else:
            result = graph.call_function(drawing(target) if is_random(node) else target, args, kwargs)
        self._phase.statements += 1
        for value in self._problem.ops[op].inputs:
            if value in self._phase.resident:
                self._phase.resident[value].last_use = self._phase.statements
        self._take_outputs(op, result, without_statistics)

    def _call(self, node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        target = RUNTIME_CALLS.get(node.target, node.target)
        return target, *self._arguments(node.args, node.kwargs)

    def _arguments(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(fx.map_arg(args, self._get)), dict(fx.map_arg(kwargs, self._get))

    def _take_outputs(self, op: int, result: fx.Node, without_statistics: bool) -> None:
        for value in self._problem.ops[op].outputs:
            if value in self._phase.resident:
                continue  # the value is resident: its fresh copy is dropped
            _, position = self._lowered.base[value]
            if position is None:
                node: fx.Node | None = result
            elif without_statistics and position > 2:
                node = None
            else:
                node = self._phase.graph.call_function(operator.getitem, (result, position))
            self._phase.resident[value] = _Residency(node, self._phase.statements)

    def _free(self, value: int) -> None:
        residency = self._phase.resident.pop(value, None)
        if residency is None or residency.node is None:
            return  # the recomputation did not compute it
        if value in self._offloaded:
            self._phase.graph.call_method("release", (self._session, value, residency.node))
            return
        unused_input = residency.node.op == "placeholder" and not residency.node.users
        if unused_input or residency.last_use < self._phase.statements:
            self._phase.graph.call_function(hold, (residency.node,))

    def _hold_to_the_end(self) -> None:
        """Keep the values that the plan never frees to the end of the backward."""
        remaining = [
            i.node for v, i in self._phase.resident.items() if v not in self._problem.results and i.node is not None
        ]
        if remaining:
            self._phase.graph.call_function(hold, tuple(remaining))

    def _take_session(self) -> None:
        self._session = self._phase.graph.placeholder("session") if self._offloaded else None

    def _offload(self, value: int) -> None:
        residency = self._phase.resident.get(value)
        if residency is None or residency.node is None:
            return  # the recomputation did not compute it, since nothing reads it any more
        self._on_host.add(value)
        self._phase.graph.call_method("offload", (self._session, value, residency.node))

    def _fetch(self, value: int) -> None:
        if value not in self._on_host:
            self._phase.resident[value] = _Residency(None, self._phase.statements)
            return
        node = self._phase.graph.call_method("fetch", (self._session, value))
        self._phase.statements += 1  # a fetch allocates: a value that is freed after it is held until then
        self._phase.resident[value] = _Residency(node, self._phase.statements, in_flight=True)

    def _wait_for_fetches(self, values: Iterable[int]) -> None:
        """Emit a wait for each of `values` whose fetch is in flight."""
        for value in values:
            residency = self._phase.resident.get(value)
            if residency is not None and residency.in_flight:
                self._phase.graph.call_method("wait_for_fetch", (self._session, value))
                residency.in_flight = False

    def _statistics_are_updated(self, node: fx.Node) -> bool:
        """Return whether only buffer updates read the new statistics of this batch norm, and all of them are done."""
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
        cached = self._phase.views.get(node)
        if cached is not None and all(self._phase.resident.get(v) is i for v, i in self._bases(node, cached[1])):
            return cached[0]
        if node not in self._lowered.views:
            return self._base(self._lowered.values_of[node][0])
        view = self._view(node)
        bases = tuple(self._phase.resident[v] for v in self._lowered.values_of[node] if v in self._phase.resident)
        self._phase.views[node] = (view, bases)
        return view

    def _bases(self, node: fx.Node, residencies: tuple[_Residency, ...]) -> list[tuple[int, _Residency]]:
        values = [v for v in self._lowered.values_of[node] if self._problem.values[v].kind != "constant"]
        return list(zip(values, residencies, strict=True))

    def _base(self, value: int) -> fx.Node:
        residency = self._phase.resident[value]
        if residency.node is None:
            raise ApplyError(
                f"value {self._problem.values[value].name} is read after a recomputation that does not compute it"
            )
        return residency.node

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
        """A tensor in the storage of `value` that is not a view of its base in the joint graph."""
        tensor: Tensor = node.meta["val"]
        holder, _ = self._lowered.base[value]
        base = self._get(holder) if self._problem.values[value].kind == "constant" else self._base(value)
        layout = (tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))
        return self._phase.graph.call_function(aten.as_strided.default, (base, *layout))

    def _placeholder(self, node: fx.Node) -> fx.Node:
        if node not in self._phase.placeholders:
            self._phase.placeholders[node] = self._phase.graph.placeholder(node.name)
        return self._phase.placeholders[node]

    def _attribute(self, node: fx.Node) -> fx.Node:
        return self._phase.graph.get_attr(str(node.target))

    # --- between the phases

    def _used_in_backward(self, backward_actions: tuple[Action, ...]) -> list[int]:
        """Values that the backward reads or frees before it computes them, by first use; then those it never frees."""
        used: dict[int, None] = {}
        computed: set[int] = set()
        for action in backward_actions:
            if isinstance(action, Compute):
                op = self._problem.ops[action.op]
                used.update(dict.fromkeys(v for v in op.inputs if v not in computed))
                computed.update(v for v in op.outputs if v not in used)
            elif isinstance(action, Fetch):
                computed.add(action.value)
            elif action.value not in computed:
                used[action.value] = None
        freed = {action.value for action in backward_actions if isinstance(action, Free)}
        others = freed.union(used, self._problem.results)
        return [*used, *(v for v in self._phase.resident if v not in others)]

    def _has_node(self, value: int) -> bool:
        residency = self._phase.resident.get(value)
        return residency is not None and residency.node is not None

    def _is_object(self, value: int) -> bool:
        node, position = self._lowered.base[value]
        return node.target is RNN_FORWARD and position == len(tensors_of(node)) - 1

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
    inputs = [own for node, own in phase.placeholders.items() if node in position]
    tangents = [own for node, own in phase.placeholders.items() if node not in position]
    others = [n for n in phase.graph.find_nodes(op="placeholder") if n not in inputs and n not in tangents]
    anchor = phase.graph._root
    for node in [*others, *inputs, *tangents]:
        anchor.append(node)
        anchor = node
