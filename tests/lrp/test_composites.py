"""Composites: presets, and the record that a calibration file keeps of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch

from lrpguard.errors import ConfigurationError
from lrpguard.lrp import (
    COMPOSITES,
    EPSILON,
    ZERO,
    AlphaBeta,
    Composite,
    Epsilon,
    Gamma,
    LayerRule,
    WSquare,
    Zero,
    ZPlus,
    relevance,
)
from lrpguard.lrp.affine import Kind
from tests.nets import epsilon, images, plain_cnn, randomized, rel_l2


def test_presets() -> None:
    assert Composite("epsilon", Epsilon(1e-9)) == EPSILON
    assert Composite("zero", Zero()) == ZERO
    assert Composite("default").rule == Epsilon(1e-9)


def test_the_paper_preset_is_the_default_of_the_engine() -> None:
    model, x = randomized(plain_cnn()), images()
    default = relevance(model, x).relevance
    assert torch.equal(default, relevance(model, x, composite=EPSILON).relevance)
    zero = relevance(model, x, composite=ZERO).relevance
    assert not torch.equal(default, zero)
    assert rel_l2(default, zero) < 1e-6


@pytest.mark.parametrize(
    "composite", [*COMPOSITES.values(), epsilon(0.1), Composite("own", Zero())]
)
def test_survives_json(composite: Composite) -> None:
    assert Composite.from_dict(json.loads(json.dumps(composite.to_dict()))) == composite


def test_the_record_says_rule_and_parameters() -> None:
    assert epsilon(0.25).to_dict() == {
        "name": "test",
        "rule": "Epsilon",
        "parameters": {"epsilon": 0.25},
        "layers": [],
    }
    assert ZERO.to_dict() == {"name": "zero", "rule": "Zero", "parameters": {}, "layers": []}
    rule = LayerRule(AlphaBeta(3.0, 2.0), kind="convolution", name="features.*", first=False)
    assert Composite("own", Zero(), (rule,)).to_dict()["layers"] == [
        {
            "rule": "AlphaBeta",
            "parameters": {"alpha": 3.0, "beta": 2.0, "stabilizer": 1e-9},
            "kind": "convolution",
            "pattern": "features.*",
            "first": False,
        }
    ]


def test_a_record_without_layers_is_uniform() -> None:
    record = {"name": "old", "rule": "Epsilon", "parameters": {"epsilon": 1e-9}}
    assert Composite.from_dict(record) == Composite("old", Epsilon(1e-9))


def test_unknown_rules_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'Guided'.*'Epsilon'.*'Gamma'.*'Zero'"):
        Composite.from_dict({"name": "x", "rule": "Guided", "parameters": {}})
    entry: dict[str, object] = {
        "rule": "Delta",
        "parameters": {},
        "kind": None,
        "pattern": None,
        "first": None,
    }
    with pytest.raises(ConfigurationError, match="'Delta'"):
        Composite.from_dict({**ZERO.to_dict(), "layers": [entry]})


def test_a_parameter_that_the_rule_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Gamma does not take.*epsilon"):
        Composite.from_dict({"name": "x", "rule": "Gamma", "parameters": {"epsilon": 1.0}})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AlphaBeta(2.0, 2.0), "alpha - beta must be 1"),
        (lambda: AlphaBeta(0.5, -0.5), "beta is -0.5"),
        (lambda: AlphaBeta(math.inf, math.inf), "finite"),
        (lambda: Gamma(-0.1), "gamma is -0.1"),
        (lambda: Gamma(math.nan), "gamma is nan"),
        (lambda: Gamma(0.25, stabilizer=-1.0), "stabilizer is -1"),
    ],
)
def test_impossible_parameters_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


class TestSelection:
    """The first rule whose kind, name and position all match; else the composite's own."""

    @pytest.mark.parametrize(
        ("rule", "meant", "other"),
        [
            (
                LayerRule(ZPlus(), kind="convolution"),
                ("convolution", "a", False),
                ("dense", "a", False),
            ),
            (LayerRule(ZPlus(), first=True), ("dense", "a", True), ("dense", "a", False)),
            (LayerRule(ZPlus(), first=False), ("dense", "a", False), ("dense", "a", True)),
            *(
                (LayerRule(ZPlus(), name="features.*"), ("dense", "features.3.conv", False), other)
                for other in (("dense", name, False) for name in ("classifier.3", "Features.3", ""))
            ),
        ],
    )
    def test_one_condition(
        self, rule: LayerRule, meant: tuple[Kind, str, bool], other: tuple[Kind, str, bool]
    ) -> None:
        composite = Composite("x", Zero(), (rule,))
        assert composite.rule_for(meant[0], meant[1], first=meant[2]) == ZPlus()
        assert composite.rule_for(other[0], other[1], first=other[2]) == Zero()

    def test_every_condition_must_hold(self) -> None:
        rule = LayerRule(ZPlus(), kind="dense", name="a", first=True)
        assert rule.matches("dense", "a", True)
        assert not rule.matches("convolution", "a", True)
        assert not rule.matches("dense", "b", True)
        assert not rule.matches("dense", "a", False)

    def test_the_first_match_holds(self) -> None:
        rules = (LayerRule(Gamma(0.5), name="b"), LayerRule(ZPlus()))
        composite = Composite("x", Zero(), rules)
        assert composite.rule_for("dense", "b", first=False) == Gamma(0.5)
        assert composite.rule_for("dense", "c", first=False) == ZPlus()

    def test_a_network_takes_each_rule_where_it_says(self) -> None:
        """A pattern per layer gives what the kinds give; a wrong pattern gives another map."""
        model, x = randomized(plain_cnn()), images()
        by_kind = Composite(
            "kind",
            Epsilon(0.1),
            (LayerRule(WSquare(), first=True), LayerRule(Gamma(0.5), kind="convolution")),
        )
        by_name = Composite(
            "name",
            Gamma(0.5),
            (LayerRule(WSquare(), name="0"), LayerRule(Epsilon(0.1), name="[68]")),
        )
        wrong = dataclasses.replace(by_name, layers=by_name.layers[:1])
        first, second, third = (
            relevance(model, x, composite=c).relevance for c in (by_kind, by_name, wrong)
        )
        assert torch.equal(first, second)
        assert rel_l2(first, third) > 1e-3


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_record_with_an_impossible_parameter_is_refused(value: float) -> None:
    record = {"name": "x", "rule": "Epsilon", "parameters": {"epsilon": value}}
    with pytest.raises(ConfigurationError, match="epsilon"):
        Composite.from_dict(record)


def test_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EPSILON.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Epsilon().epsilon = 1.0  # type: ignore[misc]
    assert len({EPSILON, ZERO, Composite("epsilon", Epsilon(1e-9))}) == 2
