"""Resampled shares and areas, by hand and against the metric itself."""

import numpy as np
import pytest

from lrpguard.evaluation.bootstrap import (
    image_weights,
    interval,
    mean_of,
    weighted_auroc,
    weighted_share,
)
from lrpguard.evaluation.metrics import auroc, proportion


def test_weights_resample_n_images_and_begin_with_the_images_themselves() -> None:
    weights = image_weights(7, seed=0, draws=50)

    assert weights.shape == (51, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 7).all()
    assert np.array_equal(weights, image_weights(7, seed=0, draws=50))
    assert not np.array_equal(weights, image_weights(7, seed=1, draws=50))


def test_share_by_hand_and_nan_without_images() -> None:
    weights = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 3]])

    share = weighted_share(weights, np.array([1.0, 0, 0]), np.array([1.0, 1, 0]))

    assert share[0] == 0.5
    assert share[1] == 1
    assert np.isnan(share[2])


def test_share_interval_is_near_wilsons() -> None:
    hits = np.array([1.0] * 60 + [0.0] * 240)

    found = interval(weighted_share(image_weights(300, seed=0), hits, np.ones(300)))

    expected = proportion(60, 300)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(expected.low, abs=0.015)
    assert found.high == pytest.approx(expected.high, abs=0.015)


def test_area_is_that_of_the_metric_with_and_without_weights() -> None:
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 8, 40).astype(float)
    attacked = generator.integers(2, 10, 15).astype(float)
    positions = np.arange(20, 35)
    weights = image_weights(40, seed=1, draws=3)

    areas = weighted_auroc(weights, clean, attacked, positions)

    for weight, area in zip(weights.astype(int), areas, strict=True):
        repeated = np.repeat(attacked, weight[positions])
        assert area == pytest.approx(auroc(np.repeat(clean, weight), repeated))


def test_mean_leaves_out_attacks_without_a_value() -> None:
    assert mean_of([np.array([1.0, 0.5]), np.array([np.nan, 0.0])]).tolist() == [1.0, 0.25]


def test_interval_of_nothing_is_none() -> None:
    found = interval(np.array([np.nan, np.nan]))

    assert (found.value, found.low, found.high) == (None, None, None)
