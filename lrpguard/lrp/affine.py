"""An affine operator on the relevance path, and the detour of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lrpguard.lrp.ledger import Ledger

Kind = Literal["convolution", "dense", "normalization"]


@dataclass(frozen=True)
class Affine:
    """One call ``z = function(x, weight, bias)``.

    Attributes:
        function: The operator, with stride, padding and the like bound.
        x: Its input, on the relevance path.
        weight: Its weight, constant.
        bias: Its bias, constant, None where there is none.
        kind: What sort of layer it is.
        name: Dotted name of its module, ``""`` where the weight is no parameter.
        first: No affine operator comes before it.
        output_dim: Dimension of the weight that runs over output channels, None where
            they are interleaved (grouped transposed convolutions).
    """

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    kind: Kind
    name: str
    first: bool
    output_dim: int | None = 0

    def merged(self, scale: Tensor, shift: Tensor) -> Affine | None:
        """Return the one layer that this and a following ``scale * z + shift`` are.

        Args:
            scale: Scale of each output channel [C].
            shift: Shift of each output channel [C].

        Returns:
            The merged layer, None where the output channels are interleaved.
        """
        if self.output_dim is None:
            return None
        shape = [1] * self.weight.ndim
        shape[self.output_dim] = -1
        weight = self.weight * scale.view(shape)
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=weight, bias=bias)


def detour(
    z: Tensor,
    denominators: Sequence[Tensor],
    shares: Sequence[Tensor | float],
    stabilizer: float,
    ledger: Ledger | None,
) -> Tensor:
    """Return ``z``, whose incoming relevance ``z * c`` flows on through other sums.

    Denominator d with share s receives the gradient ``s * z * c / (d + stabilizer * sign(d))``,
    so that each term of d gets relevance in proportion to what it contributes.

    Args:
        z: The operator's value, without graph.
        denominators: Sums with graph, of z's shape.
        shares: Share of the relevance that each receives; they sum to 1 for conservation.
        stabilizer: Keeps denominators off zero, in their own units.
        ledger: Where relevance is booked that no denominator passes on.
    """
    divisors = [_stabilized(d.detach(), stabilizer) for d in denominators]
    result: Tensor = _Detour.apply(z, tuple(divisors), tuple(shares), *denominators)
    if ledger is not None:
        result.register_hook(partial(_book, ledger, 1, z))
        for d in denominators:
            d.register_hook(partial(_book, ledger, -1, d.detach()))
    return result


def _book(ledger: Ledger, sign: int, value: Tensor, c: Tensor) -> None:
    ledger.absorb(sign * (c * value).sum())


class _Detour(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        divisors: tuple[Tensor, ...],
        shares: tuple[Tensor | float, ...],
        *denominators: Tensor,
    ) -> Tensor:
        ctx.shares = shares
        ctx.save_for_backward(z.detach(), *divisors)  # not z, whose trace leads back here
        return z.clone()  # an in-place ReLU may overwrite the result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, *divisors = ctx.saved_tensors
        incoming = gradients[0] * z
        flows = [incoming * s / d for s, d in zip(ctx.shares, divisors, strict=True)]
        return None, None, None, *flows


def _stabilized(denominator: Tensor, stabilizer: float) -> Tensor:
    step = max(stabilizer, torch.finfo(denominator.dtype).tiny)
    return denominator + torch.where(denominator < 0, -step, step)
