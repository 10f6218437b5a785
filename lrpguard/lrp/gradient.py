"""The plain input gradient of a network, by no rule: what LRP is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrpguard.errors import ModelOutputError
from lrpguard.lrp.engine import (
    channels_named,
    check_logits,
    eager_call,
    graph_mode,
    held_for_backward,
    network_input,
    start_gradient,
)
from lrpguard.lrp.trace import substitute


@dataclass(frozen=True)
class InputGradient:
    """Gradient of the explained logit at the input of the network.

    Attributes:
        logits: Pre-softmax outputs [B, K].
        input: What the network received, after a known normalisation [B, C, H, W].
        gradient: Derivative of the explained logit by it [B, C, H, W].
    """

    logits: Tensor
    input: Tensor
    gradient: Tensor


def input_gradient(model: nn.Module, images: Tensor, target: Tensor | None = None) -> InputGradient:
    """Differentiate the explained logit by the network's input, by plain autograd.

    It works on any network that autograd can differentiate, also where LRP refuses.

    Args:
        model: Eager module in eval mode, from [B, C, H, W] to logits [B, K].
        images: Pixels in [0, 1] (noise may carry them beyond), on the model's device, [B, C, H, W].
        target: Explained class of each image [B]; None explains the predicted one.

    Raises:
        ModelOutputError: The output is not a floating-point tensor [B, K], or does not depend
            on the input in a differentiable way.
    """
    network, x = network_input(model, images)
    with graph_mode():
        leaf, logits = _forward(network, x)
        start = start_gradient(logits, target)
        (gradient,) = torch.autograd.grad(logits, [leaf], start, allow_unused=True)
    if gradient is None:
        raise _no_gradient()
    return InputGradient(logits.detach(), x.detach(), gradient)


def gradient_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that one pass of :func:`input_gradient` keeps for its backward.

    Args:
        model: As for :func:`input_gradient`.
        images: As for :func:`input_gradient`; one image is enough.
    """
    network, x = network_input(model, images)
    with held_for_backward(model) as storages, graph_mode():
        _forward(network, x)
    return sum(storages.values()) + x.nbytes


def _forward(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    with _ConstantWeights(), channels_named(network, x):
        # A copy, because a model may work on its input in place; a leaf forbids that.
        logits = check_logits(eager_call(network)(leaf.clone()), len(x))
    if not logits.requires_grad:
        raise _no_gradient()
    return leaf, logits


def _no_gradient() -> ModelOutputError:
    return ModelOutputError(
        "the logits do not depend on the input in a differentiable way, so they have no gradient. "
        "Does the model leave the graph (detach, NumPy, torch.no_grad)?"
    )


class _ConstantWeights(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Cut the weights off the graph, so that nothing is kept for their gradients.

    Weights made in inference mode, which autograd refuses to keep, are copied.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return func(*substitute(args, _cut), **substitute(kwargs or {}, _cut))


def _cut(tensor: Tensor) -> Tensor:
    if tensor.is_inference():
        return tensor.clone()
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
