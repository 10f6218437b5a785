"""Each stand-in has the score's value, and rises with it."""

from __future__ import annotations

import torch

from lrpguard.attacks.adaptive.looks import Looks
from lrpguard.attacks.adaptive.standins import STAND_INS, smooth_chroma_noise, smooth_line_noise
from lrpguard.detector import COMBINED_SCORES
from lrpguard.pixels import chroma_noise, line_noise


def noisy_levels() -> torch.Tensor:
    grey = torch.linspace(0.2, 0.8, 16).expand(3, 16, 16)
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    levels = (0.0, 0.005, 0.01, 0.02, 0.05)
    return torch.stack([(grey + sigma * noise).clamp(0, 1) for sigma in levels])


def test_smooth_noise_floors_rise_and_fall_with_the_true_ones() -> None:
    several = noisy_levels()
    pairs = ((chroma_noise, smooth_chroma_noise), (line_noise, smooth_line_noise))
    for true, smooth in pairs:
        exact = torch.tensor([true(image) for image in several])
        found = smooth(several)
        assert bool((exact.diff() > 0).all())
        assert bool((found.diff() > 0).all())
        torch.testing.assert_close(found, exact, atol=0.6, rtol=0)


def test_values_are_exact_and_have_a_gradient() -> None:
    several = noisy_levels().requires_grad_()
    logits = torch.zeros(5, 3)
    looks = Looks(logits, logits[None], logits[None])
    label = torch.zeros(5, dtype=torch.int64)
    for name, true in (("chroma_noise", chroma_noise), ("line_noise", line_noise)):
        found = STAND_INS[name](several, looks, label)
        assert found.tolist() == [true(image) for image in several.detach()]
        (gradient,) = torch.autograd.grad(found.sum(), several)
        assert (gradient[1:].abs().amax((1, 2, 3)) > 0).all()


def test_margin_is_that_of_the_class_asked_for() -> None:
    own = torch.tensor([[3.0, 1.0, 0.5], [0.0, 4.0, 2.0]], dtype=torch.float64)
    looks = Looks(own, own[None], own[None])
    found = STAND_INS["margin"](torch.zeros(2, 3, 4, 4), looks, torch.tensor([0, 2]))
    assert found.tolist() == [2.0, -2.0]


def test_every_score_of_the_detector_has_one() -> None:
    assert set(COMBINED_SCORES) <= set(STAND_INS)
