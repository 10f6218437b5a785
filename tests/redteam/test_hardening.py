"""Variants on the toy: the same false-positive rate, signals that say what they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpguard.attacks import pgd, quantize
from lrpguard.errors import CalibrationSizeError
from lrpguard.redteam.hardening import (
    GUARD,
    OF_LOGITS,
    SIGNALS,
    VARIANTS,
    Hardened,
    Signals,
    Variant,
    doubt,
    read_signals,
)
from lrpguard.redteam.relevance_signals import DRAWN, signals_of
from tests.attacks.adaptive.conftest import EPS, KEY, Toy, bands


@pytest.fixture(scope="module")
def clean(toy: Toy) -> Tensor:
    return read_signals(toy.guard, KEY, bands(240, 3)[0]).values


def test_doubt_is_the_lead_of_another_class() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])  # the second look speaks for class 1
    expected = torch.tensor([1.0])  # mean log-odds of (-2, 4)
    assert torch.allclose(doubt(logits, torch.tensor([0])), expected)
    assert torch.allclose(doubt(logits, torch.tensor([1])), -expected)


def test_signals_follow_from_content_and_key(toy: Toy) -> None:
    images = toy.images[:5]
    one = read_signals(toy.guard, KEY, images)
    again = read_signals(toy.guard, KEY, images.flip(0))
    other = read_signals(toy.guard, b"another" * 4, images)
    assert torch.allclose(one.values, again.values.flip(0), atol=1e-5)
    assert torch.equal(one.drawn, again.drawn.flip(0))
    assert not torch.allclose(one.values[:, 2:], other.values[:, 2:])
    assert not torch.equal(one.drawn, other.drawn)
    assert torch.allclose(one.values[:, 0].square(), toy.guard(images).score)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_all_variants_flag_as_many_clean_images(toy: Toy, clean: Tensor, variant: Variant) -> None:
    hardened = Hardened.fit(variant, clean[:90], clean[90:])
    fresh = read_signals(toy.guard, KEY, bands(100, 4)[0])
    flagged = (hardened.p_values(fresh) <= 0.05).double().mean()
    assert flagged <= 0.14  # 5 % on average, by 150 images' thresholds on 100 others
    attacked = pgd(toy.model, toy.images, toy.labels, eps=EPS, steps=20)
    found = hardened.p_values(read_signals(toy.guard, KEY, quantize(attacked)))
    assert (found <= 0.05).double().mean() >= 0.9


def test_the_largest_signal_decides_or_the_drawn_one() -> None:
    table = torch.arange(100, dtype=torch.float64)[:, None].expand(-1, len(SIGNALS))
    one = torch.zeros(1, len(SIGNALS), dtype=torch.float64)
    one[0, 1] = 200.0
    largest = Hardened.fit(Variant("some", (OF_LOGITS,)), table, table)
    draws = tuple((GUARD, name) for name in OF_LOGITS[1:])
    drawn = Hardened.fit(Variant("drawn", draws), table, table)
    label = torch.tensor([0])
    assert largest.p_values(Signals(label, one, label)) == pytest.approx(1 / 101)
    assert drawn.p_values(Signals(label, one, label + 3)) == pytest.approx(1 / 101)
    assert drawn.p_values(Signals(label, one, label + 1)) == pytest.approx(1.0)


def test_relevance_is_suspicious_on_both_sides() -> None:
    table = torch.arange(-50, 51, dtype=torch.float64)[:, None].expand(-1, len(SIGNALS))
    variant = Variant("relevance", ((GUARD, *signals_of("epsilon")),))
    hardened = Hardened.fit(variant, table, table)
    some = torch.zeros(4, len(SIGNALS), dtype=torch.float64)
    some[1, 0] = -200.0  # the guard's own anomaly is suspicious above alone
    some[2, SIGNALS.index(signals_of("epsilon")[1])] = -200.0
    some[3, SIGNALS.index(signals_of("epsilon")[0])] = 200.0
    label = torch.zeros(4, dtype=torch.int64)
    found = hardened.p_values(Signals(label, some, label))
    assert (found[:2] > 0.9).all()
    assert (found[2:] == 1 / 102).all()


def test_a_draw_reads_its_own_signals_alone() -> None:
    table = torch.randn(120, len(SIGNALS), dtype=torch.float64)
    drawn = Hardened.fit(VARIANTS[6], table, table)
    assert drawn.known.shape == (120, len(DRAWN))
    assert drawn.weights().tolist() == pytest.approx([1.0, *6 * [1 / 3]])
    some = torch.zeros(1, len(SIGNALS), dtype=torch.float64)
    some[0, SIGNALS.index(signals_of("epsilon-plus")[0])] = 100.0
    found = drawn.anomalies(some)[0]
    assert (found > 20).tolist() == [name == "epsilon-plus" for name in DRAWN]


def test_too_few_images_are_refused() -> None:
    few = torch.zeros(50, len(SIGNALS), dtype=torch.float64)
    with pytest.raises(CalibrationSizeError):
        Hardened.fit(VARIANTS[0], few, few)
