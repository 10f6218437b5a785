"""Logit matching reaches the logits of another class."""

from __future__ import annotations

import pytest
import torch

from lrpguard.attacks.adaptive import Effort, feature_matching
from lrpguard.errors import ConfigurationError
from tests.attacks.adaptive.conftest import EPS, Toy


def test_reaches_the_logits_of_another_class(toy: Toy) -> None:
    attacked = feature_matching(
        toy.model, toy.images, toy.labels, toy.donors, Effort(eps=EPS, steps=20)
    )
    with torch.no_grad():
        wanted = toy.model(toy.donors)
        before, after = toy.model(toy.images), toy.model(attacked)
    fooled = after.argmax(1) != toy.labels
    assert fooled.double().mean() >= 0.9
    other = wanted.argmax(1) != toy.labels[:, None]
    near = torch.cdist(after, wanted).masked_fill(~other, torch.inf).amin(1)
    far = torch.cdist(before, wanted).masked_fill(~other, torch.inf).amin(1)
    assert float(near[fooled].median()) < 0.1 * float(far[fooled].median())


def test_refuses_donors_of_the_images_own_class(toy: Toy) -> None:
    with torch.no_grad():
        predicted = toy.model(toy.images[:1]).argmax(1)
    with pytest.raises(ConfigurationError, match="no donor"):
        feature_matching(
            toy.model, toy.images[:1], predicted, toy.images[:1], Effort(eps=0.1, steps=1)
        )
