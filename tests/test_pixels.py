"""The noise floor of pixels: values by hand, and noise of known strength."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrpguard.pixels import FLOOR, chroma_noise, line_noise, second_difference

SIGMA = 0.02


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def floor_of(value: float) -> float:
    """Return the noise, on the pixel scale, of which a statistic is the logarithm."""
    return math.exp(value) - FLOOR


class TestSecondDifference:
    def test_by_hand_with_borders_repeated(self) -> None:
        plane = torch.tensor([[[1.0, 4.0, 2.0], [0.0, 0.0, 5.0]]])
        assert second_difference(plane, 2).tolist() == [[[3.0, -5.0, 2.0], [0.0, 5.0, -5.0]]]
        assert second_difference(plane, 1).tolist() == [[[-1.0, -4.0, 3.0], [1.0, 4.0, -3.0]]]

    @pytest.mark.parametrize("axis", [1, 2])
    def test_of_a_ramp_is_nothing_inside(self, axis: int) -> None:
        ramp = torch.arange(6.0).expand(1, 6, 6)
        for along in (ramp, ramp.transpose(1, 2)):
            inside = second_difference(along, axis)[:, 1:-1, 1:-1]
            assert inside.abs().max() == 0


class TestByHand:
    def test_of_one_grey_pixel_that_stands_out(self) -> None:
        # One channel, 3 x 3, 6 in the middle: the mixed difference is [1 -2 1] x [1 -2 1]. With
        # borders repeated its outer entries stay, so energies are 1, 4 and 16 times (6 / 6)^2,
        # and every mean over 3 x 3, borders repeated, is (4 * 1 + 4 * 4 + 16) / 9 = 4.
        spot = torch.zeros(1, 3, 3)
        spot[0, 1, 1] = 6.0
        assert chroma_noise(spot) == pytest.approx(math.log(2.0 + FLOOR), rel=1e-6)

    def test_of_a_spike_along_a_line(self) -> None:
        # 1 x 5 with a spike of 6: second differences 0 6 -12 6 0 along it, 0 across; the
        # quietest three tenths end at the round(1.5) = 2nd smallest, 0.
        spike = torch.tensor([[[0.0, 0.0, 6.0, 0.0, 0.0]]])
        assert line_noise(spike) == pytest.approx(math.log(FLOOR))
        # 1 x 3: differences 6 -12 6, the 1st smallest is 6, over sqrt(6).
        short = torch.tensor([[[0.0, 6.0, 0.0]]])
        assert line_noise(short) == pytest.approx(math.log(6 / math.sqrt(6) + FLOOR), rel=1e-6)

    def test_is_of_each_channel_less_their_mean(self) -> None:
        # Channels 0 0 3: less their mean -1 -1 2. Of [0 c 0] the differences are c -2c c.
        image = torch.zeros(3, 1, 3)
        image[2, 0, 1] = 3.0
        # |values|: 1 2 1, 1 2 1, 2 4 2 over sqrt(6); the round(2.7) = 3rd smallest is 1.
        assert line_noise(image) == pytest.approx(math.log(1 / math.sqrt(6) + FLOOR), rel=1e-6)

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 2, 2), (4, 8, 8), (1, 5, 1)])
    def test_of_a_constant_image_is_the_floor(self, statistic: object, shape: tuple[int]) -> None:
        assert callable(statistic)
        assert statistic(torch.full(shape, 0.4)) == pytest.approx(math.log(FLOOR), abs=1e-4)


class TestKnownNoise:
    def test_line_noise_is_the_quantile_of_the_half_normal(self) -> None:
        image = 0.5 + SIGMA * noise(1, 256, 256)
        wanted = SIGMA * 0.38532  # |N(0, 1)| is below it with probability 0.3
        assert floor_of(line_noise(image)) == pytest.approx(wanted, rel=0.03)

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_of_colours_is_less_by_what_the_mean_takes(self, channels: int) -> None:
        image = 0.5 + SIGMA * noise(channels, 256, 256)
        wanted = SIGMA * 0.38532 * math.sqrt(1 - 1 / channels)
        assert floor_of(line_noise(image)) == pytest.approx(wanted, rel=0.03)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_chroma_noise_is_near_the_standard_deviation(self, channels: int) -> None:
        sigma = SIGMA * (math.sqrt(1 - 1 / channels) if channels > 1 else 1)
        image = 0.5 + SIGMA * noise(channels, 256, 256)
        assert 0.5 * sigma < floor_of(chroma_noise(image)) < sigma  # the quietest tenth of it

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_grows_in_proportion(self, statistic: object, channels: int) -> None:
        assert callable(statistic)
        drawn = noise(channels, 64, 64)
        floors = [floor_of(statistic(0.5 + k * SIGMA * drawn)) for k in (1, 2, 4)]
        assert floors[1:] == pytest.approx([2 * floors[0], 4 * floors[0]], rel=1e-3)

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    def test_texture_elsewhere_does_not_hide_the_quiet_part(self, statistic: object) -> None:
        assert callable(statistic)
        image = torch.full((3, 64, 64), 0.5)
        image[:, :, 32:] += 0.3 * noise(3, 64, 32)
        assert floor_of(statistic(image)) < 1e-4
        image[:, :, :32] += SIGMA * noise(3, 64, 32, seed=1)
        assert floor_of(statistic(image)) > 0.3 * SIGMA

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    def test_a_sign_perturbation_raises_both(self, statistic: object) -> None:
        assert callable(statistic)
        ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)
        attacked = ramp + 2 / 255 * noise(3, 64, 64).sign()
        assert statistic(attacked) > statistic(ramp) + 1


class TestWhatTheyDoNotSee:
    @pytest.mark.parametrize("axis", [1, 2])
    def test_stripes_are_noise_along_a_line_and_not_in_both(self, axis: int) -> None:
        stripes = SIGMA * noise(3, 64, 1).expand(3, 64, 64)
        image = 0.5 + (stripes if axis == 1 else stripes.transpose(1, 2))
        assert floor_of(chroma_noise(image)) < 1e-5
        assert floor_of(line_noise(image)) > 0.2 * SIGMA

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    def test_brightness_alone_passes(self, statistic: object) -> None:
        """The module says so: an attacker who keeps the colours is not seen."""
        assert callable(statistic)
        image = 0.5 + SIGMA * noise(1, 64, 64).expand(3, 64, 64)
        assert floor_of(statistic(image)) < 1e-5

    @pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
    def test_a_grey_image_of_one_channel_is_looked_at_itself(self, statistic: object) -> None:
        assert callable(statistic)
        image = 0.5 + SIGMA * noise(1, 64, 64)
        assert floor_of(statistic(image)) > 0.3 * SIGMA


@pytest.mark.parametrize("statistic", [chroma_noise, line_noise])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(statistic: object, dtype: torch.dtype) -> None:
    assert callable(statistic)
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = image.clone()
    value = statistic(image)
    assert isinstance(value, float)
    assert value == pytest.approx(statistic(image.float()))
    assert torch.equal(image, before)
