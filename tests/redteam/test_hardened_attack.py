"""The attack passes a hardened guard that is known to be weak, and not when it is weakened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrpguard.attacks import quantize
from lrpguard.attacks.adaptive import Effort
from lrpguard.attacks.adaptive.looks import LOOKED_AT, Looks
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.redteam import hardened_attack
from lrpguard.redteam.hardened_attack import hardened_pgd, passes
from lrpguard.redteam.hardening import SIGNALS, VARIANTS, Hardened, Signals, beside, read_signals
from tests.attacks.adaptive.conftest import EPS, KEY, Toy, bands

EFFORT = Effort(eps=EPS, steps=80)
IMAGES = 10


@pytest.fixture(scope="module")
def clean(toy: Toy) -> Tensor:
    return read_signals(toy.guard, KEY, bands(240, 3)[0]).values


@pytest.fixture(scope="module")
def few(toy: Toy) -> Toy:
    return replace(toy, images=toy.images[:IMAGES], labels=toy.labels[:IMAGES])


def passed(toy: Toy, hardened: Hardened, attacked: Tensor) -> float:
    signals: Signals = read_signals(toy.guard, KEY, attacked)
    through = (signals.label != toy.labels) & (hardened.p_values(signals) > 0.05)
    return float(through.double().mean())


@pytest.mark.parametrize("number", [3, 4, 6], ids=["all", "drawn", "relevance drawn"])
def test_the_weak_guard_falls(few: Toy, clean: Tensor, number: int) -> None:
    """What the toy is sure of, its bands' brightness, every look sees alike."""
    hardened = Hardened.fit(VARIANTS[number], clean[:90], clean[90:])
    bar = passed(few, hardened, few.by_hand())
    attacked = hardened_pgd(few.guard, hardened, few.images, few.labels, EFFORT, manner="selective")
    assert bar >= 0.6
    assert passed(few, hardened, attacked) >= bar
    assert torch.equal(quantize(attacked), attacked)
    assert (attacked - few.images).abs().max() <= EPS + 1e-6


def test_a_weakened_attack_fails(few: Toy, clean: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    hardened = Hardened.fit(VARIANTS[3], clean[:90], clean[90:])
    honest = Surrogate.anomaly

    def flipped(self: Surrogate, images: Tensor, looks: Looks, label: Tensor) -> Tensor:
        found = honest(self, images, looks, label)
        return 2 * found.detach() - found  # its value, and the wrong way up

    monkeypatch.setattr(Surrogate, "anomaly", flipped)
    attacked = hardened_pgd(few.guard, hardened, few.images, few.labels, EFFORT, manner="selective")
    assert passed(few, hardened, attacked) <= 0.3


def test_an_attack_away_from_the_relevance_fails(
    few: Toy, clean: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followed, it passes with as many as the attack by hand, see above."""
    hardened = Hardened.fit(VARIANTS[6], clean[:90], clean[90:])
    bar = passed(few, hardened, few.by_hand())

    def turned(*arguments: Any) -> Tensor:
        found = beside(*arguments)
        return 2 * found.detach() - found

    monkeypatch.setattr(hardened_attack, "beside", turned)
    attacked = hardened_pgd(few.guard, hardened, few.images, few.labels, EFFORT, manner="selective")
    assert passed(few, hardened, attacked) <= bar - 0.1


def test_passes_of_a_step() -> None:
    table = torch.randn(120, len(SIGNALS), dtype=torch.float64)
    counts = [passes(Hardened.fit(each, table, table), 2) for each in VARIANTS]
    guard = 1 + 2 + LOOKED_AT  # the request, its copies, its views
    assert [count - guard for count in counts] == [0, 4, 4, 8, 8, 2 * 7, 6 * 7]
