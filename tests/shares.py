"""How each rule shares relevance in one affine layer, written term by term as in the papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STABILIZER = 1e-9

Shares = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From x [I], W [J, I], b [J], z [J], R [J] to the relevance [I], as the papers write it."""


def stabilized(z: Tensor) -> Tensor:
    return z + STABILIZER * (2 * (z >= 0).to(z.dtype) - 1)


def alpha_beta(alpha: float, beta: float) -> Shares:
    """Return LRP-alpha-beta; z-plus is alpha 1, beta 0."""

    def shares(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
        up, down = (w * x).clamp(min=0), (w * x).clamp(max=0)
        z_up = stabilized(up.sum(1) + b.clamp(min=0))
        # A sum of no negative term is 0, whose stabilizer's sign then meets no numerator.
        z_down = stabilized(down.sum(1) + b.clamp(max=0))
        flows = alpha * up / z_up[:, None] - beta * down / z_down[:, None]
        return (flows * r[:, None]).sum(0)

    return shares


def gamma(value: float) -> Shares:
    """Return LRP-gamma: terms and bias of the output's own sign weigh 1 + gamma."""

    def shares(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
        sign = (2 * (z > 0).to(z.dtype) - 1)[:, None]
        terms = w * x
        terms = terms + value * torch.where(terms * sign > 0, terms, 0.0)
        bias = b + value * torch.where(b * sign[:, 0] > 0, b, 0.0)
        total = stabilized(terms.sum(1) + bias)
        return (terms / total[:, None] * r[:, None]).sum(0)

    return shares


def epsilon(value: float) -> Shares:
    """Return LRP-epsilon."""

    def shares(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
        total = z + value * (2 * (z >= 0).to(z.dtype) - 1)
        return (w * x / total[:, None] * r[:, None]).sum(0)

    return shares


def flat(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Share by LRP-flat: evenly over the receptive field."""
    seen = (w != 0).to(w.dtype)
    return (seen / stabilized(seen.sum(1))[:, None] * r[:, None]).sum(0)


def w_square(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Share by LRP-w-square."""
    return (w**2 / stabilized((w**2).sum(1) + b**2)[:, None] * r[:, None]).sum(0)


def z_box(x: Tensor, w: Tensor, b: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Share by LRP-z-box for inputs between 0 and 1."""
    terms = w * x - w.clamp(min=0) * 0.0 - w.clamp(max=0) * 1.0
    return (terms / stabilized(terms.sum(1))[:, None] * r[:, None]).sum(0)
