"""Backward passes that keep bits, not activations.

Torch keeps the output of a ReLU for its sign, and eight bytes an output of a max-pool. Here a
ReLU keeps one bit a value, a max-pool one byte an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrpguard.lrp.convolution import each_dimension

_GATHER = 0x0102040810204080
"""Multiplied with eight bytes of 0 or 1, it leaves them as the bits of the highest byte."""

_SPREAD = 0x0101010101010101
"""Multiplied with a byte, it puts a copy of it into each of eight bytes."""

_ONE_EACH = 0x8040201008040201 - 2**64
"""Keeps another bit of each of eight bytes."""


def pack_bits(mask: Tensor) -> Tensor:
    """Return a bool tensor as bits: eight to a byte, uint8 [ceil(numel / 8)]."""
    flat = mask.flatten().view(torch.uint8)
    missing = -len(flat) % 8
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the bool tensor of a shape that :func:`pack_bits` has packed."""
    spread = (bits.to(torch.int64) * _SPREAD) & _ONE_EACH
    count = torch.Size(shape).numel()
    return spread.view(torch.uint8)[:count].view(shape) != 0


def relu(x: Tensor, *, in_place: bool) -> Tensor:
    """Return the ReLU of an activation; its backward keeps one bit a value."""
    result: Tensor = _Relu.apply(x, in_place)
    return result


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, in_place: bool) -> Tensor:
        ctx.shape = x.shape
        ctx.save_for_backward(pack_bits(x > 0))
        if in_place:
            ctx.mark_dirty(x)
            return x.relu_()
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        mask = unpack_bits(bits, ctx.shape)
        return mask.to(gradients[0].dtype).mul_(gradients[0]), None


def max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor | None:
    """Run ``F.max_pool2d`` with one byte an output kept.

    None for an image without batch dimension, and for a window of more than 256 values.
    """
    window = each_dimension(kernel_size, 2)
    if x.ndim != 4 or window[0] * window[1] > 256:
        return None
    pool = _Pool(
        window,
        each_dimension(stride, 2) if stride not in (None, (), []) else window,
        each_dimension(padding, 2),
        each_dimension(dilation, 2),
        ceil_mode,
    )
    result: Tensor = _MaxPool.apply(x, pool)
    return result


@dataclass(frozen=True)
class _Pool:
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool

    def offsets(self, width: int, device: torch.device) -> Tensor:
        """Return where each value of a window lies, from its first, in a plane of this width."""
        rows, columns = (
            torch.arange(k, device=device) * d
            for k, d in zip(self.window, self.dilation, strict=True)
        )
        return (rows[:, None] * width + columns).flatten()

    def first(self, out: Sequence[int], width: int, device: torch.device) -> Tensor:
        """Return where the first value of each output's window lies, padding counted."""
        rows, columns = (
            torch.arange(n, device=device) * s - p
            for n, s, p in zip(out, self.stride, self.padding, strict=True)
        )
        return rows[:, None] * width + columns


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: _Pool) -> Tensor:
        y, winners = torch.ops.aten.max_pool2d_with_indices(
            x, pool.window, pool.stride, pool.padding, pool.dilation, pool.ceil
        )
        offsets = pool.offsets(x.shape[3], x.device)
        code = torch.zeros(int(offsets[-1]) + 1, dtype=torch.uint8, device=x.device)
        code[offsets] = torch.arange(len(offsets), device=x.device).to(torch.uint8)
        winners -= pool.first(y.shape[2:], x.shape[3], x.device)
        ctx.pool, ctx.shape = pool, x.shape
        ctx.save_for_backward(code[winners])
        pooled: Tensor = y
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        pool, width = ctx.pool, ctx.shape[3]
        winners = pool.offsets(width, code.device)[code.int()]
        winners += pool.first(code.shape[2:], width, code.device)
        like = gradients[0].new_empty(1).expand(ctx.shape)
        return (
            torch.ops.aten.max_pool2d_with_indices_backward(
                gradients[0],
                like,
                pool.window,
                pool.stride,
                pool.padding,
                pool.dilation,
                pool.ceil,
                winners,
            ),
            None,
        )
