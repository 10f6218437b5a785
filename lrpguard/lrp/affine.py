"""An affine operator on the relevance path, and how relevance passes it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from lrpguard.lrp.convolution import Convolution, halves, sides
from lrpguard.lrp.lean import pack_bits, unpack_bits
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.weights import WeightCache

Kind = Literal["convolution", "dense", "normalization"]
T = TypeVar("T")

Adjoint = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""From ``c`` at the output, a weight and the input's shape to ``c`` at the input."""


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
        sources: The model's tensors that weight and bias come from.
        cache: Where what is made of them is kept.
        output_dim: Dimension of the weight that runs over output channels, None where
            they are interleaved (grouped transposed convolutions).
        adjoint: Its input gradient, which needs no input; None where autograd is to find it.
        geometry: Of a convolution, None of anything else.
        scale: Scale of each output channel by batch normalisations that follow [C].
        shift: Shift of each output channel [C].
        eps: Of those batch normalisations.
    """

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    kind: Kind
    name: str
    first: bool
    sources: tuple[Tensor | None, ...]
    cache: WeightCache
    output_dim: int | None = 0
    adjoint: Adjoint | None = None
    geometry: Convolution | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    eps: tuple[float, ...] = ()

    @property
    def stacks(self) -> bool:
        """Whether channels, with their weights, may lie side by side at its input and output."""
        return self.geometry is not None and self.geometry.groups == 1

    def merged(
        self, scale: Tensor, shift: Tensor, eps: float, sources: tuple[Tensor | None, ...]
    ) -> Affine | None:
        """Return the one layer that this and a following ``scale * z + shift`` are.

        Args:
            scale: Scale of each output channel [C].
            shift: Shift of each output channel [C].
            eps: Of the batch normalisation that they come from.
            sources: The model's tensors that they come from.

        Returns:
            The merged layer, None where the output channels are interleaved.
        """
        if self.output_dim is None:
            return None
        if self.scale is not None and self.shift is not None:
            scale, shift = self.scale * scale, self.shift * scale + shift
        return replace(
            self,
            scale=scale,
            shift=shift,
            eps=(*self.eps, eps),
            sources=(*self.sources, *sources),
        )

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, a batch normalisation that follows merged into them."""
        if self.scale is None or self.shift is None:
            return self.weight, self.bias
        assert self.output_dim is not None
        shape = [1] * self.weight.ndim
        shape[self.output_dim] = -1
        bias = self.shift if self.bias is None else self.bias * self.scale + self.shift
        return self.weight * self.scale.view(shape), bias

    def made(self, key: Hashable, make: Callable[[Tensor, Tensor | None], T]) -> T:
        """Return what ``make`` makes of weight and bias; it is made once.

        Args:
            key: Names what is made.
            make: From weight and bias.
        """
        place = (key, self.output_dim, self.eps)
        return self.cache.get(place, self.sources, lambda: make(*self.parameters()))

    def weighted(self, weights: Weights, bias: Tensor | None) -> Tensor:
        """Return ``x+ positive + x- negative + bias``, without graph."""
        with torch.no_grad():
            x = self.x.detach()
            if weights.negative is None:
                return self._sum(x, weights.positive, bias)
            if self.stacks:
                return self._sum(halves(x), weights.stacked(), bias)
            total = self._sum(x.clamp_min(0), weights.positive, bias)
            return total.add_(self._sum(x.clamp_max(0), weights.negative, None))

    def _sum(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = None if self.geometry is None else self.geometry.product(x, weight, bias)
        return self.function(x, weight, bias) if found is None else found

    def passing(self, value: Tensor, flows: Sequence[Flow], ledger: Ledger | None = None) -> Tensor:
        """Return ``value`` with a graph that sends what comes in on to ``x``.

        Args:
            value: The operator's value, or the ReLU of it, without graph; it is given back.
            flows: The ways on which relevance goes.
            ledger: Where relevance is booked that no flow passes on.
        """
        two = any(f.weights.negative is not None for f in flows)
        below = pack_bits(self.x.detach() < 0) if two else None
        books = None
        if ledger is not None:
            books = _Books(ledger, value.clone(), self._bias_shape(value.ndim))
        back = _Back(tuple(flows), self._adjoint(), tuple(self.x.shape), self.stacks, books)
        factors = [f.factor for f in flows]
        result: Tensor = _Passing.apply(self.x, value, back, below, *factors)
        return result

    def _bias_shape(self, ndim: int) -> tuple[int, ...]:
        """Return the shape in which a bias adds to an output of so many dimensions."""
        channels_first = self.kind == "convolution" or self.scale is not None
        return (-1,) + (1,) * (ndim - 2) if channels_first else ()

    def _adjoint(self) -> Adjoint:
        return self.adjoint or _AutogradAdjoint(self.function, self.x.new_empty(0))


@dataclass(frozen=True)
class _AutogradAdjoint:
    """The input gradient of an operator that has none written down, by running it again."""

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    like: Tensor

    def __call__(self, c: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        with torch.enable_grad():
            x = self.like.new_zeros(shape, dtype=c.dtype).requires_grad_()
            return torch.autograd.grad(self.function(x, weight, None), x, c)[0]


@dataclass(frozen=True)
class Weights:
    """Weights for inputs above zero and for those below.

    Attributes:
        positive: For inputs above zero.
        negative: For inputs below zero; None where the same holds for all, or there are none.
    """

    positive: Tensor
    negative: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Weights:
        """Return them in a dtype."""
        if dtype == self.positive.dtype:
            return self
        negative = None if self.negative is None else self.negative.to(dtype)
        return Weights(self.positive.to(dtype), negative)

    def stacked(self) -> Tensor:
        """Return both side by side in dimension 1."""
        assert self.negative is not None
        return torch.cat((self.positive, self.negative), 1)


@dataclass(frozen=True)
class Flow:
    """One way for relevance out of an affine operator: ``c * factor``, through weights.

    Attributes:
        weights: The weights.
        factor: Factor of ``c`` at each output, None for 1.
        sign: With 1 only factors above zero count, with -1 the size of those below. With 2 there
            are weights for each output twice, of which the first take the factors above zero and
            the second those below, with their sign.
        total: What the weights sum up to, bias included; for the books.
        bias: The bias in it; for the books.
    """

    weights: Weights
    factor: Tensor | None = None
    sign: Literal[0, 1, -1, 2] = 0
    total: Tensor | None = None
    bias: Tensor | None = None

    def of(self, c: Tensor, factor: Tensor | None) -> Tensor:
        """Return what flows this way of ``c``, for the factor that autograd has kept.

        A graph goes back once, so a factor of this flow alone gives its memory for the result;
        autograd refuses a second time, for the factor has changed.
        """
        if factor is None:
            return c
        if self.sign == 2:
            return sides(factor, c)
        if self.sign == 0:
            return factor.mul_(c) if factor.dtype == c.dtype else c * factor
        part = factor.clamp_min(0) if self.sign > 0 else factor.clamp_max(0).neg_()
        return part.mul_(c)


@dataclass(frozen=True)
class _Books:
    """Where a pass books what its flows absorb."""

    ledger: Ledger
    value: Tensor
    bias_shape: tuple[int, ...]

    def book(self, c: Tensor, flow: Flow, flowing: Tensor) -> None:
        total = self.value if flow.total is None else flow.total
        self.ledger.absorb(-(flowing * total).sum())
        if flow.bias is not None:
            bias = flow.bias.view(self.bias_shape) if self.bias_shape else flow.bias
            self.ledger.absorb_bias((flowing * bias).sum())


@dataclass(frozen=True)
class _Back:
    """The backward pass of an affine operator; it holds no activation."""

    flows: tuple[Flow, ...]
    adjoint: Adjoint
    shape: tuple[int, ...]
    stacks: bool
    books: _Books | None

    def run(self, c: Tensor, below: Tensor | None, factors: Sequence[Tensor | None]) -> Tensor:
        """Return ``c`` at the input from ``c`` at the output."""
        if self.books is not None:
            self.books.ledger.absorb((c * self.books.value).sum())
        negative = None if below is None else unpack_bits(below, self.shape)
        total: Tensor | None = None
        for flow, factor in zip(self.flows, factors, strict=True):
            flowing = flow.of(c, factor)
            if self.books is not None:
                self.books.book(c, flow, flowing)
            part = self._through(flow.weights, flowing, negative)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _through(self, weights: Weights, c: Tensor, negative: Tensor | None) -> Tensor:
        weights = weights.to(c.dtype)  # under the model's own autocast they differ
        if negative is None or weights.negative is None:
            return self.adjoint(c, weights.positive, self.shape)
        if self.stacks:
            shape = (self.shape[0], 2 * self.shape[1], *self.shape[2:])
            up, down = self.adjoint(c, weights.stacked(), shape).chunk(2, 1)
        else:
            up = self.adjoint(c, weights.positive, self.shape)
            down = self.adjoint(c, weights.negative, self.shape)
        return torch.where(negative, down, up)


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        back: _Back,
        below: Tensor | None,
        *factors: Tensor | None,
    ) -> Tensor:
        ctx.mark_dirty(value)  # so that it is given back itself, not a view of it
        ctx.back, ctx.dtype = back, x.dtype
        ctx.save_for_backward(below, *factors)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        below, *factors = ctx.saved_tensors
        c = ctx.back.run(gradients[0], below, factors)
        return (c.to(ctx.dtype), None, None, None, *(None for _ in factors))


def detour(value: Tensor, total: Tensor, stabilizer: float, ledger: Ledger | None) -> Tensor:
    """Return ``value``, whose incoming relevance ``value * c`` flows on through another sum.

    The sum gets the gradient ``value * c / (total + stabilizer * sign(total))``, so that each of
    its terms gets relevance in proportion to what it contributes.

    Args:
        value: The operator's value, or the ReLU of it, without graph; it is given back.
        total: A sum with graph, of its shape.
        stabilizer: Keeps the sum off zero, in its own units.
        ledger: Where relevance is booked that the sum does not pass on.
    """
    with torch.no_grad():
        step = smallest(stabilizer, total.dtype)
        factor = value / (total + torch.where(total < 0, -step, step))
        booked = value.clone() if ledger is not None else value
    result: Tensor = _Detour.apply(total, value, factor)
    if ledger is not None:
        result.register_hook(partial(_book, ledger, 1, booked))
        total.register_hook(partial(_book, ledger, -1, total.detach()))
    return result


def smallest(stabilizer: float, dtype: torch.dtype) -> float:
    """Return a stabilizer that is above zero in a dtype."""
    return max(stabilizer, torch.finfo(dtype).tiny)


def _book(ledger: Ledger, sign: int, value: Tensor, c: Tensor) -> None:
    ledger.absorb(sign * (c * value).sum())


class _Detour(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, value: Tensor, factor: Tensor) -> Tensor:
        ctx.mark_dirty(value)
        ctx.save_for_backward(factor)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None
