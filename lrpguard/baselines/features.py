"""Activations inside a classifier, read without touching it.

A ``TorchFunctionMode`` sees each linear layer and convolution as it is called. It is local to
its thread and leaves nothing on the model, as hooks would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lrpguard.baselines.base import finite_logits
from lrpguard.errors import UnsupportedModelError

LINEAR = functional.linear
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True)
class Activations:
    """What a batch has shown on its way through a classifier.

    Attributes:
        logits: Logits [B, K].
        layers: Input of every linear layer and convolution but the first, in the order of the
            calls, each averaged over space (or tokens) [B, C].
        penultimate: Input of the last of them that has K outputs: the classifier's head [B, D].
    """

    logits: Tensor
    layers: tuple[Tensor, ...]
    penultimate: Tensor


def activations(model: nn.Module, images: Tensor) -> Activations:
    """Run images [B, C, H, W] through the model, and return what its layers were given.

    Raises:
        UnsupportedModelError: No linear layer or convolution gives K outputs an image.
    """
    with _Taps(len(images)) as taps:
        logits = finite_logits(model, images)
    heads = [tap.given for tap in taps.seen if tap.outputs == logits.shape[1]]
    if not heads:
        raise UnsupportedModelError(
            f"no nn.Linear or convolution of the model has {logits.shape[1]} outputs, one a "
            "class, so there is no penultimate layer to read. Pick a baseline that reads "
            "logits alone, such as 'energy'."
        )
    return Activations(logits, tuple(tap.given for tap in taps.seen[1:]), heads[-1])


def penultimate(model: nn.Module, images: Tensor, *, batch: int) -> Tensor:
    """Return the features of many images, ``batch`` in a pass: float64 on the CPU [n, D]."""
    parts = [activations(model, part).penultimate for part in images.split(batch)]
    return torch.cat(parts).double().cpu()


@dataclass(frozen=True)
class AffineCall:
    """A call of a linear layer or a convolution, taken apart.

    Attributes:
        given: Its input [B, ..., D], or [B, C, ...] of a convolution.
        weight: Its weights; the first dimension counts the outputs.
        rest: Positional arguments after these two.
        options: Keyword arguments besides these two.
    """

    given: Tensor
    weight: Tensor
    rest: tuple[Any, ...]
    options: dict[str, Any]


def affine_call(
    function: object, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> AffineCall | None:
    """Take a call apart if it is one of a linear layer or a convolution."""
    if function is not LINEAR and function not in CONVOLUTIONS:
        return None
    options = dict(kwargs or {})
    given, weight = (
        args[i] if i < len(args) else options.pop(name)
        for i, name in enumerate(("input", "weight"))
    )
    return AffineCall(given, weight, args[2:], options)


@dataclass(frozen=True)
class _Tap:
    given: Tensor
    outputs: int


class _Taps(TorchFunctionMode):
    """Notes the input of each affine call that has one row an image."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.seen: list[_Tap] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = affine_call(func, args, kwargs)
        if call is not None and call.given.ndim > 1 and len(call.given) == self.batch:
            given = call.given.detach()
            pooled = _over_tokens(given) if func is LINEAR else given.flatten(2).mean(2)
            self.seen.append(_Tap(pooled, len(call.weight)))
        return func(*args, **(kwargs or {}))


def _over_tokens(given: Tensor) -> Tensor:
    """Average the input of a linear layer [B, ..., D] over all but its features [B, D]."""
    return given.clone() if given.ndim == 2 else given.flatten(1, -2).mean(1)
