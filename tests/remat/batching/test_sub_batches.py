"""SubBatches: the gradients of a batch in parts are those of the whole, or the call raises an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import remat
from remat.allocator import peak_while
from remat_solvers.errors import InputError
from tests.remat.models.table import CASES, tensors
from tests.remat.modules import recomputations

CASE = {case.name: case for case in CASES}
INDEPENDENT_ROWS = (  # without batch norm, and in eval mode without random ops: rows do not interact
    "frozen-parameters",
    "gru",
    "in-place",
    "integer-inputs",
    "keyword-inputs",
    "llama",
    "parameter-used-twice",
    "returns-logits",
    "returns-loss",
    "rnn",
    "t5",
    "tied-weights",
    "transformer-encoder",
    "two-heads",
    "unused-parameter",
    "vit",
)


class WithLoss(nn.Module):
    """Returns the model's own loss, or otherwise a mean or sum over rows of a smooth function of its first output."""

    def __init__(self, model: nn.Module, reduction: str = "mean") -> None:
        super().__init__()
        self.model = model
        self.reduction = reduction

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.model(*args, **kwargs)
        first = next(t for t in tensors(output) if t.is_floating_point())
        if first.ndim == 0:
            return first
        rows = (first.sigmoid() * first).reshape(len(first), -1).mean(1)
        return rows.mean() if self.reduction == "mean" else rows.sum()


def with_loss(name: str, reduction: str = "mean") -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return the case in float64, with a loss."""
    model, args, kwargs = CASE[name].make()
    to_double: Callable[[Any], Any] = lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t  # noqa: E731
    args, kwargs = torch.utils._pytree.tree_map(to_double, (args, kwargs))
    return WithLoss(model.double(), reduction), args, kwargs


def gradients(net: nn.Module, args: Any = (), kwargs: Any = None, scale: float = 1.0) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss, and every parameter's gradient by name."""
    net.zero_grad()
    loss = net(*args, **(kwargs or {}))
    (loss * scale).backward()
    return loss.detach(), {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def assert_close(found: tuple[Tensor, dict[str, Any]], expected: tuple[Tensor, dict[str, Any]]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", INDEPENDENT_ROWS)
def test_parts_leave_the_gradients_of_the_whole_batch(name: str, reduction: str) -> None:
    if CASE[name].make()[2].get("labels") is not None or name == "returns-loss":
        reduction = "mean"  # the model's own loss is one
    model, args, kwargs = with_loss(name, reduction)
    model.eval()
    batch = max(len(t) for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim)
    whole = ("extra",) if name == "keyword-inputs" else ()
    expected = gradients(model, args, kwargs)
    assert any(g is not None and g.abs().max() > 0 for g in expected[1].values())
    for rows in range(1, batch + 1):  # 3 of 4: an uneven last part
        assert_close(gradients(remat.SubBatches(model, rows, reduction=reduction, whole=whole), args, kwargs), expected)


def integer_model() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a model whose sums are exact in any order, because all numbers are small integers."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    x, y = (torch.randint(-3, 4, shape, generator=generator).float() for shape in ((8, 5), (8, 1)))
    return SquaredError(model), (x, y)


class SquaredError(nn.Module):
    """Returns the sum or the mean of the squared error over the rows."""

    def __init__(self, model: nn.Module, reduction: str = "sum") -> None:
        super().__init__()
        self.model = model
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(self.model(x), y, reduction=self.reduction)


@pytest.mark.parametrize(
    ("reduction", "rows"), [("sum", 1), ("sum", 3), ("sum", 8), ("mean", 1), ("mean", 2), ("mean", 4), ("mean", 9)]
)
def test_gradients_are_bit_equal_where_sums_are_exact(reduction: Any, rows: int) -> None:
    """The weights of a mean over 8 rows are powers of two, so it is exact too."""
    model, args = integer_model()
    model.reduction = reduction
    loss, expected = gradients(model, args)
    found_loss, found = gradients(remat.SubBatches(model, rows, reduction=reduction), args)
    assert torch.equal(found_loss, loss)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Tokens(nn.Module):
    """Returns a mean over the targets that are not -100, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.embedding(tokens)))
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_a_mean_over_counted_targets_and_a_loss_among_other_outputs() -> None:
    """The rows have 4, 1, 0 and 2 targets, so a mean over rows has other gradients."""
    model = Tokens().double()
    tokens = torch.randint(20, (4, 4), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    for row, targets in enumerate((4, 1, 0, 2)):
        labels[row, targets:] = -100
    model.zero_grad()
    model(tokens, labels)["loss"].backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    options: dict[str, Any] = {"loss": lambda output: output["loss"]}
    for rows in (1, 2, 3):
        net = remat.SubBatches(model, rows, count=lambda tokens, labels: (labels != -100).sum(), **options)
        torch.testing.assert_close(list(gradients(net, (tokens, labels))[1].values()), expected, rtol=1e-10, atol=1e-12)
    by_rows = gradients(remat.SubBatches(model, 2, **options), (tokens, labels))[1]
    assert not torch.allclose(by_rows["head.weight"], expected[1])
    with pytest.raises(InputError, match="the mean is undefined"):
        remat.SubBatches(model, 2, count=lambda tokens, labels: 0, **options)(tokens, labels)


def test_a_part_may_have_a_plan() -> None:
    """It is bit-equal to the same parts without one; the last part has another shape, and is planned separately."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU())]
    model = SquaredError(nn.Sequential(*blocks), "mean")
    x, y = torch.randn(640, 16), torch.randn(640, 16)
    expected = gradients(remat.SubBatches(model, 256), (x, y))
    part = remat.solve(model, "60%", args=(x[:256], y[:256]), solver="chen", costs="roofline", on_change="replan")
    assert recomputations(part.plan) > 0
    for _ in range(2):
        found = gradients(remat.SubBatches(part, 256), (x, y))
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])


def test_parts_take_less_memory() -> None:
    """An eighth of the rows has an eighth of the activations; the gradients are small here."""
    torch.manual_seed(0)
    model = SquaredError(nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.Tanh())]), "mean")
    x, y = torch.randn(4096, 32), torch.randn(4096, 32)

    def peak(net: nn.Module) -> int:
        net.zero_grad()
        return peak_while(lambda: net(x, y).backward(), torch.device("cpu"))

    assert peak(remat.SubBatches(model, 512)) < 0.25 * peak(model)


def test_batch_norm_is_refused_while_it_trains() -> None:
    model, args, _ = with_loss("batch-norm")
    net = remat.SubBatches(model, 3)
    with pytest.raises(InputError, match=r"BatchNorm2d 'model\.1' takes its statistics from the batch.*eval mode"):
        net(*args)
    mixed, args, _ = with_loss("batch-norm-frozen-statistics")
    with pytest.raises(InputError, match=r"BatchNorm2d 'model\.4'"):  # the first one is frozen
        remat.SubBatches(mixed, 3)(*args)
    expected = gradients(model.eval(), args)
    assert_close(gradients(remat.SubBatches(model, 3), args), expected)
    without_statistics = WithLoss(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))).eval()
    with pytest.raises(InputError, match="statistics"):
        remat.SubBatches(without_statistics, 2)(torch.randn(4, 3))
    assert remat.SubBatches(mixed, 4)(*args).requires_grad  # one part: a call like any other


def test_gradients_scale_with_that_of_the_loss_and_accumulate() -> None:
    model, args = integer_model()
    net = remat.SubBatches(model, 3, reduction="sum")
    once = gradients(net, args)[1]
    scaled = gradients(net, args, scale=4.0)[1]
    net.zero_grad()
    for loss in [net(*args), net(*args)]:  # two calls before a backward
        loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(scaled[name], 4 * once[name])
        assert torch.equal(parameter.grad, 2 * once[name])


def test_a_second_backward_is_refused() -> None:
    model, args = integer_model()
    loss = remat.SubBatches(model, 3, reduction="sum")(*args)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the module again"):
        loss.backward()


def test_it_has_the_names_and_state_of_the_model() -> None:
    model, args = integer_model()
    net = remat.SubBatches(model, 3, reduction="sum")
    assert list(net.state_dict()) == list(model.state_dict())
    assert [id(p) for p in net.parameters()] == [id(p) for p in model.parameters()]
    assert not net.eval().training
    assert not model.training
    net.train()
    assert model.training
    with torch.no_grad():
        assert torch.equal(net(*args), model(*args))
    net.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()})
    assert all(not p.any() for p in model.parameters())
    other = copy.deepcopy(net)
    other.double()
    assert {p.dtype for p in other.model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_training_in_parts_equals_training_as_a_whole() -> None:
    torch.manual_seed(0)
    plain = SquaredError(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)), "mean").double()
    split = copy.deepcopy(plain)
    for model, net in ((plain, plain), (split, remat.SubBatches(split, 4))):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            x, y = (torch.randn(10, width, generator=generator, dtype=torch.float64) for width in (6, 2))
            net(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert model.training
    torch.testing.assert_close(split.state_dict(), plain.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remat.SubBatches(nn.Linear(3, 3), 2)(torch.ones(4, 3)), r"scalar.*shape \(2, 3\)"),
        (lambda: remat.SubBatches(integer_model()[0], 2)(torch.ones(4, 5), torch.ones(3, 1)), "3 and 4 rows"),
        (lambda: remat.SubBatches(integer_model()[0], 2)(1.0, 2.0), "no rows"),
        (
            lambda: remat.SubBatches(integer_model()[0], 2)(torch.ones(4, 5).requires_grad_(), torch.ones(4, 1)),
            "argument 0 requires a gradient",
        ),
        (lambda: remat.SubBatches(nn.Linear(3, 3), 0), "at least 1"),
        (lambda: remat.SubBatches(nn.Linear(3, 3), 2, reduction="max"), "mean or sum"),  # type: ignore[arg-type]
        (lambda: remat.SubBatches(nn.Linear(3, 3), 2, reduction="sum", count=len), "no weights"),
    ],
)
def test_calls_that_cannot_be_split_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
