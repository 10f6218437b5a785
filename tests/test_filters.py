"""Each filter against an oracle of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from lrpguard import filters
from lrpguard.filters import (
    BILATERAL_SPREAD,
    GAUSSIAN_SIGMA,
    JPEG_QUALITY,
    TV_STEPS,
    TV_WEIGHT,
    bilateral,
    gaussian,
    half_size,
    jpeg,
    median,
    mirrored,
    neighbourhood_mean,
    shifted,
    total_variation,
)
from lrpguard.views import STRONG_QUALITY, STRONG_SPREAD
from tests.support import picture

Array = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]

ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "bilateral": bilateral,
    "jpeg": jpeg,
    "median": median,
    "gaussian": gaussian,
    "half_size": half_size,
    "mirrored": mirrored,
    "shifted": shifted,
    "total_variation": total_variation,
}
"""Every filter; those but the mirrored and the shifted image take noise away."""
SIZES = [(1, 1), (2, 2), (1, 5), (7, 4), (16, 16)]
CHANNELS = [1, 3, 4]


sizes = pytest.mark.parametrize(("height", "width"), SIZES)
channels = pytest.mark.parametrize("channels", CHANNELS)


@sizes
@channels
def test_mirrored_and_shifted_are_those_of_numpy(channels: int, height: int, width: int) -> None:
    image = picture(channels, height, width)
    for plane, turned, moved in zip(image, mirrored(image), shifted(image), strict=True):
        assert np.array_equal(turned.numpy(), np.fliplr(plane.numpy()))
        wanted = ndimage.shift(plane.numpy(), (-1, 0), order=0, mode="nearest")
        assert np.array_equal(moved.numpy(), wanted)


@sizes
@channels
def test_median_is_that_of_scipy(channels: int, height: int, width: int) -> None:
    image = picture(channels, height, width)
    wanted = ndimage.median_filter(image.numpy(), size=(1, 3, 3), mode="nearest")
    assert torch.equal(median(image), torch.from_numpy(wanted))


@sizes
@channels
@pytest.mark.parametrize("sigma", [GAUSSIAN_SIGMA, 1.0, 1.7])
def test_gaussian_is_that_of_scipy(channels: int, height: int, width: int, sigma: float) -> None:
    image = picture(channels, height, width).double()
    radius = max(1, math.ceil(3 * sigma))
    wanted = ndimage.gaussian_filter(
        image.numpy(), sigma=(0, sigma, sigma), mode="nearest", radius=(0, radius, radius)
    )
    torch.testing.assert_close(gaussian(image, sigma), torch.from_numpy(wanted))


def slow_bilateral(image: Array, spread: float) -> Array:
    """Average pixel by pixel, as the definition says."""
    channels, height, width = image.shape
    result = np.zeros_like(image)
    for y, x in itertools.product(range(height), range(width)):
        total, weights = np.zeros(channels), 0.0
        for dy, dx in itertools.product(range(-2, 3), range(-2, 3)):
            near = image[:, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
            colour = float(((near - image[:, y, x]) ** 2).mean())
            weight = math.exp(-(dy**2 + dx**2) / 2 - colour / (2 * spread**2))
            total, weights = total + weight * near, weights + weight
        result[:, y, x] = total / weights
    return result


@sizes
@channels
@pytest.mark.parametrize("spread", [BILATERAL_SPREAD, STRONG_SPREAD])
def test_bilateral_by_a_slow_loop(channels: int, height: int, width: int, spread: float) -> None:
    image = picture(channels, height, width)
    wanted = torch.from_numpy(slow_bilateral(image.numpy().astype(np.float64), spread))
    found = bilateral(image, spread).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_bilateral_keeps_an_edge_that_the_gaussian_blurs() -> None:
    step = torch.zeros(3, 8, 8)
    step[:, :, 4:] = 1
    torch.testing.assert_close(bilateral(step), step, rtol=0, atol=1e-6)
    assert (gaussian(step) - step).abs().max() > 0.1


def through_pillow(levels: Levels, quality: int) -> Levels:
    """Return levels [H, W] or [H, W, 3] after a JPEG file."""
    file = BytesIO()
    Image.fromarray(levels).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file))


@sizes
@pytest.mark.parametrize("quality", [JPEG_QUALITY, STRONG_QUALITY])
def test_jpeg_of_rgb_is_that_of_pillow(height: int, width: int, quality: int) -> None:
    image = picture(3, height, width)
    levels = np.rint(255 * image.numpy()).astype(np.uint8).transpose(1, 2, 0)
    wanted = through_pillow(np.ascontiguousarray(levels), quality).transpose(2, 0, 1)
    found = (255 * jpeg(image, quality)).round().byte()
    assert torch.equal(found, torch.from_numpy(wanted.copy()))


@sizes
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("quality", [JPEG_QUALITY, STRONG_QUALITY])
def test_jpeg_of_other_images_is_that_of_each_channel(
    channels: int, height: int, width: int, quality: int
) -> None:
    image = picture(channels, height, width)
    levels = np.rint(255 * image.numpy()).astype(np.uint8)
    wanted = np.stack([through_pillow(plane, quality) for plane in levels])
    assert torch.equal((255 * jpeg(image, quality)).round().byte(), torch.from_numpy(wanted))


def test_jpeg_of_a_constant_image_is_that_image() -> None:
    grey = torch.full((3, 16, 16), 100 / 255)
    torch.testing.assert_close(jpeg(grey), grey, rtol=0, atol=1e-6)


@channels
def test_half_size_of_blocks_of_two_is_their_means_enlarged(channels: int) -> None:
    image = picture(channels, 16, 18)
    # Halved bilinearly with antialiasing, a pixel is a triangle of radius 2 over its source:
    # weights 1/8 3/8 3/8 1/8 inside. Then a bicubic enlargement, on numpy arrays of its own.
    kernel = np.array([1, 3, 3, 1]) / 8
    along = image.numpy().astype(np.float64)
    small = np.einsum("i,j,cyxij->cyx", kernel, kernel, _windows(along))
    inside = half_size(image).double().numpy()[:, 8, 9]
    y, x = (8 + 0.5) / 2 - 0.5, (9 + 0.5) / 2 - 0.5  # 3.75, 4.25: rows 2 to 5, columns 3 to 6
    weights = [[_cubic(y - i) * _cubic(x - j) for j in range(3, 7)] for i in range(2, 6)]
    wanted = np.einsum("ij,cij->c", np.array(weights), small[:, 2:6, 3:7])
    assert inside == pytest.approx(wanted.clip(0, 1), abs=1e-5)


def _windows(image: Array) -> Array:
    """Return the 4 x 4 pixels around each block of 2 x 2 [C, H / 2, W / 2, 4, 4]; inside only."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2))
    return np.asarray(windows[:, ::2, ::2])


def _cubic(distance: float) -> float:
    """Return the weight of Keys's cubic convolution, a = -0.75."""
    a, d = -0.75, abs(distance)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (3, 50), (2, 2)])
def test_half_size_of_what_cannot_be_halved_is_the_image(height: int, width: int) -> None:
    image = picture(3, height, width)
    assert torch.equal(half_size(image), image)


def test_half_size_takes_a_checkerboard_away() -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = ((y + x) % 2).float().expand(3, 16, 16)
    assert (half_size(board) - 0.5).abs()[:, 3:-3, 3:-3].max() < 1e-3


def slow_slopes(image: Array) -> Array:
    """Return the forward differences of every pixel, as the definition says [2, C, H, W]."""
    channels, height, width = image.shape
    slopes = np.zeros((2, *image.shape))
    for c, y, x in itertools.product(range(channels), range(height), range(width)):
        if y + 1 < height:
            slopes[0, c, y, x] = image[c, y + 1, x] - image[c, y, x]
        if x + 1 < width:
            slopes[1, c, y, x] = image[c, y, x + 1] - image[c, y, x]
    return slopes


def slow_divergence(field: Array) -> Array:
    """Return the divergence in Chambolle's section 2: each border has its own case."""
    _, channels, height, width = field.shape
    total = np.zeros(field.shape[1:])
    for c, y, x in itertools.product(range(channels), range(height), range(width)):
        down, right = field[:, c]
        total[c, y, x] += down[y, x] if y < height - 1 else 0.0
        total[c, y, x] -= down[y - 1, x] if y > 0 else 0.0
        total[c, y, x] += right[y, x] if x < width - 1 else 0.0
        total[c, y, x] -= right[y, x - 1] if x > 0 else 0.0
    return total


def objective(result: Array, image: Array, weight: float = TV_WEIGHT) -> float:
    """Return what total variation is to lower."""
    variation = np.sqrt((slow_slopes(result) ** 2).sum((0, 1))).sum()
    return float(((result - image) ** 2).sum() / 2 + weight * variation)


class TestTotalVariation:
    @sizes
    @channels
    @pytest.mark.parametrize("weight", [0.03, TV_WEIGHT])
    def test_by_a_slow_loop(self, channels: int, height: int, width: int, weight: float) -> None:
        image = picture(channels, height, width)
        exact = image.numpy().astype(np.float64)
        dual = np.zeros((2, *exact.shape))
        for _ in range(TV_STEPS):
            slopes = slow_slopes(slow_divergence(dual) - exact / weight)
            length = np.sqrt((slopes**2).sum(axis=(0, 1)))
            dual = (dual + 0.25 * slopes) / (1 + 0.25 * length)
        wanted = torch.from_numpy(exact - weight * slow_divergence(dual))
        found = total_variation(image, weight).double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("channels", "low", "high"), [(1, 3, 5), (1, 8, 2), (3, 4, 4)])
    @pytest.mark.parametrize("upright", [False, True])
    def test_of_a_step_is_a_lower_step(
        self, channels: int, low: int, high: int, upright: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Of a row of two plateaus the minimum is known: each moves towards the other by weight
        # over length, and over the root of the channels, which share one slope.
        monkeypatch.setattr(filters, "TV_STEPS", 3000)
        row = torch.tensor([0.2] * low + [0.9] * high).expand(channels, 1, -1)
        moved = 0.1 / math.sqrt(channels)
        wanted = torch.tensor([0.2 + moved / low] * low + [0.9 - moved / high] * high)
        found = total_variation(row.transpose(1, 2) if upright else row, 0.1)
        line = found[:, :, 0] if upright else found[:, 0]
        torch.testing.assert_close(line, wanted.expand(channels, -1), rtol=0, atol=1e-3)

    def test_of_a_step_lower_than_the_weight_is_its_mean(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(filters, "TV_STEPS", 3000)
        row = torch.tensor([[[0.5, 0.5, 0.5, 0.56]]])  # each moves no further than the mean
        torch.testing.assert_close(total_variation(row), torch.full_like(row, 0.515))

    @pytest.mark.parametrize("channels", CHANNELS)
    def test_lowers_the_objective_nearly_as_far_as_it_goes(
        self, channels: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = picture(channels, 12, 10)
        exact = image.numpy().astype(np.float64)
        before = objective(exact, exact)
        after = objective(total_variation(image).numpy().astype(np.float64), exact)
        monkeypatch.setattr(filters, "TV_STEPS", 2000)
        least = total_variation(image).numpy().astype(np.float64)
        lowest = objective(least, exact)
        assert lowest <= after < 0.7 * before
        assert after - lowest < 0.1 * (before - lowest)
        for seed in range(20):  # and a minimum it is
            aside = np.random.default_rng(seed).normal(scale=1e-2, size=least.shape)
            assert objective(least + aside, exact) > lowest

    @sizes
    @channels
    def test_divergence_is_the_negative_adjoint_of_the_slopes(
        self, channels: int, height: int, width: int
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(channels, height, width, generator=generator).double()
        field = torch.randn(2, channels, height, width, generator=generator).double()
        slopes = filters._slopes(image)
        assert torch.equal(slopes, torch.from_numpy(slow_slopes(image.numpy())))
        # A slope that leaves the image is 0, whatever the field holds there.
        inside = field.clone()
        inside[0, :, -1] = 0
        inside[1, :, :, -1] = 0
        along = (slopes * inside).sum()
        against = -(image * filters._divergence(inside)).sum()
        torch.testing.assert_close(along, against, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    @sizes
    def test_of_a_constant_image_is_that_image(self, value: float, height: int, width: int) -> None:
        flat = torch.full((3, height, width), value)
        assert torch.equal(total_variation(flat), flat)

    @sizes
    @channels
    def test_keeps_the_mean_of_each_channel(self, channels: int, height: int, width: int) -> None:
        image = 0.25 + 0.5 * picture(channels, height, width)  # no value is cut off
        means = total_variation(image).mean((1, 2))
        torch.testing.assert_close(means, image.mean((1, 2)), rtol=0, atol=1e-6)

    def test_takes_no_more_than_weight_allows(self) -> None:
        # A step of the image moves by the weight over its width: large ones stay, noise goes.
        step = torch.full((3, 16, 16), 0.2)
        step[:, :, 8:] = 0.8
        noise = 0.02 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
        smooth = total_variation(step + noise)
        assert (smooth - step).abs().mean() < 0.5 * noise.abs().mean() + 0.1 / math.sqrt(3) / 8
        assert (smooth[:, :, 8] - smooth[:, :, 7]).min() > 0.4

    def test_channels_share_their_edges(self) -> None:
        # A weak edge survives where another channel has a strong one in the same place.
        weak = torch.full((1, 16, 16), 0.45)
        weak[:, :, 8:] = 0.55
        strong = torch.zeros(1, 16, 16)
        strong[:, :, 8:] = 1
        alone = total_variation(torch.cat([weak, weak[:, :, :1].expand_as(weak)]))[0]
        beside = total_variation(torch.cat([weak, strong]))[0]
        assert (beside[:, 8] - beside[:, 7]).min() > 1.2 * (alone[:, 8] - alone[:, 7]).max()


def test_neighbourhood_mean_by_hand() -> None:
    plane = torch.tensor([[0.0, 9.0], [18.0, 27.0]])
    # The corner counts itself four times, each neighbour twice, the one across once.
    assert neighbourhood_mean(plane)[0].tolist() == pytest.approx([(18 + 36 + 27) / 9, 12.0])


@sizes
@channels
@pytest.mark.parametrize("name", ALL)
class TestEveryFilter:
    def test_stays_in_range(self, name: str, channels: int, height: int, width: int) -> None:
        extreme = picture(channels, height, width).round()
        made = ALL[name](extreme)
        assert made.shape == extreme.shape
        assert made.min() >= -1e-6
        assert made.max() <= 1 + 1e-6

    def test_leaves_the_image_alone(
        self, name: str, channels: int, height: int, width: int
    ) -> None:
        image = picture(channels, height, width)
        before = image.clone()
        ALL[name](image)
        assert torch.equal(image, before)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mirrored", "shifted")])
def test_takes_noise_away_from_a_smooth_image(name: str) -> None:
    ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)
    noise = 0.02 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    left = (ALL[name](ramp + noise) - ramp)[:, 4:-4, 4:-4]
    assert left.std() < 0.85 * noise.std()


@pytest.mark.parametrize("name", ALL)
def test_of_an_image_of_which_the_memory_is_not_in_order(name: str) -> None:
    image = picture(3, 9, 6)
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    torch.testing.assert_close(ALL[name](turned), ALL[name](image))


@pytest.mark.parametrize("name", ALL)
def test_the_callers_autocast_changes_nothing(name: str) -> None:
    image = picture(3, 16, 12)
    outside = ALL[name](image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ALL[name](image)
    assert torch.equal(inside, outside)


class TestFilled:
    def test_paints_from_the_known_alone_and_leaves_them(self) -> None:
        image = picture(3, 16, 12)
        known = torch.ones(1, 16, 12)
        known[:, 5:8, 4:7] = 0
        other = torch.where(known > 0, image, 1 - image)

        painted = filters.filled(image, known, 2.0)

        assert torch.equal(painted, filters.filled(other, known, 2.0))
        assert torch.equal(painted[:, known[0] > 0], image[:, known[0] > 0])

    def test_paints_what_is_even_evenly_and_keeps_what_has_nothing_near(self) -> None:
        even, known = torch.full((1, 9, 9), 0.3), torch.ones(1, 9, 9)
        known[0, 4, 4] = 0
        torch.testing.assert_close(filters.filled(even, known, 1.0), even)
        image = picture(1, 9, 9)
        assert torch.equal(filters.filled(image, torch.zeros(1, 9, 9), 1.0), image)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_on_cuda(name: str) -> None:
    image = picture(3, 16, 12)
    made = ALL[name](image.cuda())
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), ALL[name](image), rtol=0, atol=1e-5)
