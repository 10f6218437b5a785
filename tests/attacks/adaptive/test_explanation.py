"""The heat map moves to another's, and the label stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lrpguard import explain, normalized
from lrpguard.attacks.adaptive import Effort, mislead_explanation
from lrpguard.attacks.adaptive.explanation import SoftRelu, likeness, soft_map
from lrpguard.errors import InputShapeError
from tests.support import images as random_images
from tests.support import small_net, state_of


def test_the_map_becomes_anothers_and_the_label_stays() -> None:
    model = normalized(small_net(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)).eval()
    images = (random_images(6, seed=1) * 255).round() / 255
    with torch.no_grad():
        labels = model(images).argmax(1)
    before = explain(model, images, n=8, sigma=0.01).relevance_mean
    wanted = before.roll(1, dims=0)
    state = state_of(model)
    attacked = mislead_explanation(model, images, labels, wanted, Effort(eps=16 / 255, steps=60))
    assert state_of(model) == state
    after = explain(model, attacked, n=8, sigma=0.01).relevance_mean
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(images.shape, generator=generator).sign()
    shaken = (images + 16 / 255 * signs).clamp(0, 1)
    control = explain(model, shaken, n=8, sigma=0.01).relevance_mean
    gain, chance = (likeness(m, wanted) - likeness(before, wanted) for m in (after, control))
    assert float(gain.mean()) > 0.15
    assert float(gain.mean()) > float(chance.mean()) + 0.1
    with torch.no_grad():
        assert (model(attacked).argmax(1) == labels).all()
    assert (attacked - images).abs().max() <= 16 / 255 + 1e-6


def test_soft_maps_are_like_the_true_ones() -> None:
    model = normalized(small_net(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)).eval()
    images = random_images(4, seed=2)
    with torch.no_grad():
        labels = model(images).argmax(1)
    true = explain(model, images, n=2, sigma=1e-4).relevance_mean
    assert (likeness(soft_map(model, images, labels).detach(), true) > 0.7).all()


def test_every_kind_of_relu_is_softened() -> None:
    x = torch.tensor([-0.1, 0.2])
    soft = functional.softplus(x, beta=10)
    with SoftRelu():
        for found in (functional.relu(x), torch.relu(x), x.relu(), nn.ReLU()(x)):
            torch.testing.assert_close(found, soft)
        torch.testing.assert_close(nn.ReLU(inplace=True)(x.clone()), soft)
    assert torch.relu(x).tolist()[0] == 0


def test_refuses_maps_of_another_size() -> None:
    images = random_images(2)
    with pytest.raises(InputShapeError, match="one an image"):
        mislead_explanation(
            small_net(), images, torch.zeros(2).long(), torch.zeros(2, 3, 3), Effort(eps=0, steps=1)
        )
