"""The models with which all of `remat` is tested: one table, `CASES`.

First the zoo (`examples/zoo`), then small models that have one feature each. To add a case, write a factory that
returns (model, args) or (model, args, kwargs) and add one line to the table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from examples.zoo import densenet, encoder, huggingface, inception, mobilenet, recurrent, resnet, unet

from . import feature_calls, feature_nets

ModelCall = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""model, args, kwargs"""


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[[], tuple[Any, ...]]
    autocast: bool = False
    """Run the forward inside torch.autocast("cpu", torch.bfloat16)."""
    eager_bit_equal: bool = True
    """The captured graph, run as it was captured, gives eager's gradients bit for bit."""
    why_not: str = ""
    """The cause if it does not, in a sentence."""

    def make(self) -> ModelCall:
        """Return the same model and inputs at every call; the state of the global generator does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            built = self.factory()
        model, args, kwargs = built if len(built) == 3 else (*built, {})
        return model, args, kwargs

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward runs."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in a model's output, in order, also inside a dataclass that pytree does not know."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name))


def loss_of(output: Any) -> Tensor:
    """Return a scalar that depends on every differentiable output, each element with a weight of its own."""
    total = torch.zeros(())
    for position, tensor in enumerate(tensors(output)):
        if tensor.requires_grad:
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
            total = total + (weights * tensor).sum().float() / (1 + position)
    return total


def step(case: Case, call: ModelCall, seed: int = 1) -> Any:
    """Run one forward and one backward with the global generator at `seed`, and return the output."""
    model, args, kwargs = call
    torch.manual_seed(seed)
    with case.precision():
        output = model(*args, **kwargs)
    loss_of(output).backward()
    return output


ZOO = (
    Case("resnet18", functools.partial(resnet.resnet18, size=32, width=32, classes=10)),
    Case("resnet50", functools.partial(resnet.resnet50, classes=10)),
    Case("densenet121", functools.partial(densenet.densenet121, classes=10)),
    Case("unet", functools.partial(unet.unet, size=32)),
    Case("mobilenet", functools.partial(mobilenet.mobilenet, classes=10)),
    Case("mobilenet-drop-path", functools.partial(mobilenet.mobilenet, classes=10, drop_path=0.2)),
    Case("inception", functools.partial(inception.inception, classes=10)),
    Case("lstm", functools.partial(recurrent.lstm, steps=20, width=64)),
    Case("gru-cell-100", functools.partial(recurrent.gru_cell, steps=100, width=32, vocabulary=100)),
    Case("transformer-encoder", functools.partial(encoder.encoder, length=32, width=64, layers=3)),
    Case("gpt2", functools.partial(huggingface.gpt2, length=32, width=64, layers=3)),
    Case("bert", functools.partial(huggingface.bert, length=32, width=64, layers=3)),
    Case("llama", functools.partial(huggingface.llama, length=32, width=64, layers=3)),
    Case("t5", functools.partial(huggingface.t5, length=32, width=64)),
    Case("vit", functools.partial(huggingface.vit, size=32, width=64, layers=3)),
)

FEATURES = (
    Case("tied-weights", feature_nets.tied_weights),
    Case("parameter-used-twice", feature_nets.parameter_used_twice),
    Case("unused-parameter", feature_nets.unused_parameter),
    Case("frozen-parameters", feature_nets.frozen_parameters),
    Case("lora", feature_nets.lora),
    Case("gradient-layouts", feature_nets.gradient_layouts),
    Case("batch-norm", feature_nets.batch_norm),
    Case("batch-norm-frozen-statistics", feature_nets.batch_norm_frozen_statistics),
    Case("moving-average-buffer", feature_nets.moving_average_buffer),
    Case("replaced-buffer", feature_nets.replaced_buffer),
    Case("dropout", feature_nets.dropout),
    Case("drop-path", feature_nets.drop_path),
    Case("noise", feature_nets.noise),
    Case("attention-dropout", feature_nets.attention_dropout),
    Case("checkpointed", feature_nets.checkpointed),
    Case("in-place", feature_calls.in_place),
    Case("input-changed-in-place", feature_calls.input_changed_in_place),
    Case("view-of-intermediate", feature_calls.view_of_intermediate),
    Case("aliasing-outputs", feature_calls.aliasing_outputs),
    Case("output-and-its-view", feature_calls.output_and_its_view),
    Case("input-returned", feature_calls.input_returned),
    Case("view-of-input-returned", feature_calls.view_of_input_returned),
    Case("output-returned-twice", feature_calls.output_returned_twice),
    Case("parameter-returned", feature_calls.parameter_returned),
    Case("keyword-inputs", feature_calls.keyword_inputs),
    Case("leaf-input-with-gradient", feature_calls.leaf_input_with_gradient),
    Case("non-leaf-input-with-gradient", feature_calls.non_leaf_input_with_gradient),
    Case("one-input-twice", feature_calls.one_input_twice),
    Case("non-contiguous-input", feature_calls.non_contiguous_input),
    Case("integer-inputs", feature_calls.integer_inputs),
    Case("dict-output", feature_calls.dict_output),
    Case("dataclass-output", feature_calls.dataclass_output),
    Case("tuple-with-none", feature_calls.tuple_with_none),
    Case("values-beside-tensors", feature_calls.values_beside_tensors),
    Case("two-heads", feature_calls.two_heads),
    Case("returns-logits", feature_calls.returns_logits),
    Case("returns-loss", feature_calls.returns_loss),
    Case("custom-function", feature_nets.custom_function),
    Case("autocast-bf16", feature_nets.autocast_mlp, autocast=True),
    Case("autocast-bf16-dropout", feature_nets.autocast_dropout, autocast=True),
    Case("autocast-inside", feature_nets.autocast_inside),
    Case("rnn", functools.partial(feature_nets.recurrent_layer, nn.RNN)),
    Case("gru", functools.partial(feature_nets.recurrent_layer, nn.GRU)),
    Case(
        "lstm-bidirectional-dropout",
        functools.partial(feature_nets.recurrent_layer, nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2),
    ),
    Case("gru-dropout", functools.partial(feature_nets.recurrent_layer, nn.GRU, num_layers=3, dropout=0.2)),
)

CASES = ZOO + FEATURES
