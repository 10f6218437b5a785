"""Gaussians of classes with many images, few, one and none, against SciPy and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor

pytest.importorskip("sklearn", reason="needs lrpguard[baselines]")

from lrpguard.baselines.gaussian import class_gaussians, one_gaussian, whitening

MIX = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]])


def normal(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)) @ MIX.T)


def test_distances_are_scipys_where_there_are_many_images() -> None:
    centres = torch.tensor([[0.0, 0.0, 0.0], [4.0, -2.0, 1.0]], dtype=torch.float64)
    labels = torch.arange(8000) % 2
    points = normal(8000, 0) + centres[labels]

    fitted = class_gaussians(points, labels, classes=2, prior=1e-9)

    residuals = torch.cat([points[labels == c] - points[labels == c].mean(0) for c in (0, 1)])
    inverse = np.linalg.inv((residuals.T @ residuals / len(residuals)).numpy())
    tests = normal(20, 1) + centres[0]
    for row, point in zip(fitted.distances(tests), tests, strict=True):
        for distance, label in zip(row, (0, 1), strict=True):
            own = points[labels == label].mean(0)
            wanted = mahalanobis(point.numpy(), own.numpy(), inverse) ** 2
            assert float(distance) == pytest.approx(wanted, rel=0.03)  # shrinkage


def test_squared_distances_of_fresh_points_are_chi_squared() -> None:
    found = one_gaussian(normal(20_000, 2)).distances(normal(20_000, 3))[:, 0]
    assert float(found.mean()) == pytest.approx(3, rel=0.03)
    assert float((found > 7.815).double().mean()) == pytest.approx(0.05, abs=0.006)


def test_class_means_are_drawn_to_the_mean_of_all() -> None:
    points = torch.tensor([[0.0, 1], [2, 1], [4, 5], [2, 9]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])  # the mean of all is (2, 4); class 2 has none
    fitted = class_gaussians(points, labels, classes=3, prior=1)
    wanted = torch.tensor([[2, 11 / 4], [2, 13 / 2], [2, 4]], dtype=torch.float64)
    torch.testing.assert_close(fitted.means, wanted)


def test_covariance_is_that_about_means_without_the_point_itself() -> None:
    """With one image a class, the residuals are those to the mean of all others."""
    points = normal(200, 4)
    fitted = class_gaussians(points, torch.arange(200), classes=200, prior=1)
    without = (points.sum(0) - points) / 199
    torch.testing.assert_close(fitted.whitening, whitening(points - without))


def test_more_features_than_points_and_features_that_never_vary_are_borne() -> None:
    points = torch.zeros(10, 30, dtype=torch.float64)
    points[:, :15] = torch.from_numpy(np.random.default_rng(5).normal(size=(10, 15)))
    distances = one_gaussian(points).distances(points + 1)
    assert bool(torch.isfinite(distances).all())
    assert float(distances.min()) > 0
