"""Attacks by queries: what they may read is what carries them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpguard import Guard, Verdict
from lrpguard.attacks import quantize
from lrpguard.attacks.adaptive import Effort, hop_skip_jump, square_on_guard
from lrpguard.attacks.adaptive.queries import nudged, passes, passes_once
from lrpguard.errors import ConfigurationError
from tests.attacks.adaptive.conftest import Toy


def left_and_right(images: Tensor) -> Verdict:
    """Say class 1 of images with a bright left half, and flag those with a changed right one."""
    halves = images.double().chunk(2, dim=3)
    left, right = halves[0].mean((1, 2, 3)), (halves[1] - 0.5).abs().mean((1, 2, 3))
    logits = torch.stack([torch.zeros_like(left), 40 * (left - 0.55)], dim=1)
    score = (100 * right).square()
    nothing = torch.zeros_like(left)
    return Verdict(
        label=logits.argmax(1),
        logits=logits,
        p_value=nothing,
        score=score,
        flagged=score > 1.0,
        restored_label=logits.argmax(1),
        restored_confidence=nothing,
        restored_logits=logits,
        copies=torch.full_like(logits.argmax(1), 50),
        status=tuple("clean" for _ in left),
    )


def test_square_passes_by_the_score_alone() -> None:
    """What lights up the left half lights up the right one, until the score tells."""
    images, labels = quantize(torch.full((12, 1, 8, 8), 0.5)), torch.zeros(12, dtype=torch.int64)

    def without_score(batch: Tensor) -> Verdict:
        verdict = left_and_right(batch)
        return replace(verdict, score=torch.zeros_like(verdict.score))

    effort = Effort(eps=0.1, steps=300)
    seeing, guessing = (
        square_on_guard(oracle, images, labels, effort)
        for oracle in (left_and_right, without_score)
    )
    through = passes(left_and_right(seeing.images), labels)
    assert through.double().mean() >= 0.9
    assert passes(left_and_right(guessing.images), labels).double().mean() <= 0.5
    assert (seeing.queries[~through] == 300).all()
    assert (seeing.queries[through] <= 300).all()
    assert passes(left_and_right(images), labels).sum() == 0


def test_square_stays_in_the_ball_and_repeats(toy: Toy) -> None:
    images, labels = toy.images[:3], toy.labels[:3]
    effort = Effort(eps=6 / 255, steps=6, seed=1)
    found = square_on_guard(toy.guard, images, labels, effort).images
    assert torch.equal(found, quantize(found))
    assert (found - images).abs().max() <= 6 / 255 + 1e-6
    assert torch.equal(found, square_on_guard(toy.guard, images, labels, effort).images)
    other = square_on_guard(toy.guard, images, labels, replace(effort, seed=2)).images
    assert not torch.equal(found, other)


def test_hop_skip_jump_comes_nearer_by_label_and_flag_alone(toy: Toy) -> None:
    pytest.importorskip("art", reason="needs lrpguard[baselines]")
    images, labels = toy.images[:2], toy.labels[:2]
    starts = torch.stack([toy.images[toy.labels != label][0] for label in labels.tolist()])
    asked = 0

    def poor(batch: Tensor) -> Verdict:
        nonlocal asked
        asked += len(batch)
        verdict: Verdict = toy.guard(batch)
        nothing = torch.full_like(verdict.score, torch.nan)
        return replace(verdict, score=nothing, p_value=nothing, logits=verdict.logits * torch.nan)

    state = np.random.get_state(legacy=False)["state"]["key"]
    found = hop_skip_jump(poor, images, labels, starts, iterations=2, evaluations=10)
    after = np.random.get_state(legacy=False)["state"]["key"]
    assert np.array_equal(state, after)
    assert passes(toy.guard(found.images), labels).all()
    far = (starts - images).abs().amax((1, 2, 3))
    assert ((found.images - images).abs().amax((1, 2, 3)) < far).all()
    assert int(found.queries.sum()) == asked
    with pytest.raises(ConfigurationError, match="iterations is 0"):
        hop_skip_jump(poor, images, labels, starts, iterations=0)


def test_resubmitting_the_same_image_is_no_lottery_and_a_changed_one_is(toy: Toy) -> None:
    """At the threshold, where the noise decides."""
    guard = toy.guard
    keys = [bytes([i]) * 32 for i in range(4)]
    guards = [Guard(toy.model, calibration=guard.calibration, key=key) for key in keys]
    by_hand, labels = toy.by_hand(), toy.labels
    alone = passes(guard(by_hand), labels)
    again = passes_once([guard] * 4, [by_hand] * 4, labels)
    fresh = passes_once(guards, [by_hand] * 4, labels)
    assert torch.equal(alone, again)
    assert fresh.sum() >= passes(guards[0](by_hand), labels).sum()
    one = guard(nudged(by_hand, 1)).score
    assert not torch.equal(one, guard(by_hand).score)


def test_nudged_images_differ_in_one_value_by_one_level(toy: Toy) -> None:
    images = toy.images[:2]
    several = [nudged(images, number) for number in range(11)]
    assert torch.equal(several[0], images)
    for changed in several[1:]:
        change = (changed - images).abs() * 255
        assert (change.round().sum((1, 2, 3)) == 1).all()
    assert len({image.numpy().tobytes() for changed in several for image in changed}) == 22
