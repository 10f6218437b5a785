"""The noise floor of pixels and their roughest place: values by hand, noise of known strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpguard.pixels import (
    FLOOR,
    PLACE,
    chroma_noise,
    line_noise,
    place_roughness,
    roughest_place,
    second_difference,
)

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


def slow_place(image: Tensor) -> tuple[int, int, int, float]:
    """Return the roughest place and its roughness, as the definition says, in numpy."""
    pixels = image.double().numpy()
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    energy = ((around - 4 * pixels) ** 2).mean(0)
    height, width = energy.shape
    side = max(1, round(0.2 * min(height, width)))
    best = (-1.0, 0, 0)
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            total = float(energy[top : top + side, left : left + side].mean())
            best = max(best, (total, top, left), key=lambda found: found[0])
    mean, top, left = best
    rest = energy.copy()
    rest[top : top + side, left : left + side] = 0
    outside = rest.sum() / max(height * width - side * side, 1)
    value = math.log((math.sqrt(mean) + FLOOR) / (math.sqrt(outside) + FLOOR))
    return top, left, side, value


class TestRoughestPlace:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize(
        ("height", "width"), [(1, 1), (1, 7), (6, 1), (2, 2), (8, 8), (9, 31), (40, 23)]
    )
    def test_by_a_slow_loop(self, channels: int, height: int, width: int) -> None:
        image = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(height))
        *place, value = slow_place(image)
        assert roughest_place(image) == tuple(place)
        assert place_roughness(image) == pytest.approx(value, abs=1e-4)

    def test_by_hand(self) -> None:
        # One pixel of 5 that stands out by 1, of 5 x 7: a place of one pixel. Second differences
        # of both axes are -4 there and 1 at its four neighbours.
        spot = torch.zeros(1, 5, 7)
        spot[0, 2, 4] = 1.0
        assert PLACE == 0.2
        assert roughest_place(spot) == (2, 4, 1)
        wanted = math.log((4 + FLOOR) / (math.sqrt(4 / 34) + FLOOR))
        assert place_roughness(spot) == pytest.approx(wanted, rel=1e-6)

    def test_is_the_mean_over_the_channels(self) -> None:
        # In one channel of three the energies are a third: the logarithm's parts alike.
        spot = torch.zeros(3, 5, 7)
        spot[1, 2, 4] = 1.0
        wanted = math.log((4 / math.sqrt(3) + FLOOR) / (math.sqrt(4 / 3 / 34) + FLOOR))
        assert roughest_place(spot) == (2, 4, 1)
        assert place_roughness(spot) == pytest.approx(wanted, rel=1e-6)

    def test_of_equals_the_first_is_taken_row_by_row(self) -> None:
        two = torch.zeros(1, 5, 12)
        two[0, 2, 2] = two[0, 2, 8] = 1.0
        assert roughest_place(two) == (2, 2, 1)
        assert roughest_place(two.transpose(1, 2)) == (2, 2, 1)
        # The energies of the other lie outside: 16 + 4 + 4.
        wanted = math.log((4 + FLOOR) / (math.sqrt(24 / 59) + FLOOR))
        assert place_roughness(two) == pytest.approx(wanted, rel=1e-6)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 2, 2), (4, 8, 8), (1, 5, 1)])
    @pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
    def test_of_a_constant_image_is_the_first_and_like_the_rest(
        self, shape: tuple[int, int, int], value: float
    ) -> None:
        flat = torch.full(shape, value)
        assert roughest_place(flat) == (0, 0, max(1, round(0.2 * min(shape[1:]))))
        assert place_roughness(flat) == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize(
        ("size", "side"), [(1, 1), (2, 1), (7, 1), (8, 2), (28, 6), (32, 6), (224, 45)]
    )
    def test_side_is_a_fifth_of_the_smaller(self, size: int, side: int) -> None:
        for shape in ((1, size, size + 4), (1, size + 4, size)):
            assert roughest_place(torch.zeros(shape))[2] == side

    @pytest.mark.parametrize("channels", [1, 3])
    def test_brightness_means_nothing(self, channels: int) -> None:
        image = 0.5 * torch.rand(channels, 30, 20, generator=torch.Generator().manual_seed(0))
        for shift in (0.125, 0.5):
            assert roughest_place(image + shift) == roughest_place(image)
            assert place_roughness(image + shift) == pytest.approx(place_roughness(image), abs=1e-4)

    def test_contrast_means_nothing_but_for_the_floor(self) -> None:
        image = torch.rand(3, 30, 20, generator=torch.Generator().manual_seed(0))
        full = place_roughness(image)
        assert place_roughness(0.25 * image) == pytest.approx(full, abs=0.01)
        assert 0 < place_roughness(1e-5 * image) < 0.1 * full  # far below a level of 8 bits

    @pytest.mark.parametrize("side", [2, 6, 10])
    def test_patch_of_noise_is_found_and_raises_it(self, side: int) -> None:
        image = torch.linspace(0.3, 0.7, 40).expand(3, 40, 40) + 0.01 * noise(3, 40, 40)
        before = place_roughness(image)
        painted = image.clone()
        painted[:, 21 : 21 + side, 9 : 9 + side] = noise(3, side, side, seed=1).sign() / 2 + 0.5
        top, left, size = roughest_place(painted)
        middle = (21 + side / 2, 9 + side / 2)
        assert abs(top + size / 2 - middle[0]) <= abs(size - side) / 2 + 1
        assert abs(left + size / 2 - middle[1]) <= abs(size - side) / 2 + 1
        assert before < 0.2
        assert place_roughness(painted) > before + 1

    def test_noise_everywhere_is_no_place(self) -> None:
        even = 0.5 + 0.1 * noise(3, 64, 64)
        assert 0 < place_roughness(even) < 0.2

    def test_autocast_changes_nothing(self) -> None:
        image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
        outside = place_roughness(image), roughest_place(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (place_roughness(image), roughest_place(image)) == outside

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_cuda(self) -> None:
        image = torch.rand(3, 40, 23, generator=torch.Generator().manual_seed(0))
        assert roughest_place(image.cuda()) == roughest_place(image)
        assert place_roughness(image.cuda()) == pytest.approx(place_roughness(image), abs=1e-5)


@pytest.mark.parametrize("statistic", [chroma_noise, line_noise, place_roughness])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(statistic: object, dtype: torch.dtype) -> None:
    assert callable(statistic)
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = image.clone()
    value = statistic(image)
    assert isinstance(value, float)
    assert value == pytest.approx(statistic(image.float()))
    assert torch.equal(image, before)
