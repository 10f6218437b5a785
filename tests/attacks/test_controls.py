"""Controls change images as they say."""

import pytest
import torch

from lrpguard.attacks import controls
from lrpguard.errors import ConfigurationError


def grey(batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.full((batch, channels, 16, 16), 0.5)


def test_noise_has_the_deviation_asked_for_and_follows_the_seed() -> None:
    images = grey(8)

    noisy = controls.gaussian_noise(images, sigma=0.05, seed=1)

    assert float((noisy - images).std()) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(noisy, controls.gaussian_noise(images, sigma=0.05, seed=1))
    assert not torch.equal(noisy, controls.gaussian_noise(images, sigma=0.05, seed=2))


def test_blur_keeps_a_flat_image_and_spreads_a_point() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1

    blurred = controls.blur(point, sigma=0.8)

    torch.testing.assert_close(controls.blur(grey(), sigma=0.8), grey())
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    spread = (blurred[0, 0].sum(0) * (torch.arange(9.0) - 4) ** 2).sum()
    assert float(spread) == pytest.approx(0.64, rel=0.02)


def test_blur_of_an_image_smaller_than_its_kernel() -> None:
    assert controls.blur(torch.rand(1, 1, 2, 2), sigma=3).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_and_worse_at_lower_quality(channels: int) -> None:
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))

    fine, coarse = ((controls.jpeg(images, quality=q) - images).abs().mean() for q in (95, 20))

    assert 0 < fine < coarse
    assert fine < 0.25  # of noise, whose colours JPEG takes at half the resolution
    torch.testing.assert_close(controls.jpeg(grey(), quality=75), grey(), atol=2 / 255, rtol=0)


def test_jpeg_refuses_two_channels() -> None:
    with pytest.raises(ConfigurationError, match="2"):
        controls.jpeg(grey(channels=2), quality=75)


def test_brightness_clips() -> None:
    assert controls.brightness(torch.tensor([0.2, 0.9]), factor=1.5).tolist() == pytest.approx(
        [0.3, 1.0]
    )
