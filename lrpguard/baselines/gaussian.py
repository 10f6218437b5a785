"""A Gaussian with a shrunk covariance, and class means that are known from few images."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrpguard.errors import MissingDependencyError


@dataclass(frozen=True)
class Gaussians:
    """Gaussians with means of their own and one covariance.

    Attributes:
        means: Their means [M, D].
        whitening: Matrix W with ``W Wᵀ`` the inverse covariance [D, D].
    """

    means: Tensor
    whitening: Tensor

    def distances(self, points: Tensor) -> Tensor:
        """Return squared Mahalanobis distances of points [B, D] to each mean [B, M]."""
        # Differences first: the expanded square would cancel, and round with the batch.
        white = [((point - self.means) @ self.whitening).square().sum(1) for point in points]
        return torch.stack(white)


def one_gaussian(points: Tensor) -> Gaussians:
    """Return the Gaussian of points [n, D], float64, with a Ledoit-Wolf covariance."""
    mean = points.mean(0, keepdim=True)
    return Gaussians(mean, whitening(points - mean))


def class_gaussians(points: Tensor, labels: Tensor, *, classes: int, prior: float) -> Gaussians:
    """Return a Gaussian a class, with one covariance, that few images of each class bear.

    Each class mean is drawn to the mean of all, as if ``prior`` images of the class lay there.
    The covariance is that of each point about the means without it: a class of one image has no
    spread about its own mean, and would make clean images of it look far away.

    Args:
        points: Features [n, D], float64.
        labels: Their classes [n].
        classes: Number of classes K; those without an image get the mean of all.
        prior: Weight of the mean of all, in images, > 0.
    """
    hot = torch.nn.functional.one_hot(labels, classes).to(points)
    counts, sums, n = hot.sum(0), hot.T @ points, len(points)
    everywhere = points.mean(0)
    means = (sums + prior * everywhere) / (counts + prior)[:, None]
    left_out = (points.sum(0) - points) / (n - 1)
    others = (sums[labels] - points + prior * left_out) / (counts[labels] - 1 + prior)[:, None]
    return Gaussians(means, whitening(points - others))


def whitening(residuals: Tensor) -> Tensor:
    """Return W [D, D] with ``W Wᵀ`` the inverse Ledoit-Wolf covariance of residuals [n, D].

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Source: Ledoit, Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices".
    """
    estimator = sklearn("covariance").LedoitWolf(assume_centered=True).fit(residuals.numpy())
    covariance = torch.from_numpy(estimator.covariance_)
    # Features that never vary give a covariance of zero.
    floor = 1e-9 * covariance.diagonal().mean().clamp_min(1e-30)
    covariance = covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype)
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.T.contiguous()


def sklearn(module: str) -> Any:
    """Return a module of scikit-learn.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "this baseline needs scikit-learn, which is not installed: "
            "pip install 'lrpguard[baselines]'."
        ) from error
