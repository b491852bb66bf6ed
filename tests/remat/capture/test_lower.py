"""The exported problem describes the step: its storages, effects and gradients, and the origin of each op.

Expected values come from running the ops on real tensors, from the model itself, or from closed forms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional

import remat
from remat.allocator import peak_while
from remat.capture.joint import tensors_of
from remat.capture.rnn.ops import RNN_BACKWARD, RNN_FORWARD, RUNTIME_CALLS
from remat.capture.trees import flatten
from remat_solvers.formats import load_problem
from remat_solvers.problem import Op, Problem
from remat_solvers.schedule import baseline, store_all
from tests.remat.models.building import BATCH, WIDTH, Lambda, mlp, rows
from tests.remat.models.exports import exported as exported_case
from tests.remat.models.table import CASES, Case
from tests.remat.modules import CASE as BY_NAME
from tests.remat.modules import roofline, storing_all

LARGE = (
    "resnet50",
    "densenet121",
    "gru-cell-100",
    "inception",
    "mobilenet",
    "mobilenet-drop-path",
    "unet",
    "bert",
    "llama",
    "vit",
)
SMALL = [case for case in CASES if case.name not in LARGE]  # test_exact runs all of them
CASE = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
VIEW_OPS = (
    "view _unsafe_view t transpose permute expand select unsqueeze squeeze slice split detach alias as_strided unbind"
)


def target(op: Op) -> str:
    return op.target.removeprefix("aten.").partition(".")[0]


# Storages


@CASE
def test_storages_are_those_of_a_real_run(case: Case) -> None:
    """Run every op on real tensors: the problem states which storages are new, and how large they are."""
    exported = exported_case(case)
    problem, lowered, joint = exported.problem, exported.lowered, exported.joint
    real = {node: real_input(node) for node in joint.graph_module.graph.nodes if node.op in ("placeholder", "get_attr")}
    op_of = {node: op for node, op in zip(lowered.op_nodes, problem.ops, strict=True) if node is not None}
    known = {storage(t) for result in real.values() for t in leaves(result)}
    checked = 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for node in joint.nodes:
            real[node] = run(node, real)
            new = {storage(t): t.untyped_storage().nbytes() for t in leaves(real[node]) if storage(t) not in known}
            known |= new.keys()
            expected = sorted(new.values())
            if node.target is RNN_FORWARD:
                continue  # the tape is no tensor; rnn/test_rnn.py measures it
            planned = sorted(problem.values[v].bytes for v in op_of[node].outputs) if node in op_of else []
            assert planned == expected, node
            checked += len(planned)
    assert checked


def real_input(node: fx.Node) -> Any:
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    fake = node.meta["val"]
    base = torch.ones(fake.untyped_storage().nbytes() // fake.element_size(), dtype=fake.dtype)
    return base.as_strided(fake.shape, fake.stride(), fake.storage_offset())


def run(node: fx.Node, real: dict[fx.Node, Any]) -> Any:
    call: Any = RUNTIME_CALLS.get(node.target, node.target)
    args, kwargs = fx.map_arg((node.args, node.kwargs), real.__getitem__)
    if node.target is RNN_BACKWARD:
        args[0].keep = True
    result = call(*args, **kwargs)
    return None if node.target is torch.ops.aten.copy_.default else result


def leaves(result: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@CASE
def test_ops_create_storages_in_two_phases(case: Case) -> None:
    exported = exported_case(case)
    problem = exported.problem
    assert not {target(op) for op in problem.ops} & {*VIEW_OPS.split(), "getitem"}  # views are contracted
    for op in problem.ops:
        assert op.outputs or op.effects, op
        assert not set(op.inputs) & set(op.outputs)
        assert {problem.values[v].kind for v in op.outputs} <= {"activation" if op.phase == "forward" else "gradient"}
    phases = [op.phase for op in problem.ops]
    assert phases == sorted(phases, reverse=True)  # forward, then backward
    first = problem.ops[problem.backward_ops[0]]
    assert (first.name, first.target) == ("tangents", "tangents")
    assert (first.inputs, first.time_ns, first.recomputable) == ((), 0, False)
    assert [op.target for op in problem.ops].count("tangents") == 1
    sizes = [leaf.numel() * leaf.element_size() for node, _ in exported.joint.tangents for leaf in tensors_of(node)]
    assert [problem.values[v].bytes for v in first.outputs] == sizes


@CASE
def test_results_are_the_storages_of_outputs_and_gradients(case: Case) -> None:
    """Outputs and gradients of a real step lie in these storages, which did not exist before the step."""
    model, args, kwargs = case.make()
    model.train()
    with case.precision():
        exported = remat.export(model, args, kwargs, costs="roofline")
        output = remat.apply(exported, store_all(exported.problem))(*args, **kwargs)
    results = [t for t in flatten(output)[0] if isinstance(t, Tensor)]
    inputs = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    before = {storage(t) for t in (*model.parameters(), *model.buffers(), *inputs)}
    differentiable = [t for t in exported.differentiated(results) if t.requires_grad]
    torch.autograd.backward(differentiable, [torch.ones_like(t) for t in differentiable])
    trained = [t for t in (*model.parameters(), *inputs) if (t.requires_grad and t.is_leaf) or t.retains_grad]
    results += [t.grad for t in trained if t.grad is not None]
    sizes = {storage(t): t.untyped_storage().nbytes() for t in results if storage(t) not in before}
    found = [exported.problem.values[v].bytes for v in exported.problem.results]
    assert sorted(found) == sorted(sizes.values())


class ManyOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        values, _ = self.norm(x).topk(3)
        first, second, third = values.unbind(1)
        return first * second + third


def test_ops_with_several_outputs() -> None:
    problem = roofline(ManyOutputs(), rows()).problem
    outputs = {target(op): [problem.values[v].bytes for v in op.outputs] for op in problem.ops}
    assert outputs["native_layer_norm"] == [4 * BATCH * WIDTH, 4 * BATCH, 4 * BATCH]
    assert outputs["topk"] == [4 * BATCH * 3, 8 * BATCH * 3]
    assert len(outputs["native_layer_norm_backward"]) == 2  # x requires none


# Gradients


class Layouts(nn.Module):
    """Models whose gradients have layouts that autograd would copy or keep, as their names state."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.randn(size, size))
        if name == "shared":
            self.other = nn.Parameter(torch.randn(size, size))
        if name == "slice":
            self.other = nn.Parameter(torch.randn(3, size))
        if name == "not contiguous":
            self.weight = nn.Parameter(torch.randn(size, size).t())

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        match self.name:
            case "transposed":
                return (x @ w.t()).sin().sum()
            case "matrix":
                return (x @ w).sin().sum()
            case "expanded":
                return w.sum() * 2.0
            case "shared":
                return (x @ (w + self.other)).sin().sum()
            case "slice":
                return (torch.cat((w, self.other)) * x[:1]).sin().sum()
            case "not contiguous":
                return (x @ w).sin().sum()
            case "the tangent itself":
                return w + x[0, 0]
        raise AssertionError(self.name)


LAYOUTS = ["transposed", "matrix", "expanded", "shared", "slice", "not contiguous", "the tangent itself"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_autograd_keeps_the_storages_the_graph_returns(name: str) -> None:
    """p.grad is the tensor of the backward, neither copied nor shared, and the peak is that of the problem."""
    size = 256
    model = Layouts(name, size)
    x = torch.randn(4, size)
    exported = remat.export(model, (x,))
    problem = exported.problem
    net = remat.apply(exported, store_all(problem))
    arrived: dict[str, int] = {}
    for key, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, key=key: arrived.update({key: grad.data_ptr()}))

    def step() -> None:
        output = net(x)
        output.backward(torch.ones_like(output))

    step()
    found = {key: p.grad.data_ptr() for key, p in model.named_parameters()}
    assert found == arrived
    assert len({p.grad.untyped_storage().data_ptr() for p in model.parameters()}) == len(arrived)
    assert all(p.grad.stride() == p.stride() for p in model.parameters())
    model.zero_grad()
    measured = peak_while(step, torch.device("cpu"))
    assert measured + problem.constant_bytes == pytest.approx(baseline(problem).peak_bytes, abs=64)
    results = sum(problem.values[v].bytes for v in problem.results)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    assert results == gradients + model(x).numel() * 4


@pytest.mark.parametrize("name", ["expanded", "shared", "slice", "the tangent itself"])
def test_a_gradient_that_autograd_would_copy_ends_in_a_clone(name: str) -> None:
    model = Layouts(name, 8)
    problem = roofline(model, torch.randn(4, 8)).problem
    clones = [op for op in problem.ops if op.target in ("clone_as", "aten.clone.default")]
    assert len(clones) >= 1
    assert all(op.phase == "backward" for op in clones)


# Effects


def effects_of(problem: Problem) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {op.target: (op.effects, op.recomputable) for op in problem.ops if op.effects}


def test_buffer_updates_have_no_outputs_and_run_once() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    problem = roofline(model, rows()).problem
    updates = [op for op in problem.ops if op.target == "aten.copy_.default"]
    assert len(updates) == 3  # mean, variance, the counter
    for op in updates:
        assert op.outputs == ()
        assert op.effects == ("buffer",)
        assert not op.recomputable
        assert op.phase == "forward"
    written = {problem.values[v].name for op in updates for v in op.inputs if problem.values[v].kind == "constant"}
    assert written == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def attention(p: float) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        q = self.body(x).view(1, 1, BATCH, WIDTH)
        return functional.scaled_dot_product_attention(q, q, q, dropout_p=p)

    return forward


RANDOM: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "dropout": (lambda self, x: functional.dropout(self.body(x), 0.5), 1),
    "dropout p=0": (lambda self, x: functional.dropout(self.body(x), 0.0), 0),
    "dropout in eval": (lambda self, x: functional.dropout(self.body(x), 0.5, training=False), 0),
    "attention with dropout": (attention(0.2), 1),
    "attention without dropout": (attention(0.0), 0),
    "noise": (lambda self, x: self.body(x) + torch.randn(x.shape) + torch.rand_like(x), 2),
    "bernoulli": (lambda self, x: self.body(x) * torch.bernoulli(torch.full_like(x, 0.5)), 1),
    "randperm": (lambda self, x: self.body(x)[torch.randperm(BATCH)], 1),
    "multinomial": (lambda self, x: self.body(x)[torch.multinomial(torch.ones(BATCH), 2)], 1),
    "feature alpha dropout": (lambda self, x: functional.feature_alpha_dropout(self.body(x), training=True), 1),
    "rrelu": (lambda self, x: functional.rrelu(self.body(x), training=True), 1),
    "gumbel": (lambda self, x: functional.gumbel_softmax(self.body(x)), 1),
    "nothing": (lambda self, x: self.body(x), 0),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_ops_are_those_that_advance_the_generator(name: str) -> None:
    forward, count = RANDOM[name]
    model = Lambda(forward, body=mlp())
    problem = roofline(model, rows()).problem
    random = [op for op in problem.ops if "random" in op.effects]
    assert len(random) == count
    assert all(op.recomputable and op.phase == "forward" for op in random)
    state = torch.get_rng_state()
    model(torch.ones(BATCH, WIDTH))
    assert torch.equal(torch.get_rng_state(), state) is (count == 0)


@pytest.fixture
def group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_collectives_run_once(group: Any) -> None:
    class Reduces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            scale = collectives.all_reduce(y.detach().square().mean(), "sum", group)
            return torch.tanh(y * scale)

    model = Reduces()
    exported = roofline(model, rows())
    found = effects_of(exported.problem)
    assert found["_c10d_functional.all_reduce.default"] == (("collective",), False)
    x = rows()
    assert torch.equal(remat.apply(exported, store_all(exported.problem))(x), model(x))


# Origins of ops


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))  # tanh
        return torch.sigmoid(self.second(h))  # sigmoid


def line(function: Any, comment: str) -> str:
    source, start = inspect.getsourcelines(function)
    offset = next(i for i, text in enumerate(source) if text.rstrip().endswith(comment))
    return f"{Path(__file__).name}:{start + offset}"


def test_module_and_line_of_every_op() -> None:
    model = nn.Sequential(Block(), nn.ModuleDict({"inner": Block()})["inner"])
    problem = roofline(model, rows()).problem
    tanh, sigmoid = line(Block.forward, "# tanh"), line(Block.forward, "# sigmoid")
    expected = []
    for block in ("0", "1"):
        expected += [
            ("mm", f"{block}.first", tanh),
            ("tanh", block, tanh),
            ("mm", f"{block}.second", sigmoid),
            ("sigmoid", block, sigmoid),
        ]
    assert [(target(op), op.module, op.source) for op in problem.ops if op.phase == "forward"] == expected
    backward = [(target(op), op.module, op.source) for op in problem.ops if op.phase == "backward"][1:]
    origins = {(module, source) for _, module, source in expected}
    assert {(module, source) for _, module, source in backward} == origins
    assert ("tanh_backward", "1", tanh) in backward
    assert ("sigmoid_backward", "0", sigmoid) in backward
    assert backward[0] == ("sigmoid_backward", "1", sigmoid)


@pytest.mark.parametrize("name", ["gpt2", "resnet18", "transformer-encoder", "lstm"])
def test_most_ops_of_a_library_model_have_an_origin(name: str) -> None:
    problem = exported_case(BY_NAME[name]).problem
    model, _, _ = BY_NAME[name].make()
    paths = dict(model.named_modules())
    located = [op for op in problem.ops if op.source]
    assert len(located) >= 0.9 * len(problem.ops)
    assert all(op.module in paths for op in located)


# Saved problems, and equal problems of equal exports


@pytest.mark.parametrize("costs", ["measure", "roofline:h100"])
def test_save_and_load(costs: str, tmp_path: Path) -> None:
    exported = remat.export(mlp(nn.Dropout(0.1)), (rows(),), costs=costs)
    path = tmp_path / "problem.json"
    exported.save(path)
    for loaded in (load_problem(path), remat.load(path)):
        assert loaded == exported.problem
        assert loaded.costs == exported.problem.costs
        assert loaded.fingerprint == exported.problem.fingerprint
    second = tmp_path / "second.json"
    exported.save(second)
    assert path.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["lstm", "gru-dropout", "autocast-bf16", "batch-norm", "attention-dropout"])
def test_the_fingerprint_does_not_depend_on_costs_or_random_numbers(name: str) -> None:
    case = BY_NAME[name]
    found = set()
    for costs in ("roofline", "measure", "roofline"):
        model, args, kwargs = case.make()
        with case.precision():
            found.add(remat.export(model.train(), args, kwargs, costs=costs).problem.fingerprint)
    assert len(found) == 1


def test_two_exports_are_byte_for_byte_equal(tmp_path: Path) -> None:
    for index in range(2):
        model, args, kwargs = BY_NAME["transformer-encoder"].make()
        remat.export(model.train(), args, kwargs, costs="roofline").save(tmp_path / f"{index}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_the_plan_of_a_saved_problem_fits_a_later_export(tmp_path: Path) -> None:
    model, args, kwargs = BY_NAME["batch-norm"].make()
    path = tmp_path / "problem.json"
    remat.export(model.train(), args, kwargs, costs="roofline").save(path)
    plan = store_all(load_problem(path))
    later = remat.export(model, args, kwargs, costs="roofline")
    assert torch.equal(remat.apply(later, plan)(*args), storing_all(model, args)(*args))
