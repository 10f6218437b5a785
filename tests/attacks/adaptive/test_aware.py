"""A guard known to be weak falls to the attacks, and not to weakened ones.

The bar is not tuned: it is what an attack written by hand, from knowledge of the toy, achieves.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpguard import Guard
from lrpguard.attacks import pgd, quantize
from lrpguard.attacks.adaptive import (
    Effort,
    Manner,
    Trace,
    false_alarm,
    feature_matching,
    guard_aware_pgd,
    mislead_restoration,
)
from lrpguard.attacks.adaptive.looks import Looks
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.errors import ConfigurationError, NotCalibratedError
from tests.attacks.adaptive.conftest import EPS, KEY, Toy
from tests.support import paper_guard, state_of

EFFORT = Effort(eps=EPS, steps=20)


@pytest.fixture(scope="module")
def bar(toy: Toy) -> float:
    """SR@5 of the attack written by hand."""
    return toy.passed(toy.by_hand())


def test_the_toy_stops_plain_pgd_and_can_be_passed(toy: Toy, bar: float) -> None:
    static = quantize(pgd(toy.model, toy.images, toy.labels, eps=EPS, steps=20))
    verdict = toy.guard(static)
    assert (verdict.label != toy.labels).double().mean() >= 0.9
    assert toy.passed(static) <= 0.05
    assert bar >= 0.8
    assert toy.guard(toy.images).flagged.double().mean() <= 0.15


@pytest.mark.parametrize("manner", ["selective", "orthogonal"])
def test_the_weak_guard_falls(toy: Toy, bar: float, manner: Manner) -> None:
    attacked = guard_aware_pgd(toy.guard, toy.images, toy.labels, EFFORT, manner=manner)
    assert toy.passed(attacked) >= bar


def test_the_weak_guard_falls_to_changes_alike_in_all_channels(toy: Toy, bar: float) -> None:
    effort = Effort(eps=EPS, steps=100, gray=True)  # slow: it has only the brightness
    assert toy.passed(guard_aware_pgd(toy.guard, toy.images, toy.labels, effort)) >= bar


def test_the_weight_decides_between_model_and_guard(toy: Toy) -> None:
    """Without the guard's term all fool the model and none passes; with more of it more pass."""
    attacked = guard_aware_pgd(toy.guard, toy.images, toy.labels, EFFORT, weight=0)
    assert (toy.guard(attacked).label != toy.labels).double().mean() >= 0.9
    assert toy.passed(attacked) <= 0.05
    jointly = guard_aware_pgd(toy.guard, toy.images, toy.labels, EFFORT, weight=0.3)
    assert toy.passed(jointly) >= 0.5


def test_a_weakened_attack_fails(toy: Toy, bar: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def attack() -> Tensor:
        return guard_aware_pgd(toy.guard, toy.images, toy.labels, EFFORT, manner="orthogonal")

    no_steps = guard_aware_pgd(toy.guard, toy.images, toy.labels, Effort(eps=EPS, steps=0))
    assert toy.passed(no_steps) < 0.5 * bar
    honest = Surrogate.anomaly

    def flipped(self: Surrogate, images: Tensor, looks: Looks, label: Tensor) -> Tensor:
        found = honest(self, images, looks, label)
        return 2 * found.detach() - found  # its value, and the wrong way up

    def dropped(self: Surrogate, images: Tensor, looks: Looks, label: Tensor) -> Tensor:
        return honest(self, images, looks, label).detach() + 0 * images.sum((1, 2, 3))

    for weakened in (flipped, dropped):
        monkeypatch.setattr(Surrogate, "anomaly", weakened)
        assert toy.passed(attack()) < 0.5 * bar


def test_the_key_lets_the_attacker_see_the_very_score(toy: Toy, bar: float) -> None:
    effort = Effort(eps=EPS, steps=40)
    attacked = guard_aware_pgd(
        toy.guard, toy.images, toy.labels, effort, manner="orthogonal", key=KEY
    )
    assert toy.passed(attacked) >= bar


def test_a_false_alarm_keeps_the_label(toy: Toy) -> None:
    effort = Effort(eps=4 / 255, steps=10)
    before = toy.guard(toy.images).flagged.double().mean()
    verdict = toy.guard(false_alarm(toy.guard, toy.images, toy.labels, effort))
    alarmed = (verdict.flagged & (verdict.label == toy.labels)).double().mean()
    assert before <= 0.15
    assert alarmed >= 0.9


def test_restoration_is_turned_against_the_right_label(toy: Toy) -> None:
    effort = Effort(eps=EPS, steps=20)
    verdict = toy.guard(mislead_restoration(toy.guard, toy.images, toy.labels, effort))
    wrong = (verdict.restored_label != toy.labels) & (verdict.restored_label >= 0)
    misled = verdict.flagged & (verdict.label == toy.labels) & wrong
    # What noise and denoising take from the rough weights is all there is to play with.
    assert misled.double().mean() >= 0.5
    still = toy.guard(quantize(toy.images))
    assert (still.restored_label[still.status.index("clean")] >= 0).all()


@pytest.mark.parametrize("gray", [False, True])
def test_results_are_8_bit_images_in_the_ball(toy: Toy, gray: bool) -> None:
    effort = Effort(eps=6 / 255, steps=3, gray=gray)
    images, labels = toy.images[:5].clone(), toy.labels[:5]
    images[0] = images[0].round()  # pixels at the ends of [0, 1] as well
    found = [
        guard_aware_pgd(toy.guard, images, labels, effort),
        feature_matching(toy.model, images, labels, toy.donors, effort),
        false_alarm(toy.guard, images, labels, effort),
        mislead_restoration(toy.guard, images, labels, effort),
    ]
    for attacked in found:
        assert torch.equal(quantize(attacked), attacked)
        change = (attacked - images) * 255
        assert change.abs().max() <= 6 + 1e-3
        assert change.abs().max() > 3
        alike = bool(((change - change.mean(1, keepdim=True)).abs() < 1e-3).all())
        assert alike is gray


def test_the_seed_decides_and_nothing_changes(toy: Toy) -> None:
    images, labels = toy.images[:3], toy.labels[:3]
    before, original, random_state = state_of(toy.model), images.clone(), torch.get_rng_state()

    def attack(seed: int) -> Tensor:
        return guard_aware_pgd(toy.guard, images, labels, Effort(eps=0.05, steps=2, seed=seed))

    first = attack(3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(images, original)
    assert state_of(toy.model) == before
    with torch.inference_mode():
        again = attack(3)
    assert not first.requires_grad
    assert torch.equal(first, again)
    assert not torch.equal(first, attack(4))


def test_the_guards_own_key_is_not_looked_at(toy: Toy) -> None:
    images, labels = toy.images[:3], toy.labels[:3]
    other = Guard(toy.model, calibration=toy.guard.calibration, key=b"other key" * 4)
    effort = Effort(eps=0.05, steps=2)
    one, two = (guard_aware_pgd(g, images, labels, effort) for g in (toy.guard, other))
    assert torch.equal(one, two)


def test_the_trace_tells_how_the_search_went(toy: Toy) -> None:
    trace = Trace()
    guard_aware_pgd(toy.guard, toy.images[:4], toy.labels[:4], EFFORT, trace=trace)
    assert len(trace.first) == len(trace.last) == 4
    assert 4 <= sum(trace.taken) <= trace.seen <= 4 * EFFORT.steps
    assert trace.blind_share == 0
    assert trace.fell


def test_refuses_what_it_cannot_attack(toy: Toy) -> None:
    images, labels, effort = toy.images[:2], toy.labels[:2], Effort(eps=0.1, steps=1)
    with pytest.raises(NotCalibratedError):
        guard_aware_pgd(Guard(toy.model), images, labels, effort)
    with pytest.raises(ConfigurationError, match="'paper'"):
        false_alarm(paper_guard(), images, labels, effort)
    with pytest.raises(ConfigurationError, match="weight is -1"):
        guard_aware_pgd(toy.guard, images, labels, effort, weight=-1)
    with pytest.raises(ConfigurationError, match="'jointly'"):
        guard_aware_pgd(toy.guard, images, labels, effort, manner="jointly")  # type: ignore[arg-type]
