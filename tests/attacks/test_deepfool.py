"""DeepFool: the closed form of a linear model, and digits after rounding."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import carlini_wagner, deepfool, quantize
from lrpguard.errors import ConfigurationError
from tests.support import state_of


def test_takes_the_nearest_boundary_of_a_linear_model() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).eval()
    images = quantize(torch.full((1, 3, 4, 4), 0.5))
    linear = cast(nn.Linear, model[1])
    with torch.no_grad():
        logits = model(images)[0]
        label = int(logits.argmax())
        others = [k for k in range(4) if k != label]
        distances = {
            k: float((logits[label] - logits[k]) / (linear.weight[label] - linear.weight[k]).norm())
            for k in others
        }
    nearest = min(distances, key=lambda k: distances[k])

    attacked = deepfool(model, images, torch.tensor([label]))

    with torch.no_grad():
        assert int(model(attacked).argmax()) == nearest
    assert float((attacked - images).norm()) <= 1.03 * distances[nearest] + 2 / 255 * 48**0.5


def test_misleads_in_8_bits_and_by_little(
    digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits

    attacked = deepfool(digits_model, images, labels)

    assert torch.equal(quantize(attacked), attacked)
    with torch.no_grad():
        assert (digits_model(attacked).argmax(1) != labels).float().mean() >= 0.95
    length = (attacked - images).flatten(1).norm(dim=1).median()
    reference = (carlini_wagner(digits_model, images, labels) - images).flatten(1).norm(dim=1)
    assert length < 1.5 * reference.median()


def test_an_image_is_attacked_alike_in_any_batch(
    digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits

    together = deepfool(digits_model, images, labels)
    alone = deepfool(digits_model, images[5:6], labels[5:6])

    torch.testing.assert_close(together[5:6], alone, atol=1.5 / 255, rtol=0)


def test_more_candidates_than_classes_are_all_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    images, labels = torch.rand(3, 3, 2, 2), torch.tensor([0, 1, 0])

    assert deepfool(model, images, labels, candidates=10).shape == images.shape


def test_leaves_the_model_alone(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    before = state_of(digits_model)

    with torch.inference_mode():
        deepfool(digits_model, digits[0][:2], digits[1][:2], steps=2)

    assert state_of(digits_model) == before


def test_refuses_wrong_settings(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigurationError, match="candidates is 1"):
        deepfool(digits_model, *digits, candidates=1)
