"""Squeezers against plain loops, and the largest distance of the softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import baseline
from lrpguard.baselines.squeezing import fewer_bits, local_median, non_local_means
from lrpguard.errors import ConfigurationError
from tests.support import images


def test_fewer_bits() -> None:
    got = fewer_bits(torch.tensor([0.0, 0.49, 0.51, 1.0]), bits=1)
    assert got.tolist() == [0, 0, 1, 1]
    levels = fewer_bits(torch.linspace(0, 1, 1001), bits=5).unique()
    torch.testing.assert_close(levels, torch.arange(32) / 31)


def test_local_median_takes_the_upper_middle_of_an_even_window() -> None:
    image = torch.tensor([[1.0, 2, 3], [4, 0, 6], [7, 8, 9]])[None, None]
    got = local_median(image, side=2)
    assert float(got[0, 0, 1, 1]) == 2  # of 1, 2, 4, 0
    assert float(got[0, 0, 2, 2]) == 8  # of 0, 6, 8, 9
    assert float(got[0, 0, 0, 0]) == 1  # of itself, reflected


def naive(image: Tensor, *, search: int, patch: int, h: float) -> Tensor:
    """Non-local means of one image [C, H, W], pixel by pixel."""
    _, height, width = image.shape
    reach = search // 2

    def mirror(i: int, size: int) -> int:
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    def at(y: int, x: int) -> Tensor:
        return image[:, mirror(y, height), mirror(x, width)]

    def inside(i: int, size: int) -> int:
        return min(max(i, 0), size - 1)

    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            total, weights = torch.zeros(image.shape[0]), 0.0
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    unlike = 0.0
                    for v in range(-(patch // 2), patch // 2 + 1):
                        for u in range(-(patch // 2), patch // 2 + 1):
                            py, px = inside(y + v, height), inside(x + u, width)
                            difference = at(py + down, px + right) - image[:, py, px]
                            unlike += float(difference.square().mean())
                    weight = math.exp(-unlike / patch**2 / h**2)
                    total += weight * at(y + down, x + right)
                    weights += weight
            out[:, y, x] = total / weights
    return out


def test_non_local_means_equal_the_loops() -> None:
    batch = images(2, seed=4)[:, :, :6, :7]
    got = non_local_means(batch, search=3, patch=3, h=0.4)
    for image, one in zip(batch, got, strict=True):
        torch.testing.assert_close(one, naive(image, search=3, patch=3, h=0.4), atol=1e-5, rtol=0)


def test_non_local_means_keep_edges_and_smooth_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((1, 3, 16, 16), 0.2)
    flat[..., 8:] = 0.8
    noisy = flat + 0.02 * torch.randn(flat.shape, generator=generator)
    got = non_local_means(noisy, search=9, patch=3, h=0.06)
    assert float((got - flat).square().mean()) < 0.2 * float((noisy - flat).square().mean())


class Blue(nn.Module):
    """Two classes, by the last channel of the pixel at (1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        blue = x[:, 2, 1, 1]
        return torch.stack([4 * blue, 4 * (1 - blue)], 1)


def test_score_is_the_largest_l1_distance_of_the_softmax() -> None:
    batch = images(6, seed=5)
    fitted = baseline("feature-squeezing", bits=3, search=3, h=0.3).fit(
        Blue().eval(), batch, torch.zeros(6, dtype=torch.long)
    )

    def first(x: Tensor) -> Tensor:
        return torch.sigmoid(8 * x[:, 2, 1, 1].double() - 4)

    forms = (
        fewer_bits(batch, bits=3),
        local_median(batch, side=2),
        non_local_means(batch, search=3, patch=3, h=0.3),
    )
    each = torch.stack([2 * (first(form) - first(batch)).abs() for form in forms])
    torch.testing.assert_close(fitted.anomaly(batch), each.amax(0), rtol=1e-5, atol=1e-6)
    assert len(each.argmax(0).unique()) > 1  # not always one squeezer


@pytest.mark.parametrize("options", [{"bits": 9}, {"median": 1}, {"search": 4}, {"h": 0}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        baseline("feature-squeezing", **options)
