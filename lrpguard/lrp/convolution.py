"""Convolutions with modified weights, and the input gradient of any, which needs no input.

Torch keeps the input of a convolution for a weight gradient that nobody asks for (pytorch#133566).
On a CPU a kernel of one place is run as a matrix product, since torch's own way is slower
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FEW_PLACES = 100
"""Images of fewer places lie side by side in one matrix product; alone they are too narrow."""


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution.

    Attributes:
        stride: Stride of each spatial dimension.
        padding: Zeros on either side of each spatial dimension.
        dilation: Dilation of each spatial dimension.
        groups: Groups of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Convolution | None:
        """Return the geometry of a call of ``conv1d``, ``conv2d`` or ``conv3d``.

        None for an image without batch dimension, and where "same" padding is uneven.
        """
        dims = weight.ndim - 2
        if x.ndim != weight.ndim:
            return None
        dilation = each_dimension(dilation, dims)
        if padding == "same":
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(r % 2 for r in reach):
                return None
            padding = tuple(r // 2 for r in reach)
        elif padding == "valid":
            padding = 0
        stride, padding = each_dimension(stride, dims), each_dimension(padding, dims)
        return Convolution(stride, padding, dilation, groups)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the convolution of ``x`` [B, C, ...] by a matrix product, None where it is none.

        It equals the library's up to rounding.
        """
        if not self._is_product(x, weight):
            return None
        y = _mix_channels(x[self._reached], weight.flatten(1), memory_format(x))
        return y if bias is None else y.add_(bias.view(-1, *(1 for _ in self.stride)))

    def gradient(self, c: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the gradient at an input of this shape for ``c`` at the output.

        It equals the library's up to rounding. The library's kernel looks at no more of its input
        than the shape and the memory format, so it gets memory that nothing has written to.
        """
        layout = memory_format(c)
        like = torch.empty(shape, dtype=c.dtype, device=c.device, memory_format=layout)
        if self._is_product(c, weight):
            mixed = _mix_channels(c, weight.flatten(1).t(), layout)
            if set(self.stride) == {1}:
                return mixed
            like.zero_()[self._reached] = mixed
            return like
        gradient: Tensor = torch.ops.aten.convolution_backward(
            c,
            like,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0,) * len(self.stride),
            self.groups,
            (True, False, False),
        )[0]
        return gradient

    def _is_product(self, x: Tensor, weight: Tensor) -> bool:
        """Say whether it is run as a matrix product: each output depends on one place."""
        one_place = set(weight.shape[2:]) == {1} and set(self.padding) == {0}
        return one_place and self.groups == 1 and x.device.type == "cpu"

    @property
    def _reached(self) -> tuple[slice, ...]:
        """Where the places lie that a kernel of one place reaches."""
        return (slice(None), slice(None), *(slice(None, None, step) for step in self.stride))


def _mix_channels(x: Tensor, weight: Tensor, layout: torch.memory_format) -> Tensor:
    """Return a matrix [K, C] times the channels of ``x`` [B, C, ...], in a memory format."""
    if layout != torch.contiguous_format:
        return torch.matmul(x.movedim(1, -1), weight.t()).movedim(-1, 1)
    flat = x.flatten(2)
    images, channels, places = flat.shape
    if places >= _FEW_PLACES:
        mixed = torch.matmul(weight, flat)
    else:
        side_by_side = flat.transpose(0, 1).reshape(channels, images * places)
        product = torch.mm(weight, side_by_side).view(-1, images, places)
        mixed = product.transpose(0, 1).contiguous()
    return mixed.view(images, -1, *x.shape[2:])


def halves(x: Tensor) -> Tensor:
    """Return the values above zero and those below, side by side: [B, 2 C, ...] of [B, C, ...]."""
    both, above, below = _side_by_side(x)
    torch.clamp(x, min=0, out=above)
    torch.clamp(x, max=0, out=below)
    return both


def sides(factor: Tensor, c: Tensor) -> Tensor:
    """Return ``factor * c`` where the factor is above zero and where it is not, side by side."""
    both, above, below = _side_by_side(factor)
    torch.mul(factor, c, out=below)
    torch.ops.aten.threshold_backward.grad_input(below, factor, 0, grad_input=above)
    below.sub_(above)
    return both


def _side_by_side(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for twice the channels of ``x``, and its two halves."""
    shape = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    both = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    above, below = both.chunk(2, 1)
    return both, above, below


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of a tensor: channels_last in 2 or 3 dimensions, or contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format


def each_dimension(value: Any, length: int) -> tuple[int, ...]:
    """Return a setting of one or each spatial dimension as one of each."""
    if isinstance(value, (tuple, list)):
        return tuple(value) * (length if len(value) == 1 else 1)
    return (int(value),) * length
