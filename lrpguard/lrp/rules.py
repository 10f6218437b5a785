"""One small class a rule: how an affine operator passes relevance back.

The engine propagates ``c`` with relevance ``R = a * c`` for an activation ``a``, so a
rule is a change to the gradient of the operator. Epsilon and zero change nothing but the
incoming ``c``; the others send the relevance through modified weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.lrp.affine import Affine, Flow, Weights, smallest
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.trace import is_nonnegative

NEGLIGIBLE = 0.01
"""Epsilon below this share of a dtype's machine epsilon is not applied.

It would change the factor ``z / (z + epsilon)`` by more than rounding only where
``|z| < NEGLIGIBLE``: on SqueezeNet at epsilon = 1e-9 in float32 leaving it out changes
the relevance map by 1.5e-7, below the rounding of the pass itself (2.6e-7).
"""

_CANCELLING = 1e-3
"""Below it the sums of gamma may cancel to zero, as ``z`` does; above it they are >= gamma p."""

Part = tuple[Hashable, Callable[[Tensor], Tensor]]
"""A part of the weights by name, and how it is made of them."""


class RefusalError(Exception):
    """Raised where a rule cannot be applied; the mode adds the operator's and module's name."""


class Rule:
    """How the output ``z`` (bias included) of an affine operator receives relevance."""


class GradientRule(Rule, ABC):
    """A rule that needs no other weights than the layer's own."""

    @abstractmethod
    def applies(self, dtype: torch.dtype) -> bool:
        """Say whether the rule differs from the plain gradient in a dtype."""

    @abstractmethod
    def attach(self, z: Tensor, ledger: Ledger | None) -> Tensor:
        """Return ``z``, or a copy of it, whose incoming gradient follows this rule.

        Args:
            z: Output of the operator, part of the autograd graph.
            ledger: Where absorbed relevance is booked, if anyone asked.
        """


class WeightRule(Rule, ABC):
    """A rule that sends relevance through modified weights."""

    def check(self, layer: Affine) -> None:
        """Refuse a layer that the rule is not made for, before anything takes its output.

        Raises:
            RefusalError: The rule is for a first layer, and this is none.
        """

    @abstractmethod
    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Return ``value`` itself, with a graph that passes relevance by this rule.

        Args:
            layer: The operator and its input.
            value: Its output ``z``, or ``relu(z)``, without graph.
            ledger: Where absorbed relevance is booked, if anyone asked.
            rectified: ``value`` is ``relu(z)``, so nothing reaches negative outputs.

        Raises:
            RefusalError: The rule does not apply to this layer.
        """


@dataclass(frozen=True)
class Zero(GradientRule):
    """LRP-0: ``R_i = sum_j a_i w_ij / z_j R_j``, the plain gradient times the input.

    Source: Bach et al. 2015; Raulf et al. 2021, equation (1).
    """

    def applies(self, dtype: torch.dtype) -> bool:
        """Never: the rule is the plain gradient."""
        return False

    def attach(self, z: Tensor, ledger: Ledger | None) -> Tensor:
        """Leave the gradient as it is."""
        return z


@dataclass(frozen=True)
class Epsilon(GradientRule):
    """LRP-epsilon: the denominator becomes ``z + epsilon * sign(z)``, with sign(0) = +1.

    With ``R = a * c`` this is one factor ``|z| / (|z| + epsilon)`` on the incoming ``c``.

    Args:
        epsilon: Stabilizer, in units of the layer's output, finite and >= 0. The paper's is 1e-9.

    Raises:
        ConfigurationError: ``epsilon`` is negative or not finite.

    Source: Bach et al. 2015, equation (58).
    """

    epsilon: float = 1e-9

    def __post_init__(self) -> None:
        _check_finite("epsilon", self.epsilon)

    def applies(self, dtype: torch.dtype) -> bool:
        """Say whether the stabilizer is above rounding in a dtype."""
        return self.epsilon > NEGLIGIBLE * torch.finfo(dtype).eps

    def attach(self, z: Tensor, ledger: Ledger | None) -> Tensor:
        """Scale the gradient that reaches ``z`` by ``|z| / (|z| + epsilon)``."""
        if not self.applies(z.dtype):
            return z
        with torch.no_grad():
            magnitude = z.abs()
            factor = magnitude / (magnitude + self.epsilon)
        # A copy, because a batch normalisation may take z without its stabilizer.
        result: Tensor = _Scaled.apply(z, factor)
        if ledger:
            result.register_hook(partial(_book_scaling, ledger, z.detach().clone(), factor))
        return result


def _book_scaling(ledger: Ledger, z: Tensor, factor: Tensor, c: Tensor) -> None:
    ledger.absorb(((c - c * factor) * z).sum())


class _Scaled(torch.autograd.Function):
    """A copy whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None


@dataclass(frozen=True)
class AlphaBeta(WeightRule):
    """LRP-alpha-beta: positive contributions weigh alpha, negative ones beta.

    ``R_i = sum_j (alpha (a_i w_ij)+ / z_j+ - beta (a_i w_ij)- / z_j-) R_j`` with ``z+`` and ``z-``
    the sums of the positive and negative contributions, bias included.

    Args:
        alpha: Weight of the positive contributions, >= 1.
        beta: Weight of the negative contributions; ``alpha - beta`` must be 1.
        stabilizer: Keeps the two sums off zero.

    Raises:
        ConfigurationError: ``alpha - beta`` is not 1, or a value is negative.

    Source: Bach et al. 2015, equation (60).
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-9

    def __post_init__(self) -> None:
        _check_finite("beta", self.beta)
        _check_finite("stabilizer", self.stabilizer)
        if abs(self.alpha - self.beta - 1) > 1e-12:
            raise ConfigurationError(
                f"alpha is {self.alpha} and beta {self.beta}; alpha - beta must be 1, or "
                "relevance is not conserved."
            )

    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Send alpha through the positive and -beta through the negative contributions."""
        up = partial(torch.clamp, min=0.0)
        down = partial(torch.clamp, max=0.0)
        flows = [self._flow(layer, value, ledger, self.alpha, ("up", up), ("down", down))]
        if self.beta:
            flows.append(self._flow(layer, value, ledger, -self.beta, ("down", down), ("up", up)))
        return layer.passing(value, flows, ledger)

    def _flow(
        self,
        layer: Affine,
        value: Tensor,
        ledger: Ledger | None,
        share: float,
        part: Part,
        other: Part,
    ) -> Flow:
        weights = _weights(layer, part, other)
        step = smallest(self.stabilizer, value.dtype) * (1 if share > 0 else -1)
        total, bias = _stabilized_sum(layer, weights, part, step)
        books = None if ledger is None else total - step
        factor = torch.div(value, total, out=total)
        if share != 1:
            factor.mul_(share)
        return Flow(weights, factor, total=books, bias=bias)


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """LRP-z-plus: positive contributions alone, alpha-beta with alpha = 1 and beta = 0.

    Source: Montavon et al. 2017; general form for inputs of either sign, ``x+ w+ + x- w-``.
    """

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class Gamma(WeightRule):
    """LRP-gamma: contributions of the output's own sign are enhanced by ``1 + gamma``.

    Args:
        gamma: Enhancement, finite and >= 0. Large values approach z-plus.
        stabilizer: Keeps the enhanced sums off zero.

    Raises:
        ConfigurationError: A value is negative or not finite.

    Source: Montavon et al. 2019; the general form for inputs of either sign is that of
    Andéol et al. 2021.
    """

    gamma: float = 0.25
    stabilizer: float = 1e-9

    def __post_init__(self) -> None:
        _check_finite("gamma", self.gamma)
        _check_finite("stabilizer", self.stabilizer)

    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Send positive outputs through enhanced positive contributions, negative likewise.

        With p and q the sums of the positive and the negative contributions, ``z = p + q``, the
        denominators are ``z + gamma p`` where z > 0 and ``z + gamma q`` where z < 0. The second
        is ``(2 + gamma) z - (z + gamma p)``: where it is used no two terms of it cancel.
        """
        raised = (("raised", self.gamma), partial(_enhanced, gamma=self.gamma, min=0.0))
        lowered = (("lowered", self.gamma), partial(_enhanced, gamma=self.gamma, max=0.0))
        weights = _weights(layer, raised, lowered)
        step = smallest(self.stabilizer, value.dtype)
        total, bias = _stabilized_sum(layer, weights, raised, step)
        above = None if ledger is None else total - step
        if rectified:
            # Where the ReLU is shut the sum may be zero, too: the factor there is 0, not 0 / 0. So
            # it is where rounding alone leaves a value and no sum. (What is not finite among the
            # activations themselves is so among the logits, which are checked.)
            factor = torch.div(value, total, out=total).nan_to_num_(0.0, 0.0, 0.0)
            return layer.passing(value, [Flow(weights, factor, total=above, bias=bias)], ledger)
        below = None if above is None else (2 + self.gamma) * value - above
        total.sub_(value.clamp_max(0), alpha=2 + self.gamma)
        factor = torch.div(value, total, out=total)
        if self.gamma < _CANCELLING:
            factor.nan_to_num_(0.0, 0.0, 0.0)
        if layer.stacks:  # both ways at once
            weights, bias = self._halved(layer, raised, lowered)
            sums = None if above is None or below is None else torch.cat((above, -below), 1)
            return layer.passing(value, [Flow(weights, factor, 2, sums, bias)], ledger)
        other = _weights(layer, lowered, raised)
        flows = [
            Flow(weights, factor, 1, above, bias),
            Flow(other, factor, -1, below, _bias(layer, lowered)),
        ]
        return layer.passing(value, flows, ledger)

    def _halved(self, layer: Affine, raised: Part, lowered: Part) -> tuple[Weights, Tensor | None]:
        """Return weights and bias for the factors above zero and then for those below."""
        high = (("raised, lowered", self.gamma), partial(_and_minus, raised[1], lowered[1]))
        low = (("lowered, raised", self.gamma), partial(_and_minus, lowered[1], raised[1]))
        return _weights(layer, high, low), _bias(layer, high)


def _check_finite(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name} is {value}; it must be finite and >= 0.")


def _enhanced(values: Tensor, *, gamma: float, **bound: float) -> Tensor:
    return values + gamma * values.clamp(**bound)


def _and_minus(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], values: Tensor
) -> Tensor:
    return torch.cat((first(values), -second(values)))


def _weights(layer: Affine, part: Part, other: Part) -> Weights:
    """Return a part of the weights for inputs above zero, the other for those below."""
    signed = not is_nonnegative(layer.x)
    return Weights(_weight(layer, part), _weight(layer, other) if signed else None)


def _weight(layer: Affine, part: Part) -> Tensor:
    name, make = part
    return layer.made(("weight", name), lambda weight, bias: make(weight))


def _bias(layer: Affine, part: Part) -> Tensor | None:
    name, make = part
    return layer.made(("bias", name), lambda weight, bias: None if bias is None else make(bias))


def _stabilized_sum(
    layer: Affine, weights: Weights, part: Part, step: float
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of contributions plus a stabilizer, and the bias that is part of it."""
    bias = _bias(layer, part)
    if bias is None:
        return layer.weighted(weights, None).add_(step), None
    return layer.weighted(weights, bias + step), bias
