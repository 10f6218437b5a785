"""One small class a rule: how an affine operator passes relevance back.

The engine propagates ``c`` with relevance ``R = a * c`` for an activation ``a``, so a
rule is a change to the gradient of the operator, never a second pass through the layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lrpguard.errors import ConfigurationError
from lrpguard.lrp.ledger import Ledger

NEGLIGIBLE = 0.01
"""Epsilon below this share of a dtype's machine epsilon is not applied.

It would change the factor ``z / (z + epsilon)`` by more than rounding only where
``|z| < NEGLIGIBLE``: on SqueezeNet at epsilon = 1e-9 in float32 leaving it out changes
the relevance map by 1.5e-7, below the rounding of the pass itself (2.6e-7).
"""


class Rule(ABC):
    """How the output ``z`` (bias included) of an affine operator receives relevance."""

    @abstractmethod
    def attach(self, z: Tensor, ledger: Ledger | None) -> RemovableHandle | None:
        """Make the gradient that reaches ``z`` follow this rule.

        Args:
            z: Output of the operator, part of the autograd graph.
            ledger: Where absorbed relevance is booked, if anyone asked.

        Returns:
            A handle that takes the change back, None where the plain gradient is the rule.
        """


@dataclass(frozen=True)
class Zero(Rule):
    """LRP-0: ``R_i = sum_j a_i w_ij / z_j R_j``, the plain gradient times the input.

    Source: Bach et al. 2015; Raulf et al. 2021, equation (1).
    """

    def attach(self, z: Tensor, ledger: Ledger | None) -> None:
        """Leave the gradient as it is."""


@dataclass(frozen=True)
class Epsilon(Rule):
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
        if not 0 <= self.epsilon < float("inf"):
            raise ConfigurationError(
                f"epsilon is {self.epsilon}; the stabilizer must be finite and >= 0."
            )

    def attach(self, z: Tensor, ledger: Ledger | None) -> RemovableHandle | None:
        """Scale the gradient that reaches ``z`` by ``|z| / (|z| + epsilon)``."""
        if self.epsilon <= NEGLIGIBLE * torch.finfo(z.dtype).eps:
            return None
        with torch.no_grad():
            magnitude = z.abs()
            factor = magnitude / (magnitude + self.epsilon)
        # The hook keeps its own tensors: an in-place ReLU may overwrite z afterwards.
        hook = ledger.booking_hook(z.detach().clone(), factor) if ledger else partial(_mul, factor)
        handle: RemovableHandle = z.register_hook(hook)
        return handle


def _mul(factor: Tensor, c: Tensor) -> Tensor:
    return c * factor


RULES: Mapping[str, type[Rule]] = MappingProxyType({"Zero": Zero, "Epsilon": Epsilon})
"""Every rule, by the name a calibration file gives it."""
