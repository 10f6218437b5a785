"""Each denoised view against an oracle of its own."""

from __future__ import annotations

import itertools
import math
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from lrpguard.views import (
    BILATERAL_SPREAD,
    GAUSSIAN_SIGMA,
    JPEG_QUALITY,
    STRONG_QUALITY,
    STRONG_SPREAD,
    STRONG_VIEWS,
    VIEWS,
    bilateral,
    denoised_views,
    gaussian,
    half_size,
    jpeg,
    median,
    neighbourhood_mean,
    strong_gaussian,
)

Array = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]

ALL = {**VIEWS, **STRONG_VIEWS}

SIZES = [(1, 1), (2, 2), (1, 5), (7, 4), (16, 16)]
CHANNELS = [1, 3, 4]


def picture(channels: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Return random pixels in [0, 1], neighbours alike [C, H, W]."""
    rng = np.random.default_rng(seed)
    rough = rng.random((channels, height, width))
    smooth = ndimage.uniform_filter(rough, size=(1, 3, 3), mode="nearest")
    return torch.from_numpy((0.3 * rough + 0.7 * smooth).astype(np.float32))


sizes = pytest.mark.parametrize(("height", "width"), SIZES)
channels = pytest.mark.parametrize("channels", CHANNELS)


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


@pytest.mark.parametrize(("size", "sigma"), [(8, 1 + 8 / 448), (224, 1.5)])
def test_strong_gaussian_grows_with_the_smaller_side(size: int, sigma: float) -> None:
    image = picture(3, size, size + 3)
    assert torch.equal(strong_gaussian(image), gaussian(image, sigma))


def test_neighbourhood_mean_by_hand() -> None:
    plane = torch.tensor([[0.0, 9.0], [18.0, 27.0]])
    # The corner counts itself four times, each neighbour twice, the one across once.
    assert neighbourhood_mean(plane)[0].tolist() == pytest.approx([(18 + 36 + 27) / 9, 12.0])


@sizes
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
class TestEveryView:
    def test_stands_in_the_order_of_the_registry(
        self, channels: int, height: int, width: int
    ) -> None:
        image = picture(channels, height, width)
        views = denoised_views(image)
        assert list(ALL) == [
            "bilateral",
            "jpeg",
            "median",
            "gaussian",
            "half_size",
            "strong_jpeg",
            "strong_gaussian",
            "strong_bilateral",
        ]
        assert views.shape == (8, channels, height, width)
        for view, made in zip(ALL.values(), views, strict=True):
            assert torch.equal(view(image), made)

    def test_stays_in_range(self, channels: int, height: int, width: int) -> None:
        extreme = picture(channels, height, width).round()
        views = denoised_views(extreme)
        assert views.min() >= -1e-6
        assert views.max() <= 1 + 1e-6

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_is_of_the_type_of_the_image(
        self, channels: int, height: int, width: int, dtype: torch.dtype
    ) -> None:
        image = picture(channels, height, width).to(dtype)
        views = denoised_views(image)
        assert views.dtype == dtype
        assert views.device == image.device
        assert torch.equal(views, denoised_views(image.float()).to(dtype))

    def test_leaves_the_image_alone(self, channels: int, height: int, width: int) -> None:
        image = picture(channels, height, width)
        before = image.clone()
        denoised_views(image)
        assert torch.equal(image, before)


def test_the_registries_are_the_filters_with_their_settings() -> None:
    image = picture(3, 16, 16)
    assert torch.equal(VIEWS["bilateral"](image), bilateral(image, 0.05))
    assert torch.equal(VIEWS["jpeg"](image), jpeg(image, 75))
    assert torch.equal(VIEWS["gaussian"](image), gaussian(image, 0.5))
    assert torch.equal(STRONG_VIEWS["strong_jpeg"](image), jpeg(image, 30))
    assert torch.equal(STRONG_VIEWS["strong_bilateral"](image), bilateral(image, 0.1))


@pytest.mark.parametrize("view", ALL)
def test_takes_noise_away_from_a_smooth_image(view: str) -> None:
    ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)
    noise = 0.02 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    left = (ALL[view](ramp + noise) - ramp)[:, 4:-4, 4:-4]
    assert left.std() < 0.85 * noise.std()


@pytest.mark.parametrize("view", ALL)
def test_of_an_image_of_which_the_memory_is_not_in_order(view: str) -> None:
    image = picture(3, 9, 6)
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    torch.testing.assert_close(ALL[view](turned), ALL[view](image))


@pytest.mark.parametrize("view", ALL)
def test_the_callers_autocast_changes_nothing(view: str) -> None:
    image = picture(3, 16, 12)
    outside = ALL[view](image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ALL[view](image)
    assert torch.equal(inside, outside)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("view", ALL)
def test_on_cuda(view: str) -> None:
    image = picture(3, 16, 12)
    made = ALL[view](image.cuda())
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), ALL[view](image), rtol=0, atol=1e-5)
