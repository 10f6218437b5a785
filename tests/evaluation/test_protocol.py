"""Splits that overlap, or count an image twice, are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrpguard.errors import EvaluationError
from lrpguard.evaluation.labelled import Labelled, labelled
from lrpguard.evaluation.protocol import ImageSet, Splits, draw_splits
from lrpguard.loading import Preprocessing, load_data


def image_set(first: int, count: int) -> ImageSet:
    """Return images that differ in one level from one to the next."""
    levels = torch.arange(first, first + count).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return ImageSet.of(levels / 255, torch.zeros(count, dtype=torch.int64))


def source(tmp_path: Path, *, copies: bool = False) -> Labelled:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1) * np.ones((1, 4, 4, 3), np.uint8)
    images[39] = images[0] if copies else images[39]
    path = tmp_path / "data.npz"
    np.savez(path, images=images, labels=np.arange(40) % 5)
    return labelled(load_data(path, preprocessing=Preprocessing(channels=3)), classes=5)


def test_images_are_8_bit_levels_and_come_back_exactly() -> None:
    pixels = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    found = ImageSet.of(pixels, torch.tensor([0, 1, 2]))

    assert found.images.dtype == torch.uint8
    assert (found.pixels() - pixels).abs().max() <= 0.5 / 255 + 1e-7
    assert ImageSet.of(found.pixels(), found.labels).digests == found.digests


def test_digest_depends_on_images_classes_and_order() -> None:
    found = image_set(0, 3)

    assert found.digest == image_set(0, 3).digest
    assert found.select([1, 0, 2]).digest != found.digest
    assert found.part(0, 2).digest != found.digest
    other = ImageSet(found.images, found.labels + 1, found.digests, found.indices)
    assert other.digest != found.digest


def test_overlap_and_repeats_are_refused() -> None:
    Splits(pool=image_set(0, 5), test=image_set(5, 5))
    with pytest.raises(EvaluationError, match="1 images are in the clean pool and among the test"):
        Splits(pool=image_set(0, 6), test=image_set(5, 5))
    with pytest.raises(EvaluationError, match="more than once among the test images"):
        Splits(pool=image_set(0, 5), test=image_set(5, 5).select([0, 1, 1]))
    with pytest.raises(EvaluationError, match="more than once among the clean pool"):
        Splits(pool=image_set(0, 5).select([0, 0]), test=image_set(5, 5))


def test_images_that_differ_by_less_than_rounding_are_the_same() -> None:
    pool = image_set(0, 5)
    nearly = ImageSet.of(pool.pixels()[:1] + 1e-4, torch.tensor([0]))

    with pytest.raises(EvaluationError, match="in the clean pool and among"):
        Splits(pool=pool, test=nearly)


def test_drawn_parts_are_disjoint_and_the_test_part_is_fixed_by_the_seed(tmp_path: Path) -> None:
    data = source(tmp_path)

    first, larger = (draw_splits(data, pool=pool, test=10, seed=3) for pool in (10, 20))
    other = draw_splits(data, pool=10, test=10, seed=4)

    assert first.test.digest == larger.test.digest
    assert first.test.digest != other.test.digest
    assert not set(larger.pool.indices) & set(larger.test.indices)
    assert first.test.labels.tolist() == [i % 5 for i in first.test.indices]


def test_a_copy_in_the_data_is_found(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="copies"):
        draw_splits(source(tmp_path, copies=True), pool=20, test=20, seed=0)
