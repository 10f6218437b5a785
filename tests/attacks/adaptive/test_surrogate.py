"""The surrogate's value is the guard's own score, and it knows which way that rises."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lrpguard.attacks import pgd, quantize
from lrpguard.attacks.adaptive.looks import keyed_noise, look
from lrpguard.attacks.adaptive.surrogate import Surrogate
from tests.attacks.adaptive.conftest import KEY, Toy


def attacked(toy: Toy, eps: float) -> Tensor:
    """Return images that the guard notices, and whose class the model has wrong."""
    found = quantize(pgd(toy.model, toy.images, toy.labels, eps=eps, steps=10))
    with torch.no_grad():
        return found[toy.model(found).argmax(1) != toy.labels]


def seen(toy: Toy, surrogate: Surrogate, images: Tensor) -> Tensor:
    """Return the surrogate's anomaly of images, with a gradient [B]."""
    guard = toy.guard
    looks = look(toy.model, images, keyed_noise(guard.smoothing.n, KEY), guard.smoothing.sigma)
    return surrogate.anomaly(images, looks, looks.own.detach().argmax(1))


def test_with_the_key_its_value_is_the_guards_score(toy: Toy) -> None:
    surrogate = Surrogate.of(toy.guard)
    for images in (toy.images, attacked(toy, 16 / 255), attacked(toy, 24 / 255)):
        found = seen(toy, surrogate, images)
        torch.testing.assert_close(found, toy.guard(images).score, rtol=1e-3, atol=1e-3)


def test_its_slope_raises_and_lowers_the_true_score(toy: Toy) -> None:
    """By a step of one level along the sign of the gradient, against the guard's own answer."""
    images = attacked(toy, 16 / 255)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(seen(toy, Surrogate.of(toy.guard), pixels).sum(), pixels)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    up, down = (quantize(images + sign * gradient.sign() / 255) for sign in (1, -1))
    before, above, below = (toy.guard(x).score for x in (images, up, down))
    assert (above > before).double().mean() >= 0.9
    assert (below < before).double().mean() >= 0.9
    # A random direction of the same length is no such thing.
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert toy.guard(quantize(images - noise / 255)).score.median() > below.median()


def test_each_slope_is_that_of_the_detectors_answer(toy: Toy) -> None:
    """Along one score at a time: here the noise floor of the pixels alone."""
    surrogate = Surrogate.of(toy.guard)
    images = attacked(toy, 24 / 255)[:3]
    with torch.no_grad():
        looks = look(toy.model, images, keyed_noise(4, KEY), toy.guard.smoothing.sigma)
    pixels = images.clone().requires_grad_()
    label = looks.own.argmax(1)
    (gradient,) = torch.autograd.grad(surrogate.anomaly(pixels, looks, label).sum(), pixels)
    softer = quantize((images - 1 / 255 * gradient.sign()).detach())
    assert (surrogate.anomaly(softer, looks, label) < surrogate.anomaly(images, looks, label)).all()


def test_a_score_without_a_stand_in_is_taken_for_a_clean_images(toy: Toy) -> None:
    surrogate = Surrogate.of(toy.guard)
    assert surrogate.ignored == ()
    names = tuple(
        "relevance_roughness" if name == "line_noise" else name
        for name in surrogate.detector.score_names
    )
    unknown = replace(surrogate, detector=replace(surrogate.detector, score_names=names))
    assert unknown.ignored == ("relevance_roughness",)
    images = toy.images[:4]
    assert torch.isfinite(seen(toy, unknown, images)).all()


def test_excess_is_counted_from_a_median_clean_image(toy: Toy) -> None:
    surrogate = Surrogate.of(toy.guard)
    anomalies = torch.tensor([0.0, surrogate.aim, 4 * surrogate.aim], dtype=torch.float64)
    torch.testing.assert_close(
        surrogate.excess(anomalies), torch.tensor([0.0, 0.0, surrogate.aim**0.5]).double()
    )
