"""Composites: presets, and the record that a calibration file keeps of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lrpguard.errors import ConfigurationError
from lrpguard.lrp import EPSILON, ZERO, Composite, Epsilon, Zero, relevance
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


@pytest.mark.parametrize("composite", [EPSILON, ZERO, epsilon(0.1), Composite("own name", Zero())])
def test_survives_json(composite: Composite) -> None:
    assert Composite.from_dict(json.loads(json.dumps(composite.to_dict()))) == composite


def test_the_record_says_rule_and_parameters() -> None:
    assert epsilon(0.25).to_dict() == {
        "name": "test",
        "rule": "Epsilon",
        "parameters": {"epsilon": 0.25},
    }
    assert ZERO.to_dict() == {"name": "zero", "rule": "Zero", "parameters": {}}


def test_unknown_rules_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'Gamma'.*'Epsilon', 'Zero'"):
        Composite.from_dict({"name": "x", "rule": "Gamma", "parameters": {}})


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
