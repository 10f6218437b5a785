"""Baselines of the penultimate layer: Mahalanobis distance and nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import BATCH, ModelBaseline, check_positive, finite_logits
from lrpguard.baselines.features import activations, penultimate
from lrpguard.baselines.gaussian import Gaussians, class_gaussians
from lrpguard.errors import CalibrationSizeError, ConfigurationError

LEAST_IMAGES = 10
"""Clean images that a covariance is estimated from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mahalanobis(ModelBaseline[Gaussians]):
    """Squared Mahalanobis distance of the penultimate features to the nearest class.

    One Gaussian a class, one covariance for all, shrunk (Ledoit-Wolf). Source: Lee, Lee, Lee, Shin
    2018, "A simple unified framework for detecting out-of-distribution samples and adversarial
    attacks", equations (1) and (2). Left out: the step of the input along the distance's gradient,
    and the weights of several layers, which the paper fits on attacks.

    Attributes:
        prior: Weight of the mean of all features in a class's mean, in images, > 0. It matters
            where a class has few images; see :func:`class_gaussians`.
    """

    name: ClassVar[str] = "mahalanobis"

    prior: float = 1.0

    def __post_init__(self) -> None:
        check_positive(prior=self.prior)

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> Gaussians:
        if len(images) < LEAST_IMAGES:
            raise CalibrationSizeError(
                f"{self.name!r} was given {len(images)} images; it estimates a covariance and "
                f"needs at least {LEAST_IMAGES}."
            )
        classes = finite_logits(model, images[:1]).shape[1]
        labels = labels.cpu()
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ConfigurationError(
                f"labels span {int(labels.min())} to {int(labels.max())}; the model has "
                f"classes 0 … {classes - 1}."
            )
        points = penultimate(model, images, batch=BATCH)
        return class_gaussians(points, labels, classes=classes, prior=self.prior)

    def _score(self, model: nn.Module, state: Gaussians, images: Tensor) -> Tensor:
        points = activations(model, images).penultimate.double().cpu()
        return state.distances(points).amin(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class NearestNeighbours(ModelBaseline[Tensor]):
    """Distance of the normalised penultimate features to their k-th nearest clean neighbour.

    Source: Sun, Ming, Zhu, Li 2022, "Out-of-distribution detection with deep nearest neighbors",
    section 3; there k is 50 of 50,000 CIFAR-10 images.

    Attributes:
        k: Which neighbour, >= 1 and at most the number of fit images.
    """

    name: ClassVar[str] = "knn"

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1 or self.k != int(self.k):
            raise ConfigurationError(f"k is {self.k}; expected a whole number >= 1.")

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if len(images) < self.k:
            raise CalibrationSizeError(
                f"{self.name!r} was given {len(images)} images and k = {self.k}; give at least "
                "k images, or a smaller k."
            )
        return _unit(penultimate(model, images, batch=BATCH))

    def _score(self, model: nn.Module, state: Tensor, images: Tensor) -> Tensor:
        points = _unit(activations(model, images).penultimate.double().cpu())
        rows = [(point - state).norm(dim=1).kthvalue(self.k).values for point in points]
        return torch.stack(rows)


def _unit(points: Tensor) -> Tensor:
    """Return points [n, D] at length 1."""
    return nn.functional.normalize(points, dim=1)
