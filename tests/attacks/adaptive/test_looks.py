"""What the attack looks at is what the guard looks at."""

from __future__ import annotations

import torch

from lrpguard.attacks.adaptive.looks import LOOKED_AT, fresh_noise, keyed_noise, look
from tests.attacks.adaptive.conftest import KEY, Toy


def test_with_the_key_all_logits_are_the_guards(toy: Toy) -> None:
    images, smoothing = toy.images[:5], toy.guard.smoothing
    evidence = toy.guard.evidence(images, views=True)
    assert evidence.view_logits is not None
    found = look(toy.model, images, keyed_noise(smoothing.n, KEY), smoothing.sigma)
    pairs = (
        (found.own, evidence.logits),
        (found.noisy.transpose(0, 1), evidence.noisy_logits),
        (found.views.transpose(0, 1), evidence.view_logits[:, :LOOKED_AT]),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-4)


def test_fresh_noise_is_new_each_time_and_the_seeds(toy: Toy) -> None:
    images = toy.images[:2]
    draw = fresh_noise(3, seed=1)
    first, second = draw(images), draw(images)
    assert first.shape == (3, *images.shape)
    assert not torch.equal(first, second)
    assert torch.equal(first, fresh_noise(3, seed=1)(images))


def test_every_look_has_a_gradient(toy: Toy) -> None:
    images = toy.images[:1].clone().requires_grad_()
    found = look(toy.model, images, fresh_noise(1, seed=0), 0.02)
    for logits in (found.own[0], found.noisy[0, 0], *found.views[:, 0]):
        (gradient,) = torch.autograd.grad(logits[0], images, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    assert found.mean().shape == (1, 3)
