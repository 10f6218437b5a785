"""Which rule for which layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lrpguard.errors import ConfigurationError
from lrpguard.lrp.rules import RULES, Epsilon, Rule, Zero


@dataclass(frozen=True)
class Composite:
    """One rule for every affine operator of the network.

    Args:
        name: Short name, for tables and calibration files.
        rule: Rule of every convolution, dense layer and batch normalisation.
    """

    name: str
    rule: Rule = field(default_factory=Epsilon)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads back."""
        parameters = asdict(self.rule)  # type: ignore[call-overload]  # every rule is a dataclass
        return {"name": self.name, "rule": type(self.rule).__name__, "parameters": parameters}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Composite:
        """Read the JSON form of :meth:`to_dict`.

        Raises:
            ConfigurationError: The rule is not one of lrpguard's.
        """
        rule = RULES.get(record["rule"])
        if rule is None:
            raise ConfigurationError(
                f"no LRP rule is named {record['rule']!r}; there are {sorted(RULES)}."
            )
        return Composite(record["name"], rule(**record["parameters"]))


EPSILON = Composite("epsilon", Epsilon(1e-9))
"""Uniform LRP-epsilon with the paper's 1e-9 (Raulf et al. 2021, section 3.2)."""

ZERO = Composite("zero", Zero())
"""Uniform LRP-0, equal to gradient times input on ReLU networks."""
