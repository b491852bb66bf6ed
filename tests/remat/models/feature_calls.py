"""Small models that have one feature of a call each: of its inputs, its outputs, or its changes in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.remat.models.building import BATCH, HIDDEN, WIDTH, Lambda, mlp, rows


def in_place() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x).relu_()
        y = self.second(h)
        y.add_(x)
        y[:, 0] = 0.0
        y.mul_(0.5)
        return self.third(y)

    parts = {"first": nn.Linear(WIDTH, HIDDEN), "second": nn.Linear(HIDDEN, WIDTH), "third": nn.Linear(WIDTH, WIDTH)}
    return Lambda(forward, **parts), (rows(),)


def input_changed_in_place() -> tuple[Any, ...]:
    """The caller's tensor is different after forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.body(x.clone())
        x.add_(1.0)
        return y * 2.0

    return Lambda(forward, body=mlp()), (rows(),)


def view_of_intermediate() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).view(2, -1, WIDTH).transpose(1, 2)

    return Lambda(forward, body=mlp()), (rows(),)


def aliasing_outputs() -> tuple[Any, ...]:
    """Two outputs on the storage of one intermediate, which is not an output itself."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.body(x))
        return y[:, : WIDTH // 2], y.t()

    return Lambda(forward, body=mlp()), (rows(),)


def output_and_its_view() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.body(x))
        return y, y.view(-1)

    return Lambda(forward, body=mlp()), (rows(),)


def input_returned() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.body(x)

    return Lambda(forward, body=mlp()), (rows(),)


def view_of_input_returned() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x.t()

    return Lambda(forward, body=mlp()), (rows(),)


def output_returned_twice() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y, y

    return Lambda(forward, body=mlp()), (rows(),)


def parameter_returned() -> tuple[Any, ...]:
    """A parameter as an output, as a regulariser outside the model needs it."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.linear.weight

    return Lambda(forward, linear=nn.Linear(WIDTH, WIDTH)), (rows(),)


# Inputs


def keyword_inputs() -> tuple[Any, ...]:
    def forward(
        self: Any, x: Tensor, *, scale: Tensor, mask: Tensor | None = None, shift: float = 0.0, extra: dict[str, Tensor]
    ) -> Tensor:
        y = self.body(x * scale) + shift + extra["bias"]
        return y if mask is None else y.masked_fill(mask, 0.0)

    kwargs = {"scale": rows(), "mask": rows() > 1.0, "shift": 0.5, "extra": {"bias": torch.randn(WIDTH)}}
    return Lambda(forward, body=mlp()), (rows(),), kwargs


def leaf_input_with_gradient() -> tuple[Any, ...]:
    return mlp(), (rows().requires_grad_(),)


def non_leaf_input_with_gradient() -> tuple[Any, ...]:
    """The input has a history: its gradient flows on to the ops that computed it."""
    x = rows().requires_grad_() * 2.0
    x.retain_grad()
    return mlp(), (x,)


def one_input_twice() -> tuple[Any, ...]:
    """One tensor in two argument places, with one summed gradient."""

    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x * 2.0) + y

    x = rows().requires_grad_()
    return Lambda(forward, body=mlp()), (x, x)


def non_contiguous_input() -> tuple[Any, ...]:
    return mlp(), (torch.randn(WIDTH, BATCH).t(),)


def integer_inputs() -> tuple[Any, ...]:
    def forward(self: Any, tokens: Tensor, offset: Tensor) -> Tensor:
        return self.body(self.embedding((tokens + offset) % 50))

    model = Lambda(forward, embedding=nn.Embedding(50, WIDTH, padding_idx=0), body=mlp())
    return model, (torch.randint(50, (BATCH, 6)), torch.tensor(3))


# Outputs


def dict_output() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> dict[str, Any]:
        h = self.body(x)
        return {"logits": self.head(h), "states": [h, h.detach().mean()]}

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(),)


@dataclasses.dataclass
class Prediction:
    """A dataclass that is not registered with pytree, as most are not."""

    logits: Tensor
    hidden: Tensor
    note: str = "plain"


def dataclass_output() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Prediction:
        h = self.body(x)
        return Prediction(self.head(h), h)

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(),)


def tuple_with_none() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, None, Tensor]:
        y = self.body(x)
        return y, None, y.argmax(1)

    return Lambda(forward, body=mlp()), (rows(),)


def values_beside_tensors() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Any, ...]:
        return self.body(x), x.shape[0], "ready", 0.5, True

    return Lambda(forward, body=mlp()), (rows(),)


def two_heads() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.trunk(x))
        return self.classes(h), self.value(h).squeeze(1)

    parts = {"trunk": mlp(), "classes": nn.Linear(WIDTH, 5), "value": nn.Linear(WIDTH, 1)}
    return Lambda(forward, **parts), (rows(),)


def returns_logits() -> tuple[Any, ...]:
    return nn.Sequential(mlp(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)), (rows(),)


def returns_loss() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(self.body(x)), labels)

    return Lambda(forward, body=mlp(), head=nn.Linear(WIDTH, 5)), (rows(), torch.randint(5, (BATCH,)))
