"""From a vector of scores to one anomaly score; fitted on clean data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor

from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.scores import SCORES

FIT_IMAGES_PER_SCORE = 8
"""Clean images that the combined detector needs for each of its scores."""

CONSTANT_SCALE = 0.01
"""Standard deviation assumed of a score that never varied on clean images."""

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
        constant = (covariance.diagonal() < 1e-6).double()  # a score that never varied
        covariance = covariance + torch.diag(constant)
        diagonal = torch.diag(covariance.diagonal())
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
        precision = torch.linalg.inv(covariance).contiguous()
        return CombinedDetector(score_names, reference, precision)

    def anomaly(self, scores: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance [B] of score vectors [B, S]."""
        mapped = _to_normal(scores, self.reference)
        # Row by row: a product of whole matrices may round differently with the batch.
        return torch.stack([row @ self.precision @ row for row in mapped])

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
    """Map each score [B, S] to the normal quantile of its rank among the reference [n, S].

    Linear between the reference's values, so that rounding of a score moves it by rounding,
    and linear beyond them.
    """
    columns = [
        _column_to_normal(column.numpy(), known.numpy())
        for column, known in zip(scores.double().T, reference.T, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=1))


def _column_to_normal(
    values: npt.NDArray[np.float64], known: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    n = len(known)
    knots = np.unique(known)
    rank = (np.searchsorted(known, knots) + np.searchsorted(known, knots, side="right")) / 2
    normal: npt.NDArray[np.float64] = np.interp(values, knots, ndtri((rank + 0.5) / (n + 1)))
    low, middle, high = known[int(0.05 * (n - 1))], known[n // 2], known[int(0.95 * (n - 1))]
    spread = float(known.std())
    varies = spread > 1e-9 * float(np.abs(known).max())  # else it is one value, and rounding
    fallback = spread if varies else CONSTANT_SCALE
    normal += np.maximum(values - known[-1], 0) / _scale(high - middle, fallback)
    normal -= np.maximum(known[0] - values, 0) / _scale(middle - low, fallback)
    return normal


def _scale(distance: float, fallback: float) -> float:
    """Turn the distance from the median to a 5 % quantile into a standard deviation."""
    return distance / 1.645 if distance > 1e-3 * fallback else fallback  # mostly one value
