"""Which rule for which layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrpguard.lrp.rules import Epsilon, Rule, Zero


@dataclass(frozen=True)
class Composite:
    """One rule for every affine operator of the network.

    Args:
        name: Short name; with the rule's parameters it identifies the composite in a
            calibration file.
        rule: Rule of every convolution, dense layer and batch normalisation.
    """

    name: str
    rule: Rule = field(default_factory=Epsilon)

    @property
    def identifier(self) -> str:
        """Name and parameters in one line, e.g. ``"epsilon: Epsilon(epsilon=1e-09)"``."""
        return f"{self.name}: {self.rule!r}"


EPSILON = Composite("epsilon", Epsilon(1e-9))
"""Uniform LRP-epsilon with the paper's 1e-9 (Raulf et al. 2021, section 3.2)."""

ZERO = Composite("zero", Zero())
"""Uniform LRP-0, equal to gradient times input on ReLU networks."""
