"""Removed pixels follow from their neighbours: worked out by hand, and from what must hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.explanations import imputing
from lrpguard.evaluation.explanations.imputing import WEIGHTS, impute
from tests.support import images


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imputing, "NOISE", 0.0)


def gone(*places: tuple[int, int], size: int = 8) -> Tensor:
    removed = torch.zeros(1, size, size, dtype=torch.bool)
    for row, column in places:
        removed[0, row, column] = True
    return removed


@pytest.mark.usefixtures("without_noise")
def test_one_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = images(1)
    found = impute(image, gone((3, 4)), key=b"")
    expected = sum(w * image[0, :, 3 + down, 4 + right] for (down, right), w in WEIGHTS.items())
    assert torch.allclose(found[0, :, 3, 4], torch.as_tensor(expected))
    kept = ~gone((3, 4))[0]
    assert torch.equal(found[0][:, kept], image[0][:, kept])


@pytest.mark.usefixtures("without_noise")
def test_a_corner_has_three_neighbours() -> None:
    image = images(1)
    found = impute(image, gone((0, 0)), key=b"")[0, :, 0, 0]
    expected = (2 * image[0, :, 0, 1] + 2 * image[0, :, 1, 0] + image[0, :, 1, 1]) / 5
    assert torch.allclose(found, expected)


@pytest.mark.usefixtures("without_noise")
def test_removed_neighbours_solve_their_equations_together() -> None:
    removed = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    found = impute(images(2), removed, key=b"").double()
    for image, mask in zip(found, removed, strict=True):
        for row, column in mask.nonzero().tolist():
            near = [
                (weight, image[:, row + down, column + right])
                for (down, right), weight in WEIGHTS.items()
                if 0 <= row + down < 8 and 0 <= column + right < 8
            ]
            mean = torch.stack([w * x for w, x in near]).sum(0) / sum(w for w, _ in near)
            torch.testing.assert_close(image[:, row, column], mean, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("without_noise")
def test_a_plane_of_one_colour_stays_one() -> None:
    plain = torch.full((1, 3, 8, 8), 0.25)
    removed = torch.ones(1, 8, 8, dtype=torch.bool)
    removed[0, 7, 7] = False
    assert torch.allclose(impute(plain, removed, key=b""), plain)


@pytest.mark.usefixtures("without_noise")
def test_nothing_removed_changes_nothing() -> None:
    assert torch.equal(impute(images(2), gone().expand(2, 8, 8), key=b""), images(2))


def test_noise_is_the_images_own_and_stays_within_the_pixels() -> None:
    batch = torch.cat([torch.zeros(1, 3, 8, 8), images(1)])
    removed = torch.zeros(2, 8, 8, dtype=torch.bool)
    removed[:, :4] = True
    found = impute(batch, removed, key=b"a")
    assert float(found.min()) >= 0
    assert 0 < float(found[0, :, :4].max()) < 0.06
    assert torch.equal(found[1:], impute(batch[1:], removed[1:], key=b"a"))
    assert not torch.equal(found, impute(batch, removed, key=b"b"))


def test_an_image_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="all pixels of an image are removed"):
        impute(images(1), torch.ones(1, 8, 8, dtype=torch.bool), key=b"")
