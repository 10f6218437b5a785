"""Which rule for which layer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from lrpguard.errors import ConfigurationError
from lrpguard.lrp.affine import Kind
from lrpguard.lrp.first_rules import Flat, WSquare, ZBox
from lrpguard.lrp.rules import AlphaBeta, Epsilon, Gamma, Rule, Zero, ZPlus

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {rule.__name__: rule for rule in (Zero, Epsilon, Gamma, AlphaBeta, ZPlus, Flat, WSquare, ZBox)}
)
"""Every rule, by the name a calibration file gives it."""


@dataclass(frozen=True)
class LayerRule:
    """A rule for the layers that match; what is None matches any.

    Args:
        rule: The rule.
        kind: ``"convolution"``, ``"dense"`` (matrix products, too) or ``"normalization"``
            (a batch normalisation that does not follow a convolution).
        name: Shell pattern of the module's dotted name, e.g. ``"features.*"``.
        first: Whether no affine operator comes before the layer on the way from the input; there
            are several such layers where a network branches at its input.
        position: Place among the affine operators in the order in which they run: 0 is the first
            to run, 1 the second, -1 the last. A layer that runs twice has two places; a merged
            batch normalisation has none.
    """

    rule: Rule
    kind: Kind | None = None
    name: str | None = None
    first: bool | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if self.position is not None and self.position != int(self.position):
            raise ConfigurationError(
                f"position is {self.position}; it must be a whole number, 0 for the first layer "
                "to run and -1 for the last."
            )

    def matches(self, kind: Kind, name: str, first: bool, positions: Collection[int] = ()) -> bool:
        """Say whether a layer is one of those meant; ``positions`` are its place's spellings."""
        return (
            self.kind in (None, kind)
            and self.first in (None, first)
            and (self.position is None or self.position in positions)
            and (self.name is None or fnmatchcase(name, self.name))
        )


@dataclass(frozen=True)
class Composite:
    """A rule for every affine operator of the network.

    Args:
        name: Short name, for tables and calibration files.
        rule: Rule of the layers that none of ``layers`` matches.
        layers: Rules for some layers; the first that matches holds.

    Example:
        >>> from lrpguard.lrp import Composite, Epsilon, Gamma, LayerRule
        >>> mine = Composite("mine", Epsilon(1e-6), (LayerRule(Gamma(0.5), name="features.*"),))
    """

    name: str
    rule: Rule = Epsilon()  # noqa: RUF009  # frozen
    layers: tuple[LayerRule, ...] = ()

    def rule_for(
        self, kind: Kind, name: str, *, first: bool, positions: Collection[int] = ()
    ) -> Rule:
        """Return the rule of one layer."""
        matching = (
            layer.rule for layer in self.layers if layer.matches(kind, name, first, positions)
        )
        return next(matching, self.rule)

    @property
    def counts_from_the_end(self) -> bool:
        """Whether a rule's position is known only when all layers have been counted."""
        return any(layer.position is not None and layer.position < 0 for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads back."""
        layers = [
            _rule_to_dict(layer.rule)
            | {"kind": layer.kind, "pattern": layer.name, "first": layer.first}
            | ({} if layer.position is None else {"position": layer.position})
            for layer in self.layers
        ]
        return {"name": self.name, **_rule_to_dict(self.rule), "layers": layers}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Composite:
        """Read the JSON form of :meth:`to_dict`.

        Raises:
            ConfigurationError: A rule is not one of lrpguard's, or its parameters are wrong.
        """
        layers = tuple(
            LayerRule(
                _rule_from_dict(entry),
                entry["kind"],
                entry["pattern"],
                entry["first"],
                entry.get("position"),
            )
            for entry in record.get("layers", ())
        )
        return Composite(record["name"], _rule_from_dict(record), layers)


class Selection:
    """A composite's rules during one pass, which counts the affine operators as they run.

    Args:
        composite: Which rule for which layer.

    Attributes:
        seen: Affine operators that have run.
        total: How many will run, None where that is not known; then no negative position matches.
    """

    def __init__(self, composite: Composite) -> None:
        self.composite = composite
        self.seen = 0
        self.total: int | None = None

    def rule_for(self, kind: Kind, name: str, *, first: bool) -> Rule:
        """Return the rule of the next affine operator."""
        at = self.seen
        self.seen += 1
        positions = (at,) if self.total is None else (at, at - self.total)
        return self.composite.rule_for(kind, name, first=first, positions=positions)


def _rule_to_dict(rule: Rule) -> dict[str, Any]:
    parameters = asdict(rule)  # type: ignore[call-overload]  # every rule is a dataclass
    return {"rule": type(rule).__name__, "parameters": parameters}


def _rule_from_dict(record: Mapping[str, Any]) -> Rule:
    rule = RULES.get(record["rule"])
    if rule is None:
        raise ConfigurationError(
            f"no LRP rule is named {record['rule']!r}; there are {sorted(RULES)}."
        )
    try:
        return rule(**record["parameters"])
    except TypeError as error:
        given = json.dumps(record["parameters"])
        raise ConfigurationError(f"{record['rule']} does not take {given}: {error}.") from error


EPSILON = Composite("epsilon", Epsilon(1e-9))
"""Uniform LRP-epsilon with the paper's 1e-9 (Raulf et al. 2021, section 3.2)."""

ZERO = Composite("zero", Zero())
"""Uniform LRP-0, equal to gradient times input on ReLU networks."""

_DENSE_EPSILON = Epsilon(1e-6)

EPSILON_PLUS = Composite("epsilon-plus", _DENSE_EPSILON, (LayerRule(ZPlus(), kind="convolution"),))
"""Convolutions z-plus, dense layers epsilon."""

EPSILON_GAMMA_BOX = Composite(
    "epsilon-gamma-box",
    _DENSE_EPSILON,
    (
        LayerRule(ZBox(), kind="convolution", first=True),
        LayerRule(Gamma(0.25), kind="convolution"),
    ),
)
"""First convolution z-box, others gamma 0.25, dense layers epsilon (Montavon et al. 2019)."""

EPSILON_ALPHA2_BETA1 = Composite(
    "epsilon-alpha2-beta1", _DENSE_EPSILON, (LayerRule(AlphaBeta(2.0, 1.0), kind="convolution"),)
)
"""Convolutions alpha-beta (2, 1), dense layers epsilon."""

EPSILON_ALPHA2_BETA1_FLAT = Composite(
    "epsilon-alpha2-beta1-flat",
    _DENSE_EPSILON,
    (LayerRule(Flat(), first=True), *EPSILON_ALPHA2_BETA1.layers),
)
"""The same with a flat first layer."""

CMP = Composite(
    "cmp",
    _DENSE_EPSILON,
    (LayerRule(Flat(), first=True), LayerRule(ZPlus(), kind="convolution")),
)
"""LRP-CMP: first layer flat, convolutions alpha-beta (1, 0), dense layers epsilon.

Source: Kohlbrenner et al. 2020 (arXiv 1910.09840), the preset LRP-CMP:alpha1 with flat.
"""

COMPOSITES: Mapping[str, Composite] = {
    composite.name: composite
    for composite in (
        EPSILON,
        ZERO,
        EPSILON_PLUS,
        EPSILON_GAMMA_BOX,
        EPSILON_ALPHA2_BETA1,
        EPSILON_ALPHA2_BETA1_FLAT,
        CMP,
    )
}
"""Every preset, by name."""
