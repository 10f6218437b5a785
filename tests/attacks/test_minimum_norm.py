"""CW and EAD: against the closed form of a linear model, and on digits after rounding."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import carlini_wagner, elastic_net, quantize
from lrpguard.attacks.margins import margin
from lrpguard.errors import ConfigurationError, TrainingModeError
from tests.support import state_of


def linear_model() -> tuple[nn.Module, Tensor]:
    """Return a model of two classes and the direction in which their logits part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    weight = cast(nn.Linear, model[1]).weight.detach()
    return model, (weight[0] - weight[1]).view(1, 3, 4, 4)


def test_cw_is_near_the_closed_form_of_a_linear_model() -> None:
    model, direction = linear_model()
    images = quantize(torch.full((1, 3, 4, 4), 0.5))
    with torch.no_grad():
        label = model(images).argmax(1)
        lead = margin(model(images), label)
    shortest = (lead + 1) / direction.norm()  # to lead by one logit on the other side

    attacked = carlini_wagner(model, images, label, confidence=1.0, steps=200, searches=8)

    with torch.no_grad():
        assert margin(model(attacked), label) <= -1
    assert (attacked - images).norm() <= 1.05 * shortest + 1 / 255


def test_ead_touches_fewer_values_than_cw(
    digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:12], digits[1][:12]

    sparse = elastic_net(digits_model, images, labels, beta=0.05, steps=60)
    dense = carlini_wagner(digits_model, images, labels, steps=60)

    touched = [(x != images).flatten(1).sum(1).float().mean() for x in (sparse, dense)]
    assert touched[0] < 0.6 * touched[1]


@pytest.mark.parametrize("confidence", [0.0, 3.0])
@pytest.mark.parametrize("attack", [carlini_wagner, elastic_net])
def test_reaches_the_confidence_in_8_bits(
    attack: object, confidence: float, digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    assert callable(attack)
    images, labels = digits

    attacked = attack(digits_model, images, labels, confidence=confidence, steps=60)

    assert torch.equal(quantize(attacked), attacked)
    with torch.no_grad():
        lead = margin(digits_model(attacked), labels)
    assert (lead <= -max(confidence, 1e-3) + 1e-4).float().mean() >= 0.95


def test_higher_confidence_goes_further(
    digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits

    near, far = (
        (carlini_wagner(digits_model, images, labels, confidence=k) - images).flatten(1).norm(dim=1)
        for k in (0.0, 5.0)
    )

    assert (far > near).float().mean() > 0.95


@pytest.mark.parametrize("attack", [carlini_wagner, elastic_net])
def test_an_image_is_attacked_alike_in_any_batch(
    attack: object, digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    assert callable(attack)
    images, labels = digits[0][:4], digits[1][:4]

    together = attack(digits_model, images, labels, steps=15, searches=2)
    alone = attack(digits_model, images[2:3], labels[2:3], steps=15, searches=2)

    torch.testing.assert_close(together[2:3], alone, atol=1.5 / 255, rtol=0)


def test_what_cannot_be_reached_gives_the_furthest_image() -> None:
    model, _ = linear_model()
    images = torch.full((1, 3, 4, 4), 0.5)
    label = model(images).argmax(1)

    attacked = carlini_wagner(model, images, label, confidence=1e4, steps=30)

    with torch.no_grad():
        assert margin(model(attacked), label) < margin(model(images), label) - 0.5


def test_leaves_the_model_alone(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    before = state_of(digits_model)

    with torch.inference_mode():
        carlini_wagner(digits_model, digits[0][:2], digits[1][:2], steps=2)
        elastic_net(digits_model, digits[0][:2], digits[1][:2], steps=2)

    assert state_of(digits_model) == before


def test_refuses_wrong_settings() -> None:
    model, _ = linear_model()
    images, labels = torch.rand(1, 3, 4, 4), torch.tensor([0])
    with pytest.raises(ConfigurationError, match="steps is 0"):
        carlini_wagner(model, images, labels, steps=0)
    with pytest.raises(ConfigurationError, match="confidence is -1"):
        elastic_net(model, images, labels, confidence=-1)
    with pytest.raises(TrainingModeError):
        elastic_net(model.train(), images, labels)
