"""Early stopping is made to go to its last look, where an attack by hand could do so, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrpguard import Guard
from lrpguard.attacks import quantize
from lrpguard.attacks.adaptive import Effort, Trace, delay_answer
from lrpguard.attacks.adaptive.latency import Window, windows
from lrpguard.errors import ConfigurationError, NotCalibratedError
from tests.attacks.adaptive.conftest import KEY, Toy

LEVELS = 6
EFFORT = Effort(eps=LEVELS / 255, steps=40)


@pytest.fixture(scope="module")
def few(toy: Toy) -> Toy:
    return replace(toy, images=toy.images[:8], labels=toy.labels[:8])


@pytest.fixture(scope="module")
def stopping(toy: Toy) -> Guard:
    return Guard(toy.model, calibration=toy.guard.calibration, key=KEY, stopping=True)


def delayed(stopping: Guard, toy: Toy, images: Tensor) -> float:
    """Return the share that takes all copies, and is neither flagged nor seen as another class."""
    verdict = stopping(images)
    unseen = (verdict.copies == stopping.smoothing.n) & ~verdict.flagged
    return float((unseen & (verdict.label == toy.labels)).double().mean())


def by_hand(stopping: Guard, toy: Toy) -> Tensor:
    """Add a fixed pattern of colours, as much of it as delays the answer, found by trying."""
    generator = torch.Generator().manual_seed(5)
    pattern = torch.randn(toy.images.shape[1:], generator=generator).sign()
    found = toy.images.clone()
    for levels in range(1, LEVELS + 1):
        for share in (0.1, 0.2, 0.4, 0.7, 1.0):
            some = torch.rand(pattern.shape, generator=generator) < share
            tried = quantize(toy.images + levels / 255 * pattern * some)
            verdict = stopping(tried)
            good = (verdict.copies == stopping.smoothing.n) & ~verdict.flagged
            good &= verdict.label == toy.labels
            found[good] = tried[good]
    return found


def test_all_copies_are_made_and_no_flag_tells(stopping: Guard, few: Toy) -> None:
    bar = delayed(stopping, few, by_hand(stopping, few))
    before = delayed(stopping, few, few.images)
    attacked = delay_answer(few.guard, few.images, few.labels, EFFORT, key=KEY)
    after = delayed(stopping, few, attacked)
    assert bar >= 0.8
    assert before <= bar - 0.25
    assert after >= bar - 0.13  # one image; by hand the guard is asked, and tried again
    assert (attacked - few.images).abs().max() <= EFFORT.eps + 1e-6


def test_without_the_key_it_is_nearly_as_good(stopping: Guard, few: Toy) -> None:
    trace = Trace()
    attacked = delay_answer(few.guard, few.images, few.labels, EFFORT, trace=trace)
    assert delayed(stopping, few, attacked) >= 0.7
    assert trace.fell


def test_a_weakened_attack_fails(
    stopping: Guard, few: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Window.miss
    monkeypatch.setattr(
        Window, "miss", lambda self, a: 2 * honest(self, a).detach() - honest(self, a)
    )
    attacked = delay_answer(few.guard, few.images, few.labels, EFFORT, key=KEY)
    assert delayed(stopping, few, attacked) <= 0.4


def test_windows_are_those_of_the_looks(toy: Toy) -> None:
    calibration = toy.guard.calibration
    assert calibration is not None
    rule = calibration.rule
    for look, window in enumerate(windows(toy.guard)):
        assert window.low < window.high
        ends = torch.tensor([window.low, window.high], dtype=torch.float64).square()
        nudge = torch.tensor([1e-9, -1e-9], dtype=torch.float64)
        inside = rule.decide(look, ends + nudge)
        outside = rule.decide(look, ends - nudge)
        last = look == 1
        assert inside.goes_on.tolist() == [not last, not last]
        assert not inside.flagged.any()
        assert outside.flagged.tolist() == [False, True]
        assert outside.cleared.tolist() == [True, False]


def test_refuses_a_guard_without_looks(toy: Toy) -> None:
    images, labels, effort = toy.images[:2], toy.labels[:2], Effort(eps=0.1, steps=1)
    with pytest.raises(NotCalibratedError):
        delay_answer(Guard(toy.model), images, labels, effort)
    calibration = toy.guard.calibration
    assert calibration is not None
    alone = Guard(toy.model, calibration=replace(calibration, staged=None))
    with pytest.raises(ConfigurationError, match="looks"):
        delay_answer(alone, images, labels, effort)
