"""Composites: presets, and the record that a calibration file keeps of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    conservation,
    relevance,
)
from lrpguard.lrp.affine import Kind
from lrpguard.lrp.engine import saved_bytes
from tests.nets import TinyResNet, Whole, epsilon, images, plain_cnn, randomized, rel_l2


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


class TestPosition:
    """Affine operators are counted as they run, from either end."""

    LAYERS = ("0", "3", "6", "8")
    """The convolutions and dense layers of the small network, in their order."""

    @pytest.mark.parametrize("at", range(4))
    def test_is_the_layer_of_that_name(self, at: int) -> None:
        model, x = randomized(plain_cnn()), images()
        by_name = Composite("n", Epsilon(0.1), (LayerRule(Gamma(0.5), name=self.LAYERS[at]),))
        expected = relevance(model, x, composite=by_name).relevance
        for position in (at, at - 4):
            rule = LayerRule(Gamma(0.5), position=position)
            ours = relevance(model, x, composite=Composite("p", Epsilon(0.1), (rule,)))
            assert torch.equal(ours.relevance, expected)
        assert rel_l2(expected, relevance(model, x, composite=epsilon(0.1)).relevance) > 1e-6

    @pytest.mark.parametrize("position", [4, -5, 99])
    def test_beyond_the_ends_matches_nothing(self, position: int) -> None:
        model, x = randomized(plain_cnn()), images()
        composite = Composite("p", Epsilon(0.1), (LayerRule(Gamma(0.5), position=position),))
        ours = relevance(model, x, composite=composite).relevance
        assert torch.equal(ours, relevance(model, x, composite=epsilon(0.1)).relevance)

    def test_a_merged_batch_normalisation_has_no_place(self) -> None:
        """Whatever the rules are: the stem is 0, its blocks 1 to 6, the dense layer the last."""
        model, x = randomized(TinyResNet()), images()
        for rule in (Epsilon(0.1), ZPlus()):
            expected = Composite("n", rule, (LayerRule(Gamma(0.5), name="fc"),))
            for position in (7, -1):
                ours = Composite("p", rule, (LayerRule(Gamma(0.5), position=position),))
                assert torch.equal(
                    relevance(model, x, composite=ours).relevance,
                    relevance(model, x, composite=expected).relevance,
                )

    def test_a_layer_that_runs_twice_has_two_places(self) -> None:
        def forward(net: Any, x: Tensor) -> Tensor:
            logits: Tensor = net.fc(F.relu(net.conv(F.relu(net.conv(x)))).flatten(1))
            return logits

        shared = nn.Conv2d(3, 3, 3, padding=1)
        model = randomized(Whole(forward, conv=shared, fc=nn.Linear(768, 3)))
        x = images()
        maps = [
            relevance(
                model, x, composite=Composite("p", Epsilon(0.1), (LayerRule(ZPlus(), **where),))
            ).relevance
            for where in ({"position": 0}, {"position": 1}, {"name": "conv"})
        ]
        assert rel_l2(maps[0], maps[1]) > 1e-3
        assert rel_l2(maps[0], maps[2]) > 1e-3
        assert rel_l2(maps[1], maps[2]) > 1e-3

    def test_goes_with_the_other_conditions(self) -> None:
        rule = LayerRule(ZPlus(), kind="dense", name="fc*", position=-1)
        assert rule.matches("dense", "fc2", False, (3, -1))
        assert not rule.matches("dense", "fc2", False, (2, -2))
        assert not rule.matches("convolution", "fc2", False, (3, -1))
        assert not rule.matches("dense", "fc2", False)

    def test_in_the_books_and_the_memory(self) -> None:
        model, x = randomized(TinyResNet()), images()
        composite = Composite("p", Epsilon(0.1), (LayerRule(Gamma(0.5), position=-2),))
        assert conservation(model, x, composite=composite).residual <= 1e-10
        assert saved_bytes(model, x, composite=composite) > 0

    def test_survives_json(self) -> None:
        composite = Composite("p", Zero(), (LayerRule(ZPlus(), position=-1),))
        record = json.loads(json.dumps(composite.to_dict()))
        assert record["layers"][0]["position"] == -1
        assert Composite.from_dict(record) == composite

    def test_a_fraction_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"position is 0\.5"):
            LayerRule(ZPlus(), position=0.5)  # type: ignore[arg-type]


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
