"""RNN modules as opaque ops: bit-equal to eager torch, exact in peak, and without memory after they are dropped.

Expected values come from the original module in eager torch, and from the records of torch's allocator.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import remat
from remat.allocator import peak_while, recording
from remat.capture.exported import Exported
from remat_solvers.plan import Plan
from remat_solvers.schedule import plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from tests.remat.models.building import seeded
from tests.remat.modules import PLANS, differences, gradients_of, roofline, storing_all

BATCH, STEPS, IN, UNITS = 3, 5, 4, 6
FORWARD, BACKWARD = "remat.rnn_forward.default", "remat.rnn_backward.default"
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's, once
LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(IN, UNITS),
    "gru": lambda: nn.GRU(IN, UNITS),
    "rnn-tanh": lambda: nn.RNN(IN, UNITS),
    "rnn-relu": lambda: nn.RNN(IN, UNITS, nonlinearity="relu"),
    "lstm-bidirectional": lambda: nn.LSTM(IN, UNITS, bidirectional=True),
    "gru-bidirectional-two-layers": lambda: nn.GRU(IN, UNITS, num_layers=2, bidirectional=True),
    "lstm-projected": lambda: nn.LSTM(IN, UNITS, proj_size=2),
    "lstm-projected-bidirectional": lambda: nn.LSTM(IN, UNITS, num_layers=2, proj_size=2, bidirectional=True),
    "lstm-batch-first": lambda: nn.LSTM(IN, UNITS, batch_first=True),
    "gru-batch-first": lambda: nn.GRU(IN, UNITS, batch_first=True),
    "lstm-without-bias": lambda: nn.LSTM(IN, UNITS, bias=False),
    "gru-without-bias": lambda: nn.GRU(IN, UNITS, bias=False),
    "lstm-dropout": lambda: nn.LSTM(IN, UNITS, num_layers=3, dropout=0.4),
    "rnn-dropout": lambda: nn.RNN(IN, UNITS, num_layers=2, dropout=0.4),
    "lstm-double": lambda: nn.LSTM(IN, UNITS, dtype=torch.double),
}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def sequence(layer: nn.RNNBase) -> Tensor:
    shape = (BATCH, STEPS, IN) if layer.batch_first else (STEPS, BATCH, IN)
    return randn(*shape, dtype=layer.weight_ih_l0.dtype).requires_grad_()


def leaves(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list, PackedSequence)):
        for part in nested:
            yield from leaves(part)


def step(net: nn.Module, args: Any, *, seed: int = 3) -> dict[str, Any]:
    """Return outputs and all gradients after one step whose loss weights every output element differently."""
    inputs = [t for t in leaves(args) if t.requires_grad]
    for tensor in (*inputs, *net.parameters()):
        tensor.grad = None
    torch.manual_seed(seed)
    outputs = list(leaves(net(*args)))
    differentiable = [t for t in outputs if t.requires_grad]
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape) for t in differentiable]
    torch.autograd.backward(differentiable, weights)
    found: dict[str, Any] = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    found |= {f"input {i}": t.grad for i, t in enumerate(inputs)}
    return found | gradients_of(net) | {"generator": torch.get_rng_state()}


def check(make: Callable[[], nn.Module], args: Any, plan: Callable[..., nn.Module]) -> None:
    expected = step(make(), args)
    assert sum(isinstance(v, Tensor) for v in expected.values()) > 3
    assert differences(step(plan(make(), args), args), expected) == []


def targets(exported: Exported) -> list[str]:
    return [op.target for op in exported.problem.ops]


@PLANS
@pytest.mark.parametrize("name", LAYERS)
def test_bit_equal_to_eager(name: str, plan: Callable[..., nn.Module]) -> None:
    layer = seeded(LAYERS[name])
    check(lambda: seeded(LAYERS[name]), (sequence(layer),), plan)


@pytest.mark.parametrize("name", LAYERS)
def test_one_op_forward_and_one_backward(name: str) -> None:
    layer = seeded(LAYERS[name])
    found = targets(roofline(layer, sequence(layer)))
    assert found.count(FORWARD) == found.count(BACKWARD) == 1
    assert len(found) < 20


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn-tanh", "lstm-bidirectional"])
def test_unrolled_gives_many_ops_and_the_same_gradients(name: str) -> None:
    layer = seeded(LAYERS[name])
    args = (sequence(layer),)
    exported = remat.export(layer, args, costs="roofline", unroll_rnn=True)
    assert FORWARD not in targets(exported)
    assert len(exported.problem.ops) > 6 * STEPS
    reference = step(remat.apply(exported, store_all(exported.problem)), args)
    expected = step(seeded(LAYERS[name]), args)
    torch.testing.assert_close(reference, expected)
    recomputed = step(remat.apply(exported, keeping_nothing(exported)), args)
    assert differences(recomputed, reference) == []


def keeping_nothing(exported: Exported) -> Plan:
    """Return a plan that keeps as little as possible over the boundary, and recomputes the rest at once."""
    problem = exported.problem
    forward, backward = problem.forward_ops, problem.backward_ops
    recomputed = [i for i in forward if problem.ops[i].recomputable]
    return plan_from_sequence(problem, [*forward, backward[0], *recomputed, *backward[1:]])


# Forms of calls


class UsesResults(nn.Module):
    """An RNN of which only some results are used."""

    def __init__(self, kind: type[nn.RNNBase], use: str) -> None:
        super().__init__()
        self.rnn, self.use = kind(IN, UNITS, num_layers=2), use

    def forward(self, x: Tensor) -> Any:
        output, state = self.rnn(x)
        hidden, *cell = state if isinstance(state, tuple) else (state,)
        return {
            "output": output.tanh(),
            "last hidden": hidden[-1].tanh(),
            "cell": cell[0].tanh() if cell else hidden.sin(),
            "output and hidden": (output, hidden),
            "output's last step": output[-1].relu(),
        }[self.use]


@PLANS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("use", ["output", "last hidden", "cell", "output and hidden", "output's last step"])
def test_only_some_results_used(kind: type[nn.RNNBase], use: str, plan: Callable[..., nn.Module]) -> None:
    check(lambda: seeded(lambda: UsesResults(kind, use)), (randn(STEPS, BATCH, IN).requires_grad_(),), plan)


@PLANS
@pytest.mark.parametrize("differentiable", [True, False], ids=["with gradient", "without"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hidden_state_given(kind: type[nn.RNNBase], differentiable: bool, plan: Callable[..., nn.Module]) -> None:
    state: Any = randn(1, BATCH, UNITS).requires_grad_(differentiable)
    if kind is nn.LSTM:
        state = (state, randn(BATCH, UNITS)[None].requires_grad_(differentiable))
    check(lambda: seeded(lambda: kind(IN, UNITS)), (randn(STEPS, BATCH, IN), state), plan)


@PLANS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_unbatched_input(kind: type[nn.RNNBase], plan: Callable[..., nn.Module]) -> None:
    check(lambda: seeded(lambda: kind(IN, UNITS)), (randn(STEPS, IN).requires_grad_(),), plan)


@PLANS
def test_frozen_weights(plan: Callable[..., nn.Module]) -> None:
    def make() -> nn.Module:
        layer = seeded(lambda: nn.LSTM(IN, UNITS, num_layers=2))
        layer.weight_hh_l0.requires_grad_(False)
        layer.bias_ih_l1.requires_grad_(False)
        return layer

    check(make, (randn(STEPS, BATCH, IN),), plan)


@PLANS
def test_one_layer_called_twice(plan: Callable[..., nn.Module]) -> None:
    class Twice(nn.Module):
        def __init__(self, kind: type[nn.RNNBase]) -> None:
            super().__init__()
            self.rnn = kind(IN, IN)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(x)[0])[0]

    check(lambda: seeded(lambda: Twice(nn.LSTM)), (randn(STEPS, BATCH, IN).requires_grad_(),), plan)


# Packed sequences


class TakesPacked(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(IN, UNITS, **options)

    def forward(self, packed: PackedSequence) -> Any:
        output, state = self.rnn(packed)
        return output, state, torch.tanh(output.data)


class Pads(TakesPacked):
    def forward(self, packed: PackedSequence, **options: Any) -> Any:
        output, state = self.rnn(packed)
        return pad_packed_sequence(output, **options), state


def packed_input(lengths: tuple[int, ...] = (2, 5, 4)) -> PackedSequence:
    padded = randn(STEPS, len(lengths), IN)
    return pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)


@PLANS
@pytest.mark.parametrize("model", [TakesPacked, Pads])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {}), (nn.GRU, {"bidirectional": True}), (nn.RNN, {"num_layers": 2}), (nn.LSTM, {"proj_size": 2})],
    ids=["lstm", "gru-bidirectional", "rnn-two-layers", "lstm-projected"],
)
def test_packed_input(
    model: type[TakesPacked], kind: type[nn.RNNBase], options: dict[str, Any], plan: Callable[..., nn.Module]
) -> None:
    check(lambda: seeded(lambda: model(kind, **options)), (packed_input(),), plan)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"padding_value": -1.0}, {"total_length": 9}])
def test_padding_of_the_output(options: dict[str, Any]) -> None:
    exported = remat.export(Pads(nn.GRU), (packed_input(),), options)
    net = remat.apply(exported, store_all(exported.problem))
    found, expected = (list(leaves(m(packed_input(), **options))) for m in (net, exported.model))
    assert [t.stride() for t in found] == [t.stride() for t in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_lengths_are_part_of_the_call() -> None:
    net = storing_all(TakesPacked(nn.LSTM), (packed_input(),))
    net(packed_input((5, 4, 2)))  # the same batch sizes in another order
    with pytest.raises(remat.ChangedError):
        net(packed_input((2, 5, 3)))


def test_packing_in_forward_is_refused_with_advice() -> None:
    class Packs(TakesPacked):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return super().forward(pack_padded_sequence(x, lengths, enforce_sorted=False))

    with pytest.raises(remat.ExportError, match="Pack it outside"):
        roofline(Packs(nn.LSTM), randn(STEPS, BATCH, IN), torch.tensor([2, 5, 4]))


def test_packed_under_autocast_is_refused_with_advice() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(remat.ExportError, match="pad the sequence"):
        roofline(TakesPacked(nn.LSTM), packed_input())


# Under autocast


@PLANS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_under_autocast_traced_step_by_step(kind: type[nn.RNNBase], plan: Callable[..., nn.Module]) -> None:
    args = (randn(STEPS, BATCH, IN).requires_grad_(),)

    def run(net: nn.Module) -> dict[str, Any]:
        with torch.autocast("cpu", torch.bfloat16):
            return step(net, args)

    with torch.autocast("cpu", torch.bfloat16):
        exported = roofline(seeded(lambda: kind(IN, UNITS)), *args)
        net = plan(seeded(lambda: kind(IN, UNITS)), args)
    assert FORWARD not in targets(exported)
    found, expected = run(net), run(seeded(lambda: kind(IN, UNITS)))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02, check_dtype=False)
    assert differences(found, run(remat.apply(exported, store_all(exported.problem)))) == []


# The tape


class Stack(nn.Module):
    """Recurrent layers with tensors to free between them; nothing else holds much memory."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(32, 32) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)[0])
        return x.square().mean()


def held_bytes(run: Callable[[], object]) -> int:
    """Return the bytes that torch's allocator still holds after `run`, while its result exists."""
    with recording() as record:
        kept = run()
    del kept
    return sum(record.changes)


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@PLANS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_dropped_tape_frees_its_memory_without_the_collector(
    kind: type[nn.RNNBase], plan: Callable[..., nn.Module]
) -> None:
    net = plan(seeded(lambda: Stack(kind)), (randn(20, 8, 32),))
    x = randn(20, 8, 32)

    def forward() -> None:
        net(x)

    def forward_and_backward() -> None:
        net(x).backward()

    with without_collector():
        forward_and_backward()  # the gradients exist from here on
        assert held_bytes(forward) == 0
        assert held_bytes(forward_and_backward) == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_backward_frees_the_tape(kind: type[nn.RNNBase]) -> None:
    """After the backward, with the loss and its graph still alive, only the gradients are held."""
    net = storing_all(seeded(lambda: Stack(kind)), (randn(20, 8, 32),))
    x = randn(20, 8, 32)

    def run() -> Tensor:
        loss = net(x)
        loss.backward()
        return loss

    net(x).backward()
    net.zero_grad()
    with without_collector():
        gradients = sum(p.numel() * p.element_size() for p in net.parameters())
        assert held_bytes(run) - gradients <= 8  # the loss, and its gradient's scalar


@PLANS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_retained_graph(kind: type[nn.RNNBase], plan: Callable[..., nn.Module]) -> None:
    def twice(net: nn.Module) -> dict[str, Any]:
        loss = net(randn(20, 8, 32))
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        return gradients_of(net)

    found = twice(plan(seeded(lambda: Stack(kind)), (randn(20, 8, 32),)))
    assert differences(found, twice(seeded(lambda: Stack(kind)))) == []


def recomputing_rnns(exported: Exported) -> Plan:
    """Return a plan that recomputes the whole forward just before each fused backward."""
    problem = exported.problem
    sequence = list(problem.forward_ops)
    for op in problem.backward_ops:
        if problem.ops[op].target == BACKWARD:
            sequence += [i for i in problem.forward_ops if problem.ops[i].recomputable]
        sequence.append(op)
    return plan_from_sequence(problem, sequence)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_peak_of_a_plan_that_recomputes_the_fused_forward_is_exact(kind: type[nn.RNNBase]) -> None:
    args = (randn(20, 8, 32),)
    model = seeded(lambda: Stack(kind))
    exported = remat.export(model, args)
    problem = exported.problem
    for plan in (store_all(problem), recomputing_rnns(exported)):
        net = remat.apply(exported, plan)
        for parameter in model.parameters():
            parameter.grad = None
        measured = peak_while(lambda net=net: net(*args).backward(), torch.device("cpu"))
        tangent = sum(problem.values[v].bytes for v in problem.ops[problem.backward_ops[0]].outputs)
        assert measured + problem.constant_bytes == pytest.approx(simulate(problem, plan).peak_bytes, abs=2 * tangent)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_tape_bytes_are_those_a_real_forward_keeps(kind: type[nn.RNNBase]) -> None:
    """The eager forward keeps its results and the tensors that its backward needs."""
    layer = seeded(lambda: kind(32, 32))
    x = randn(20, 8, 32)
    problem = roofline(layer, x).problem
    (forward,) = (op for op in problem.ops if op.target == FORWARD)
    kept = held_bytes(lambda: layer(x)[0])
    planned = sum(problem.values[v].bytes for v in forward.outputs)
    hidden = sum(problem.values[v].bytes for v in forward.inputs if problem.values[v].kind == "activation")
    freed = 8 * 32 * 4 * (2 if kind is nn.LSTM else 1)  # final states, which eager torch frees
    assert planned + hidden - freed == pytest.approx(kept, rel=0.02)


def test_the_tape_does_not_keep_inputs_or_weights() -> None:
    layer = seeded(lambda: nn.GRU(IN, UNITS))
    net = storing_all(layer, (randn(STEPS, BATCH, IN),))
    x = randn(STEPS, BATCH, IN)
    storage = weakref.ref(x.untyped_storage())
    output = net(x)
    del x
    assert storage() is not None  # the backward reads it
    with without_collector():
        loss = output[0].sum()
        del output
        loss.backward()
        del loss
        assert storage() is None
