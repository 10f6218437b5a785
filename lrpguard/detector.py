"""From a vector of scores to one anomaly score; fitted on clean data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.scores import SCORES

FIT_IMAGES_PER_SCORE = 8
"""Clean images that the combined detector needs for each of its scores."""

SHRINKAGE = 0.1
"""Weight of the diagonal in the combined detector's covariance."""


class Detector(Protocol):
    """One anomaly score from a vector of scores; larger is more anomalous."""

    @property
    def name(self) -> str:
        """Name in calibration files: ``"paper"`` or ``"combined"``."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores it takes, in order."""

    def anomaly(self, scores: Tensor) -> Tensor:
        """Return the anomaly score [B] of score vectors [B, S]."""

    def state(self) -> dict[str, Tensor]:
        """Return what was fitted, for the calibration file."""


@dataclass(frozen=True)
class PaperDetector:
    """The paper's: the mean pixel-wise variance of the relevance, large is anomalous.

    Source: Raulf et al. 2021, section 3.2.
    """

    name: str = "paper"
    score_names: tuple[str, ...] = ("relevance_variance",)

    def anomaly(self, scores: Tensor) -> Tensor:
        """Return the one score [B] of [B, 1]."""
        return scores[:, 0]

    def state(self) -> dict[str, Tensor]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class CombinedDetector:
    """Distance of the score vector from clean data, two-sided in each score.

    Each score is mapped to a standard normal one by its empirical distribution on clean
    data, linearly continued beyond its range. The anomaly is the squared Mahalanobis
    distance of the mapped vector.

    Attributes:
        score_names: The S scores.
        reference: Clean scores, each column sorted [n, S].
        precision: Inverse covariance of the mapped clean scores [S, S].
    """

    score_names: tuple[str, ...]
    reference: Tensor
    precision: Tensor
    name: str = "combined"

    @staticmethod
    def fit(scores: Tensor, score_names: tuple[str, ...]) -> CombinedDetector:
        """Fit to the scores [n, S] of clean images.

        Raises:
            CalibrationSizeError: Fewer than ``FIT_IMAGES_PER_SCORE`` images a score.
        """
        needed = FIT_IMAGES_PER_SCORE * len(score_names)
        if len(scores) < needed:
            raise CalibrationSizeError(
                f"{len(scores)} clean images to fit the combined detector; it needs at least "
                f"{needed}, beside those that calibrate its threshold. Give more clean images, "
                "or use detector='paper', which fits nothing."
            )
        reference = scores.sort(dim=0).values
        mapped = _to_normal(scores, reference)
        covariance = torch.atleast_2d(mapped.T.cov())
        diagonal = torch.diag(covariance.diagonal().clamp_min(1e-6))
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
        return CombinedDetector(score_names, reference, torch.linalg.inv(covariance))

    def anomaly(self, scores: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance [B] of score vectors [B, S]."""
        mapped = _to_normal(scores, self.reference)
        return torch.einsum("bi,ij,bj->b", mapped, self.precision, mapped)

    def state(self) -> dict[str, Tensor]:
        """Return the reference scores and the precision matrix."""
        return {"reference": self.reference, "precision": self.precision}


def needs_fit(name: str) -> bool:
    """Say whether a detector learns from clean data before it is calibrated.

    Raises:
        ConfigurationError: There is no such detector.
    """
    if name not in ("paper", "combined"):
        raise ConfigurationError(f"no detector is named {name!r}; there are 'combined', 'paper'.")
    return name == "combined"


def fit_detector(name: str, scores: Tensor) -> Detector:
    """Return the named detector, fitted to clean scores in the registry's order.

    Args:
        name: ``"paper"`` or ``"combined"``.
        scores: Every score of the clean images set aside for the fit [n, len(SCORES)].

    Raises:
        ConfigurationError: There is no such detector.
        CalibrationSizeError: Too few images.
    """
    if needs_fit(name):
        return CombinedDetector.fit(scores, tuple(SCORES))
    return PaperDetector()


def load_detector(name: str, score_names: tuple[str, ...], state: Mapping[str, Tensor]) -> Detector:
    """Return the detector whose :meth:`Detector.state` is given.

    Raises:
        ConfigurationError: There is no such detector, or a score is unknown.
        KeyError: A part of the state is missing.
    """
    unknown = [score for score in score_names if score not in SCORES]
    if unknown:
        raise ConfigurationError(f"no score is named {unknown}; there are {sorted(SCORES)}.")
    if needs_fit(name):
        return CombinedDetector(score_names, state["reference"], state["precision"])
    return PaperDetector()


def _to_normal(scores: Tensor, reference: Tensor) -> Tensor:
    """Map each score [B, S] to the normal quantile of its rank among the reference [n, S]."""
    n = len(reference)
    columns = reference.T.contiguous()  # [S, n]
    values = scores.T.contiguous()  # [S, B]
    below = torch.searchsorted(columns, values)
    below_or_equal = torch.searchsorted(columns, values, right=True)
    rank = (below + below_or_equal) / 2
    normal: Tensor = torch.special.ndtri((rank.double() + 0.5) / (n + 1))
    low, middle, high = columns[:, :1], columns[:, n // 2, None], columns[:, -1:]
    upper = _scale(columns[:, int(0.95 * (n - 1)), None] - middle, columns)
    lower = _scale(middle - columns[:, int(0.05 * (n - 1)), None], columns)
    beyond = (values - high).clamp_min(0) / upper - (low - values).clamp_min(0) / lower
    return (normal + beyond).T


def _scale(distance: Tensor, columns: Tensor) -> Tensor:
    """Turn the distance from the median to a 5 % quantile into a standard deviation."""
    fallback = columns.std(1, keepdim=True).clamp_min(1e-12)  # a score that is mostly one value
    return torch.where(distance > 1e-3 * fallback, distance / 1.645, fallback)
