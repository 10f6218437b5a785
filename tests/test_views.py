"""Which views there are, in which order; the covered one against a patch of known place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lrpguard.filters import (
    bilateral,
    gaussian,
    half_size,
    jpeg,
    median,
    mirrored,
    shifted,
    total_variation,
)
from lrpguard.pixels import roughest_place
from lrpguard.views import (
    STRONG_VIEWS,
    VIEW_COUNT,
    VIEWS,
    changed_views,
    covered,
    strong_views,
)
from tests.support import picture

NAMES = (*VIEWS, "covered", *STRONG_VIEWS)
SIZES = [(1, 1), (2, 2), (1, 5), (7, 4), (8, 8), (16, 16)]

sizes = pytest.mark.parametrize(("height", "width"), SIZES)
channels = pytest.mark.parametrize("channels", [1, 2, 3, 4])


@sizes
@channels
class TestEveryView:
    def test_stands_in_the_order_of_the_names(self, channels: int, height: int, width: int) -> None:
        image = picture(channels, height, width)
        smooth = total_variation(image)
        wanted = {
            "bilateral": bilateral(image, 0.05),
            "jpeg": jpeg(image, 75),
            "median": median(image),
            "gaussian": gaussian(image, 0.5),
            "mirrored": mirrored(image),
            "shifted": shifted(image),
            "covered": covered(image),
            "strong_jpeg": jpeg(image, 30),
            "total_variation": smooth,
            "half_size": half_size(smooth),
            "strong_bilateral": bilateral(bilateral(image, 0.15), 0.15),
        }
        views = changed_views(image)
        assert tuple(wanted) == NAMES
        assert views.shape == (VIEW_COUNT, channels, height, width) == (11, *image.shape)
        for made, view in zip(views, wanted.values(), strict=True):
            assert torch.equal(made, view)
        assert torch.equal(views[7:], torch.stack(strong_views(image)))

    def test_stays_in_range(self, channels: int, height: int, width: int) -> None:
        extreme = picture(channels, height, width).round()
        views = changed_views(extreme)
        assert views.min() >= -1e-6
        assert views.max() <= 1 + 1e-6

    @pytest.mark.parametrize("value", [0.0, 128 / 255, 1.0])
    def test_of_a_constant_image_is_that_image(
        self, channels: int, height: int, width: int, value: float
    ) -> None:
        flat = torch.full((channels, height, width), value)
        views = changed_views(flat)
        torch.testing.assert_close(views, flat.expand_as(views), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_is_of_the_type_of_the_image(
        self, channels: int, height: int, width: int, dtype: torch.dtype
    ) -> None:
        image = picture(channels, height, width).to(dtype)
        views = changed_views(image)
        assert views.dtype == dtype
        assert views.device == image.device
        assert torch.equal(views, changed_views(image.float()).to(dtype))

    def test_leaves_the_image_alone(self, channels: int, height: int, width: int) -> None:
        image = picture(channels, height, width)
        before = image.clone()
        changed_views(image)
        assert torch.equal(image, before)


def test_of_an_image_of_which_the_memory_is_not_in_order() -> None:
    image = picture(3, 9, 6)
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    torch.testing.assert_close(changed_views(turned), changed_views(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_callers_autocast_changes_nothing(dtype: torch.dtype) -> None:
    image = picture(3, 16, 12).to(dtype)
    outside = changed_views(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = changed_views(image)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mirrored", "shifted")])
def test_takes_noise_away_from_a_smooth_image(name: str) -> None:
    ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)
    noise = 0.02 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = ramp + noise
    left = changed_views(image)[NAMES.index(name)] - ramp
    if name == "covered":  # in its place alone
        top, start, side = roughest_place(image)
        left = left[:, top : top + side, start : start + side]
    assert left[:, 4:-4, 4:-4].std() < 0.85 * noise.std()


def inside(top: int, left: int, side: int, height: int, width: int) -> Tensor:
    """Return where a square lies, bool [H, W]."""
    place = torch.zeros(height, width, dtype=torch.bool)
    place[top : top + side, left : left + side] = True
    return place


def ramp(channels: int, height: int, width: int) -> Tensor:
    """Return a picture that is brighter to the right and to the bottom, [C, H, W]."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return (0.3 + 0.2 * y + 0.2 * x).expand(channels, -1, -1).clone()


def checkered(side: int) -> Tensor:
    """Return black and white pixels in turn [S, S]."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((y + x) % 2).float()


class TestCovered:
    # A fifth of the smaller side: 2 of 8, 3 of 16, 8 of 40, at every border and between.
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        ("height", "width", "side", "top", "left"),
        [
            (size, size, side, *place)
            for size, side in ((8, 2), (40, 8))
            for place in itertools.product((0, 3, size - side), repeat=2)
        ]
        + [(16, 30, 3, 13, 20), (30, 16, 3, 20, 0)],
    )
    def test_covers_a_rough_patch_where_it_was_pasted_and_nothing_else(
        self, channels: int, height: int, width: int, side: int, top: int, left: int
    ) -> None:
        clean = ramp(channels, height, width)
        attacked = clean.clone()
        attacked[:, top : top + side, left : left + side] = checkered(side)
        made = covered(attacked)
        covering = inside(top, left, side, height, width)
        assert roughest_place(attacked) == (top, left, side)
        assert torch.equal(made[:, ~covering], attacked[:, ~covering])
        assert (made - clean).abs().mean() < 0.1 * (attacked - clean).abs().mean()

    def test_cover_by_hand(self) -> None:
        # 5 x 5, so one pixel; a Gaussian of sigma 1 cut off at 3, borders repeated, of all pixels
        # but this one: 1 at the border rows 0 and 4, else 0.
        image = torch.zeros(1, 5, 5)
        image[:, [0, 4]] = 1.0
        image[:, 2, 2] = 0.5
        image[:, 2, 1] = 0.25
        bell = [math.exp(-(d**2) / 2) for d in range(-3, 4)]
        total = weights = 0.0
        for (i, a), (j, b) in itertools.product(enumerate(bell), repeat=2):
            y, x = min(max(i - 1, 0), 4), min(max(j - 1, 0), 4)  # 2 + i - 3, held inside
            if (y, x) != (2, 2):
                total, weights = total + a * b * image[0, y, x].item(), weights + a * b
        image[:, 2, 2] = 9.0  # what stands there has no say
        made = covered(image)
        assert roughest_place(image) == (2, 2, 1)
        assert made[0, 2, 2].item() == pytest.approx(total / weights, abs=1e-6)
        made[:, 2, 2] = image[:, 2, 2]
        assert torch.equal(made, image)

    @pytest.mark.parametrize("side", [1, 2, 3, 9])
    def test_what_stands_in_the_place_has_no_say_in_its_cover(self, side: int) -> None:
        made = []
        for contrast in (0.7, 1.0):
            image = ramp(3, 5 * side, 5 * side)
            image[:, side : 2 * side, side : 2 * side] = contrast * (1 - checkered(side))
            assert roughest_place(image) == (side, side, side)
            made.append(covered(image))
        assert torch.equal(made[0], made[1])

    def test_of_two_patches_the_rougher_is_covered(self) -> None:
        image = ramp(3, 40, 40)
        image[:, 2:10, 2:10] = 0.5 * checkered(8)
        image[:, 25:33, 20:28] = checkered(8)
        made = covered(image)
        assert torch.equal(made[:, 2:10, 2:10], image[:, 2:10, 2:10])
        assert (made[:, 26:32, 21:27] - image[:, 26:32, 21:27]).abs().min() > 0.2

    def test_a_patch_in_one_channel_is_covered_in_all(self) -> None:
        image = picture(3, 40, 40, seed=1) * 0.1
        image[1, 20:28, 10:18] = checkered(8)
        made = covered(image)
        changed = (made != image).any(2).any(1)
        assert changed.tolist() == [True, True, True]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_single_pixel_stays(self, channels: int) -> None:
        image = picture(channels, 1, 1)
        assert torch.equal(covered(image), image)

    @pytest.mark.parametrize("size", [8, 32, 224])
    def test_cover_lies_between_the_darkest_and_the_brightest_around(self, size: int) -> None:
        image = picture(3, size, size)
        made = covered(image)
        covering = inside(*roughest_place(image), size, size)
        assert int(covering.sum()) == round(0.2 * size) ** 2
        for channel in range(3):
            known = image[channel, ~covering]
            assert made[channel, covering].min() >= known.min() - 1e-6
            assert made[channel, covering].max() <= known.max() + 1e-6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_on_cuda(channels: int, height: int, width: int) -> None:
    image = picture(channels, height, width)
    made = changed_views(image.cuda())
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), changed_views(image), rtol=0, atol=1e-5)
