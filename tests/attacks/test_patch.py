"""The patch: one square, where the gradient is, and nothing outside it."""

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import patch
from lrpguard.errors import ConfigurationError
from tests.support import state_of


def touched(attacked: Tensor, images: Tensor) -> Tensor:
    return (attacked != images).any(1)


def test_paints_one_square(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits

    where = touched(patch(digits_model, images, labels, steps=5, area=9 / 64), images)

    for mask in where:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert rows.max() - rows.min() < 3
        assert columns.max() - columns.min() < 3


def test_a_larger_patch_misleads_more(
    digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits

    with torch.no_grad():
        small, large = (
            digits_model(patch(digits_model, images, labels, steps=30, area=area)).argmax(1)
            != labels
            for area in (1 / 64, 16 / 64)
        )

    assert large.float().mean() > 0.8
    assert large.sum() > small.sum()


def test_lies_where_the_model_looks() -> None:
    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            corner = images[:, :, 5:7, 2:4].mean((1, 2, 3))
            return torch.stack([corner, 1 - corner], 1)

    images = torch.full((2, 3, 8, 8), 0.5)

    where = touched(
        patch(Corner().eval(), images, torch.tensor([0, 1]), steps=3, area=4 / 64), images
    )

    assert where[:, 5:7, 2:4].all()
    assert where.sum() == 2 * 4


def test_the_seed_decides_the_start(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    first, again, other = (
        patch(digits_model, images, labels, steps=1, seed=seed, area=9 / 64) for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_leaves_the_model_alone(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    before = state_of(digits_model)

    with torch.inference_mode():
        patch(digits_model, digits[0][:2], digits[1][:2], steps=2)

    assert state_of(digits_model) == before


def test_refuses_wrong_settings(digits_model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigurationError, match="area is 0"):
        patch(digits_model, *digits, steps=1, area=0)
