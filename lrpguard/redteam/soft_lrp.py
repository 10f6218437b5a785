"""Relevance maps with a gradient: LRP on a network whose ReLUs are softened.

The relevance of a ReLU network is a gradient, whose own gradient misses all that the switching of
ReLUs does; softplus in their place brings it back (Dombrowski et al. 2019, "Explanations can be
manipulated and geometry is to blame"). Epsilon is then gradient times input; z-plus and gamma are
written here once more, of operators that can be differentiated twice, as the product's own rules
keep no more than one backward pass needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from lrpguard.attacks.adaptive.explanation import SoftRelu, soft_map
from lrpguard.errors import ConfigurationError
from lrpguard.lrp import Composite, Epsilon, Gamma, Rule, Zero, ZPlus

STEP = 1e-6
"""Keeps sums off zero, in units of a layer's output: wider than LRP's, for the second order."""

_ATTRIBUTE = "_lrpguard_convolution"


def soft_relevance(
    model: nn.Module, images: Tensor, labels: Tensor, composite: Composite
) -> Tensor:
    """Return relevance maps of the softened network, with a gradient [B, H, W].

    Args:
        model: From images [B, C, H, W] to logits, its convolutions two-dimensional.
        images: The images, with a gradient.
        labels: Explained classes [B].
        composite: Of epsilon or zero everywhere, but z-plus or gamma for convolutions.

    Raises:
        ConfigurationError: The composite holds another rule.
    """
    return soft_map(model, images, labels, SoftLrp(composite))


class SoftLrp(SoftRelu):
    """Let every ReLU be a softplus and every convolution pass relevance, on this thread.

    Args:
        composite: As for :func:`soft_relevance`.

    Raises:
        ConfigurationError: The composite holds another rule.
    """

    def __init__(self, composite: Composite) -> None:
        super().__init__()
        self._rule = composite.rule_for("convolution", "", first=False)
        rules = (self._rule, composite.rule_for("dense", "", first=False))
        first = composite.rule_for("convolution", "", first=True)
        known = isinstance(rules[0], (Zero, Epsilon, ZPlus, Gamma)) and first == self._rule
        if not known or not isinstance(rules[1], (Zero, Epsilon)):
            raise ConfigurationError(
                f"the composite {composite.name!r} has no softened form; there is one of epsilon, "
                "with z-plus or gamma for all convolutions."
            )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator, a convolution by its rule."""
        if func is functional.conv2d and isinstance(self._rule, (ZPlus, Gamma)):
            call = _Convolution(*args, **(kwargs or {}))
            result = call.run(self._rule)
            setattr(result, _ATTRIBUTE, call)
            return result
        if func is functional.batch_norm:
            before = getattr(args[0], _ATTRIBUTE, None)
            if before is not None:  # one layer with the convolution, as in the product's LRP
                return before.scaled(*args[1:], **(kwargs or {})).run(self._rule)
        return super().__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True)
class _Convolution:
    """One call of a convolution, its arguments by torch's names."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    def scaled(
        self,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> _Convolution:
        """Return it with the batch normalisation that follows merged in."""
        scale = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
        shift = (0.0 if self.bias is None else self.bias) - mean
        return _Convolution(
            self.input,
            self.weight * scale.view(-1, 1, 1, 1),
            shift * scale + (0.0 if bias is None else bias),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def run(self, rule: Rule) -> Tensor:
        """Return its value, with a graph that passes relevance by the rule."""
        weight = self.weight.detach()
        bias = weight.new_zeros(len(weight)) if self.bias is None else self.bias.detach()
        result: Tensor = _Passing.apply(self.input, weight, bias, self, rule)
        return result

    def sums(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return its value for another input and other weights."""
        return functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def back(self, c: Tensor, weight: Tensor) -> Tensor:
        """Return ``c`` at the input from ``c`` at the output, through other weights."""
        found: Tensor = conv2d_input(
            self.input.shape, weight, c, self.stride, self.padding, self.dilation, self.groups
        )
        return found


class _Passing(torch.autograd.Function):
    """A convolution whose gradient passes relevance, and whose second gradient is true.

    The backward pass that makes the map builds a graph; the one through that graph does not. By
    this they are told apart: the first follows the rule, the second the derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, call: _Convolution, rule: Rule
    ) -> Tensor:
        z = call.sums(x, weight, bias)
        ctx.save_for_backward(x, z, weight, bias)
        ctx.call, ctx.rule = call, rule
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight, bias = ctx.saved_tensors
        call, (c,) = ctx.call, gradients
        if not torch.is_grad_enabled():
            return call.back(c, weight), None, None, None, None
        # Behind a softplus no input is below zero, which spares half of the work.
        signed = bool((x < 0).any())
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        high = call.sums(x.clamp(min=0) if signed else x, up, bias.clamp(min=0))
        if signed:
            high = high + call.sums(x.clamp(max=0), down)
        if isinstance(ctx.rule, ZPlus):
            flow = c * z / (high + STEP)
            passed = call.back(flow, up)
            if signed:
                passed = torch.where(x < 0, call.back(flow, down), passed)
            return passed, None, None, None, None
        gamma = ctx.rule.gamma
        above = c * z.clamp(min=0) / (z.clamp(min=0) + gamma * high + STEP)
        below = c * z.clamp(max=0) / (z.clamp(max=0) + gamma * (z - high) - STEP)
        raised, lowered = weight + gamma * up, weight + gamma * down
        passed = call.back(above, raised) + call.back(below, lowered)
        if signed:
            outside = call.back(above, lowered) + call.back(below, raised)
            passed = torch.where(x < 0, outside, passed)
        return passed, None, None, None, None
